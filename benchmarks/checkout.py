"""The package `alpro` of a checkout without an installation."""

import io
import subprocess
import tarfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def export(commit: str, folder: Path) -> Path:
    """Writes the files of a commit of this repository to a folder; returns the folder."""
    packed = subprocess.run(["git", "archive", "--format=tar", commit], cwd=ROOT, stdout=subprocess.PIPE, check=True)
    with tarfile.open(fileobj=io.BytesIO(packed.stdout)) as tar:
        tar.extractall(folder, filter="data")
    return folder


def link(code: Path, links: Path) -> Path:
    """Makes a folder for PYTHONPATH, whose `alpro` has links to the packages of a checkout, as its pyproject.toml maps
    them; returns the folder."""
    mapped = tomllib.loads((code / "pyproject.toml").read_text())["tool"]["setuptools"]["package-dir"]
    (links / "alpro").mkdir(parents=True)
    for package, folder in mapped.items():
        if package == "alpro":
            for file in (code / folder).glob("*.py"):
                (links / "alpro" / file.name).symlink_to(file)
        else:
            links.joinpath(*package.split(".")).symlink_to(code / folder)
    return links
