"""Find and read TOML files: shipped configurations and the user's own."""

import tomllib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from alpro.artifact import flatten
from alpro.credentials import refuse_credentials
from alpro.errors import InputError
from alpro.files import expand_home, read_text

CONFIGS = Path(__file__).with_name("shipped")
STUDIES = CONFIGS / "studies"


def shipped(folder: Path = CONFIGS) -> list[str]:
    """Return the names of the shipped configurations, or of the studies."""
    return sorted(path.stem for path in folder.glob("*.toml"))


def find_config(source: str, folder: Path = Path(), shipped_in: Path = CONFIGS) -> Path:
    """Find a TOML file by its path in `folder`, or by the name of a shipped one."""
    refuse_credentials("--config", source)
    path = folder / expand_home(source)
    for file in (path, shipped_in / f"{source}.toml"):
        # A folder named `sample` does not hide the shipped configuration.
        if file.is_file():
            return file

    hint = suggest(source, shipped(shipped_in), "the shipped ones are")
    raise InputError(f"{source}: no such file; {hint}")


def suggest(name: str, names: Sequence[str], introduction: str) -> str:
    """Return a hint with the closest name, or with all names.

    >>> suggest("pretrian", ["pretrain", "evaluate"], "the stages are")
    "did you mean 'pretrain'?"
    >>> suggest("x", ["pretrain", "evaluate"], "the stages are")
    'the stages are pretrain, evaluate'
    """
    close = get_close_matches(name, names, 1)
    return (
        f"did you mean {close[0]!r}?" if close else f"{introduction} {', '.join(names)}"
    )


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        InputError: If it cannot be read, or has credentials, which MLflow would display.
    """
    try:
        values = tomllib.loads(read_text(path))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: not readable as TOML: {error}") from error

    for key, value in flatten(values).items():
        refuse_credentials(f"{path}: {key}", value)
    return values
