"""Versions of what may change a result: Python, packages, and the source of this project."""

import platform
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from glob import glob
from hashlib import sha256
from importlib import metadata
from pathlib import Path

from alpro.errors import InputError

PACKAGES = (
    "alpro-pipeline",
    "torch",
    "transformers",
    "tokenizers",
    "webdataset",
    "av",
    "imageio-ffmpeg",
    "spacy",
    "numpy",
    "pillow",
    "pyarrow",
    "simplejpeg",
)


def package_versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages, as they name themselves."""
    installed = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            installed[package] = metadata.version(package)
    return installed


@cache
def get_versions() -> dict[str, str]:
    """Return the versions that must be equal on all machines that work together, and the digest of
    this project's source."""
    # Builds for CPUs and for GPUs, such as 2.11.0+cpu, are the same version.
    versions = package_versions().items()
    here = {name: version.partition("+")[0] for name, version in versions}
    here["python"] = here["python"].rpartition(".")[0]  # without the patch

    source = sha256()
    root = Path(__file__).parent
    # Path.rglob does not follow the links to the rooms.
    for file in sorted(glob("**/*.py", root_dir=root, recursive=True)):  # noqa: PTH207
        source.update((root / file).read_bytes())
    here["alpro-pipeline"] = source.hexdigest()[:12]
    return here


def check_versions(expected: Mapping[str, str]) -> None:
    """Compare the versions of a client with those of this worker. A package that is missing here is
    no difference: its users say what they need.

    Raises:
        InputError: If one differs.
    """
    here = get_versions()
    for name, version in expected.items():
        if here.get(name, version) != version:
            raise InputError(
                f"{platform.node()}, a worker of the cluster, has {name} {here[name]}, and this "
                f"machine {version}; results would differ: install the same on both, and restart "
                "the worker"
            )
