"""One run of a pipeline: its plan, what it was started with, its run in MLflow, and what became of its steps."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alpro.artifact import Record
from alpro.pipeline.plan.dag import Planned
from alpro.pipeline.reports.page import FAILED, FINISHED, STOPPED, report_file, summary, write_report
from alpro.pipeline.store.lineage import current_folder
from alpro.pipeline.tracking.tracker import Tracker, first_line, git_commit, status_after
from alpro.stages.execution.interface import Interrupted, cores


class PipelineRun:
    """A run of a plan, whose MLflow run is open.

    Args:
        plan: of `planned`.
        arguments: config, data, changes and stage, the parameters of the flow.
        workspace: the folder of artifacts and reports.
        elsewhere: the deployments that run the steps of a stage, by the names of the stages.
        tracker, run: where it is logged, and its run there.
        title: its name.
    """

    def __init__(
        self,
        plan: Planned,
        arguments: Mapping[str, Any],
        workspace: Path,
        elsewhere: Mapping[str, str],
        tracker: Tracker,
        run: str,
        title: str,
    ):
        self.plan, self.arguments, self.workspace, self.elsewhere = plan, arguments, workspace, elsewhere
        self.tracker, self.run, self.title = tracker, run, title
        self.settings, self.steps, self.store = plan
        self.started, self.commit = datetime.now(UTC), git_commit()
        self.recorded = {name: arguments[name] for name in ("config", "data", "changes")} | {"folder": current_folder()}
        # By the names of the steps: what they left, whether they ran, and why they failed or were interrupted.
        self.found: dict[str, tuple[Path, Record]] = {}
        self.cached: set[str] = set()
        self.failures: dict[str, BaseException] = {}

    @property
    def threads(self) -> int:
        """Of a model on a CPU, 0 for PyTorch's default: two with all threads each would wait for each other's."""
        together = self.settings.resources.max_stages
        return max(1, cores() // together) if together > 1 else 0

    @property
    def artifacts(self) -> dict[str, tuple[Path, Record]]:
        """The artifacts with their records, by the names of the steps, in order."""
        return {step.name: self.found[step.name] for step in self.steps if step.name in self.found}

    def write_report(self, error: BaseException | None) -> Path:
        """Writes the report into the workspace and logs the results to MLflow. error: what ended the run, if it did not
        finish."""
        states = {name: "cached" if name in self.cached else "built" for name in self.found}
        states |= {name: "failed" for name, own in self.failures.items() if not isinstance(own, Interrupted)}
        about = summary(
            self.title,
            self.settings,
            self.steps,
            states,
            stage=self.arguments["stage"],
            state=FINISHED if error is None else FAILED if status_after(error) == "FAILED" else STOPPED,
            reason=self._reason(error) if error else "",
            started=self.started,
            commit=self.commit,
            arguments=self.recorded,
        )
        artifacts = list(self.artifacts.values())
        report = write_report(report_file(self.workspace, self.settings, self.steps), about, artifacts)
        config = self.settings.model_dump_json(indent=1)
        self.tracker.log_pipeline(self.run, artifacts, self.cached, report, config)
        return report

    def _reason(self, error: BaseException) -> str:
        """Why the run did not finish, in a line that names the stage."""
        line = first_line(error)
        failed = [name for name, own in self.failures.items() if own is error]
        return f"{failed[0]}: {line}" if failed and not line.startswith(failed[0]) else line


def title_of(plan: Planned, arguments: Mapping[str, Any]) -> str:
    """The name of a run, which differs where pages cut it: the configuration and the last step's fingerprint, then the
    stage and the changes."""
    settings, steps, _ = plan
    parts = (f"{settings.name} {steps[-1].fingerprint[:6]}", arguments["stage"], " ".join(arguments["changes"]))
    return " · ".join(part for part in parts if part)
