"""The summary of a pipeline's run: what its report is about.

It is written beside the report, as REPORT.json.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from alpro.files import read_json, write_json
from alpro.pipeline.config.pipeline_config import PipelineConfig
from alpro.pipeline.plan.dag import Planned
from alpro.pipeline.plan.step import Step
from alpro.pipeline.plan.steps import required

FINISHED, FAILED, STOPPED = "finished", "failed", "stopped"
STATES = {"FINISHED": FINISHED, "FAILED": FAILED, "KILLED": STOPPED}  # of MLflow


@dataclass(frozen=True)
class StepSummary:
    """A step of a run. state: built, cached, failed, unfinished, or unused if no step that ran needed it."""

    name: str
    stage: str
    fingerprint: str
    inputs: list[str]  # names of steps
    state: str
    seconds: float | None  # that its artifact took, whether in this run or before


@dataclass(frozen=True)
class RunSummary:
    """A run of a pipeline, or of one stage and its inputs."""

    title: str
    name: str  # of the configuration
    stage: str = ""  # empty: the whole pipeline
    state: str = FINISHED
    reason: str = ""  # why it failed or was stopped, in a line
    started: str = ""  # UTC
    seconds: float = 0.0
    commit: str = ""
    arguments: dict[str, Any] = field(default_factory=dict)  # config, data and changes
    config: dict[str, Any] = field(default_factory=dict)
    steps: list[StepSummary] = field(default_factory=list)

    @classmethod
    def of(cls, values: dict[str, Any]) -> "RunSummary":
        """A summary from values of JSON."""
        return cls(**values | {"steps": [StepSummary(**step) for step in values["steps"]]})

    def save(self, path: Path) -> None:
        write_json(path, asdict(self))


def load(path: Path) -> RunSummary | None:
    """A summary that `save` wrote; None if the file is something else."""
    try:
        return RunSummary.of(read_json(path))
    except (ValueError, TypeError, KeyError):
        return None


def summaries(folder: Path) -> Iterator[tuple[Path, RunSummary]]:
    """The summaries in a folder of reports, newest first."""
    loaded = [(path, summary) for path in folder.glob("*.json") if (summary := load(path))]
    yield from sorted(loaded, key=lambda pair: pair[1].started, reverse=True)


def first_line(error: BaseException) -> str:
    """The message of an error as a line; the kind of the error if it has no message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def report_file(root: Path, config: PipelineConfig, steps: list[Step]) -> Path:
    """The report of a run of these steps in a workspace."""
    return root / "reports" / f"{config.name}-{steps[-1].fingerprint[:6]}.html"


def finished_steps(plan: Planned, report: Path) -> list[Step]:
    """The steps of a run that has nothing to do: every artifact is in the workspace, which has an MLflow store, and the
    last run of these steps did not fail or stop. Empty if anything is left to do. report: the file of `report_file`."""
    _, steps, store = plan
    wanted, summary = required(steps, store), report.with_suffix(".json")
    if not (report.parents[1] / "mlflow.db").is_file():
        return []
    if summary.is_file() and (before := load(summary)) and before.state != FINISHED:
        return []
    return wanted if all(map(store.find, wanted)) else []
