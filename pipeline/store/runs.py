"""What became of the last run of some steps: a JSON file with the name of their report."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from pydantic import TypeAdapter

from alpro.files import read_json, write_json
from alpro.pipeline.config.command import Command

UNFINISHED = "unfinished"  # also of a run that was killed
FINISHED = "finished"
FAILED = "failed"
STOPPED = "stopped"


@dataclass(frozen=True)
class Run:
    """A command that ran in a workspace."""

    at: str = ""  # time of its start in ISO 8601
    config: str = ""
    changes: tuple[str, ...] = ()
    stage: str = ""
    folder: str = ""  # that relative paths are relative to
    commit: str = ""
    title: str = ""
    # Known at its end.
    state: str = UNFINISHED
    reason: str = ""  # why it did not finish
    seconds: float = 0.0
    states: Mapping[str, str] = field(default_factory=dict)  # what became of each step

    @property
    def command(self) -> Command:
        return Command(self.config, self.changes, self.stage)


RUN = TypeAdapter(Run)  # reads a run, without the keys that another version wrote


def write_run(run: Run, report: Path) -> None:
    """Write a run when it begins and when it ends."""
    file = run_file(report)
    file.parent.mkdir(exist_ok=True)
    write_json(file, asdict(run))


def read_run(report: Path) -> Run | None:
    """Return the last run of the steps that a page reports; None if there was none."""
    file = run_file(report)
    return RUN.validate_python(read_json(file)) if file.is_file() else None


def run_file(report: Path) -> Path:
    return report.parents[1] / "runs" / f"{report.stem}.json"
