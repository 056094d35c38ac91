"""One run of a pipeline: its plan, what it was started with, its run in MLflow, and what became of its steps."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alpro.artifact import Record
from alpro.pipeline.plan.dag import Planned
from alpro.pipeline.reports.page import FAILED, FINISHED, STOPPED, report_file, write_report
from alpro.pipeline.tracking.tracker import Tracker, first_line, git_commit, status_after
from alpro.stages.execution.interface import Interrupted, cores


@dataclass
class PipelineRun:
    """A run of a plan, whose MLflow run is open."""

    plan: Planned
    arguments: Mapping[str, Any]  # config, data, changes and stage: the parameters of the flow
    workspace: Path  # of artifacts and reports
    elsewhere: Mapping[str, str]  # the deployments that run the steps of a stage, by the names of the stages
    tracker: Tracker
    run: str  # in MLflow
    title: str
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    commit: str = field(default_factory=git_commit)
    # By the names of the steps: what they left, whether it was there, and why they failed or were interrupted.
    found: dict[str, tuple[Path, Record]] = field(default_factory=dict)
    cached: set[str] = field(default_factory=set)
    failures: dict[str, BaseException] = field(default_factory=dict)

    @property
    def recorded(self) -> dict[str, Any]:
        """What a record has of the command that built its artifact."""
        return {name: self.arguments[name] for name in ("config", "data", "changes")} | {"folder": current_folder()}

    @property
    def threads(self) -> int:
        """Of a model on a CPU, 0 for PyTorch's default: two with all threads each would wait for each other's."""
        together = self.plan.settings.resources.max_stages
        return max(1, cores() // together) if together > 1 else 0

    @property
    def artifacts(self) -> dict[str, tuple[Path, Record]]:
        """The artifacts with their records, by the names of the steps, in order."""
        return {step.name: self.found[step.name] for step in self.plan.steps if step.name in self.found}

    def write_report(self, error: BaseException | None) -> Path:
        """Writes the report, and a summary as JSON beside it, and logs the results to MLflow. error: what ended the
        run, if it did not finish."""
        settings, steps, _ = self.plan
        left = "unfinished" if error else "unused"
        states = {name: "cached" if name in self.cached else "built" for name in self.found}
        states |= {name: "failed" for name, own in self.failures.items() if not isinstance(own, Interrupted)}
        about = {
            "title": self.title,
            "name": settings.name,
            "stage": self.arguments["stage"],
            "state": FINISHED if error is None else FAILED if status_after(error) == "FAILED" else STOPPED,
            "reason": self._reason(error) if error else "",
            "started": self.started.isoformat(timespec="seconds"),
            "seconds": round((datetime.now(UTC) - self.started).total_seconds(), 1),
            "commit": self.commit,
            "arguments": self.recorded,
            "config": settings.model_dump(mode="json"),
            "steps": [
                {
                    "name": step.name,
                    "stage": step.stage,
                    "fingerprint": step.fingerprint,
                    "inputs": [source.name for source in step.inputs.values()],
                    "state": states.get(step.name, left),
                }
                for step in steps
            ],
        }
        artifacts = list(self.artifacts.values())
        report = write_report(report_file(self.workspace, self.plan), about, artifacts)
        self.tracker.log_pipeline(self.run, artifacts, [report, report.with_suffix(".json")])
        return report

    def _reason(self, error: BaseException) -> str:
        """Why the run did not finish, in a line that names the stage."""
        line = first_line(error)
        failed = [name for name, own in self.failures.items() if own is error]
        return f"{failed[0]}: {line}" if failed and not line.startswith(failed[0]) else line


def title_of(plan: Planned, arguments: Mapping[str, Any]) -> str:
    """The name of a run, which differs where pages cut it: the configuration and the last step's fingerprint, then the
    stage, the data and the changes."""
    settings, steps, _ = plan
    changes, data = " ".join(arguments["changes"]), Path(arguments["data"]).name
    parts = (f"{settings.name} {steps[-1].fingerprint[:6]}", arguments["stage"], data, changes)
    return " · ".join(part for part in parts if part)


def current_folder() -> str:
    """The folder to which the paths of a command are relative, for its repetition: relative to the checkout that this
    code is in, so that it holds for a clone of it too; absolute outside of the checkout."""
    checkout, folder = Path(__file__).parents[2], Path.cwd()
    inside = (checkout / ".git").exists() and folder.is_relative_to(checkout)
    return folder.relative_to(checkout).as_posix() if inside else str(folder)
