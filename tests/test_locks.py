"""The two lock files name everything that an installation needs."""

import re
from importlib.metadata import distribution, requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT

PIN = re.compile(r"^([A-Za-z0-9._-]+)(?:\[.*\])?==", re.MULTILINE)


def read_names(*files):
    return {
        canonicalize_name(name)
        for file in files
        for name in PIN.findall((ROOT / file).read_text())
    }


def find_requirements(name):
    for text in requires(name) or []:
        requirement = Requirement(text)
        for python in ("3.11", "3.12", "3.13", "3.14"):
            machine = {"extra": "", "python_version": python}
            if requirement.marker is None or requirement.marker.evaluate(machine):
                yield requirement


@pytest.mark.parametrize(
    "files", [["requirements.lock"], ["requirements.lock", "requirements-dev.lock"]]
)
def test_every_requirement_of_a_locked_package_is_locked(files):
    names = read_names(*files)
    missing = {
        f"{name} needs {requirement}"
        for name in names - {"torch"}  # `make install` asks pip for what a build needs
        for requirement in find_requirements(name)
        if canonicalize_name(requirement.name) not in names
        or not requirement.specifier.contains(
            distribution(requirement.name).version, prereleases=True
        )
    }
    assert not missing
