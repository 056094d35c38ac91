"""One run of a pipeline: its plan, what it was started with, its run in MLflow, and what became of its steps."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alpro.pipeline.flows.pages import about_run
from alpro.pipeline.plan.dag import Planned
from alpro.pipeline.plan.step import Step
from alpro.pipeline.reports.report import write_report
from alpro.pipeline.reports.results import Listed
from alpro.pipeline.reports.summary import FINISHED, STATES, RunSummary, StepSummary, first_line, report_file
from alpro.pipeline.store.lineage import current_folder
from alpro.pipeline.tracking.stage_runs import (
    StageResult,
    end_dead_runs,
    git_commit,
    log_stages,
    run_tags,
    status_after,
)
from alpro.pipeline.tracking.tracker import Run, Tracker
from alpro.stages.execution.interface import Interrupted, cores


def open_tracker(uri: str, root: Path, experiment: str) -> Tracker:
    """The MLflow store of a run: the server, or a file in the workspace."""
    return Tracker.open(uri or f"sqlite:///{root / 'mlflow.db'}", root / "mlflow", experiment)


class PipelineRun:
    """A run of a plan, whose MLflow run is open.

    Args:
        plan: of `planned`.
        arguments: config, data, changes and stage, the parameters of the flow.
        workspace: the folder of artifacts and reports.
        tracking_uri: an MLflow server; empty: a file in the workspace.
        elsewhere: the deployments that run the steps of a stage, by the names of the stages.
        title, tags, parent: how a study names its runs, and the run of their variant.
    """

    def __init__(
        self,
        plan: Planned,
        arguments: Mapping[str, Any],
        workspace: Path,
        tracking_uri: str,
        elsewhere: Mapping[str, str],
        title: str = "",
        tags: Mapping[str, str] | None = None,
        parent: Run | None = None,
    ):
        self.plan, self.arguments, self.workspace, self.elsewhere = plan, arguments, workspace, elsewhere
        self.settings, self.steps, self.store = plan
        self.title = title or title_of(plan, arguments)
        self.started, self.commit = datetime.now(UTC), git_commit()
        self.recorded = {name: arguments[name] for name in ("config", "data", "changes")} | {"folder": current_folder()}
        self.results: list[StageResult] = []
        self.failures: dict[str, BaseException] = {}  # by the names of the steps that failed or were interrupted
        self.tracker = open_tracker(tracking_uri, workspace, self.settings.name)
        end_dead_runs(self.tracker, {})
        changed = self.settings.model_dump(mode="json", exclude_defaults=True)
        about = about_run({**run_tags(self.commit), **(tags or {})})
        self.run = self.tracker.start(self.title, changed, about, parent)

    @property
    def threads(self) -> int:
        """Of a model on a CPU, 0 for PyTorch's default: two with all threads each would wait for each other's."""
        together = self.settings.resources.max_stages
        return max(1, cores() // together) if together > 1 else 0

    def listed(self) -> list[Listed]:
        """The artifacts, in order, as tables of results take them."""
        names = [step.name for step in self.steps]
        self.results.sort(key=lambda result: names.index(result.step.name))
        return [(result.step.name, result.folder, result.record, result.cached) for result in self.results]

    def write_report(self, error: BaseException | None) -> Path:
        """Writes the report into the workspace and logs it to MLflow. error: what ended the run, if it did not
        finish."""
        artifacts = self.listed()
        report = write_report(report_file(self.workspace, self.settings, self.steps), self.summary(error), artifacts)
        self.tracker.file(self.run, report)
        self.tracker.text(self.run, self.settings.model_dump_json(indent=1), "config.json")
        log_stages(self.tracker, self.run, self.results)
        return report

    def summary(self, error: BaseException | None) -> RunSummary:
        """What the run has done."""
        state = STATES[status_after(error)] if error else FINISHED
        return RunSummary(
            title=self.title,
            name=self.settings.name,
            stage=self.arguments["stage"],
            state=state,
            reason=self._reason(error) if error else "",
            started=self.started.isoformat(timespec="seconds"),
            seconds=round((datetime.now(UTC) - self.started).total_seconds(), 1),
            commit=self.commit,
            arguments=self.recorded,
            config=self.settings.model_dump(mode="json"),
            steps=[self._step_summary(step, finished=state == FINISHED) for step in self.steps],
        )

    def _reason(self, error: BaseException) -> str:
        """Why the run did not finish, in a line that names the stage."""
        line = first_line(error)
        failed = [name for name, own in self.failures.items() if own is error]
        return f"{failed[0]}: {line}" if failed and not line.startswith(failed[0]) else line

    def _step_summary(self, step: Step, finished: bool) -> StepSummary:
        result = next((result for result in self.results if result.step.name == step.name), None)
        if result:
            state = "cached" if result.cached else "built"
        elif step.name in self.failures and not isinstance(self.failures[step.name], Interrupted):
            state = "failed"
        else:
            state = "unused" if finished else "unfinished"
        seconds = result.record["run"]["seconds"] if result else None
        inputs = [source.name for source in step.inputs.values()]
        return StepSummary(step.name, step.stage, step.fingerprint, inputs, state, seconds)


def title_of(plan: Planned, arguments: Mapping[str, Any]) -> str:
    """The name of a run: the configuration, the stage, the changes, and the last step's fingerprint."""
    settings, steps, _ = plan
    parts = (settings.name, arguments["stage"], " ".join(arguments["changes"]), steps[-1].fingerprint[:6])
    return " · ".join(part for part in parts if part)
