"""The log of the commands of a workspace, runs.jsonl.

A line is written when a run begins, and another when it ends. A run that was killed has only the
first.
"""

import json
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import takewhile
from pathlib import Path
from uuid import uuid4

from pydantic import TypeAdapter

from alpro.pipeline.config.command import Command

FILE = "runs.jsonl"
FINISHED = "finished"
FAILED = "failed"
STOPPED = "stopped"


@dataclass(frozen=True)
class RunEntry(Command):
    """A command that ran in a workspace."""

    at: str = ""  # time of its start in ISO 8601
    folder: str = ""  # that relative paths are relative to
    commit: str = ""
    title: str = ""
    report: str = ""  # name of its page
    id: str = field(default_factory=lambda: uuid4().hex)
    # Known at its end.
    state: str = "unfinished"
    reason: str = ""  # why it did not finish
    seconds: float = 0.0
    # Fingerprints of artifacts by step.
    steps: Mapping[str, str] = field(default_factory=dict)
    states: Mapping[str, str] = field(default_factory=dict)  # what became of each step


# Reads a run, without the keys that another version wrote.
ENTRY = TypeAdapter(RunEntry)


def write_run(workspace: Path, run: RunEntry) -> None:
    """Write a run as it is now: when it begins, and when it has ended."""
    text = json.dumps(asdict(run), ensure_ascii=False)
    # A line begins with its break, so that one which a power failure has cut ends there. A single
    # write to a file that is open for appending: lines of two commands do not mix.
    with (workspace / FILE).open("ab") as file:
        file.write(f"\n{text}".encode())


def read_runs(workspace: Path) -> list[RunEntry]:
    """Return the runs in the order in which they began."""
    file = workspace / FILE
    runs: dict[str, RunEntry] = {}
    text = file.read_text("utf-8", "replace") if file.is_file() else ""
    for line in text.split("\n"):
        with suppress(ValueError):  # a power failure has cut the line, or it is damaged
            run = ENTRY.validate_json(line)
            runs[run.id] = run

    return [*runs.values()]


def read_earlier(workspace: Path, run: RunEntry) -> list[RunEntry]:
    """Return the runs of the same configuration that began before another one, in order."""
    before = takewhile(lambda one: one.id != run.id, read_runs(workspace))
    return [one for one in before if one.config_name == run.config_name]


@cache
def git_commit() -> str:
    """Return the commit of this code, with -dirty if files differ from it; "unknown" outside a
    checkout."""
    # alpro/pipeline is a link, which git does not follow.
    file = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(file.parent), *arguments]
        return subprocess.run(
            command, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        # This fails if the package is installed inside another repository.
        git("ls-files", "--error-unmatch", str(file))
        return git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
