"""A run of a pipeline: what it has built and found, what stops it, and its report."""

import os
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from queue import SimpleQueue

from prefect import get_run_logger
from prefect.artifacts import create_markdown_artifact

from alpro.artifact import Artifact
from alpro.errors import MAX_MESSAGE, InputError, one_line
from alpro.files import atomic_write
from alpro.log import log
from alpro.pipeline.plan.difference import describe, differences, origin
from alpro.pipeline.plan.plan import Plan, with_inputs, write_names
from alpro.pipeline.reports.document import describe_run
from alpro.pipeline.store.runs import (
    FAILED,
    FINISHED,
    STOPPED,
    RunEntry,
    read_earlier,
    write_run,
)
from alpro.pipeline.tracking.contents import status_after
from alpro.pipeline.tracking.tracker import MAX_DESCRIPTION, Tracker
from alpro.stages import TRAININGS, WITH_MODEL
from alpro.stages.execution.devices import find_gpus
from alpro.stages.execution.interface import StageFailed
from alpro.stages.execution.step import Step

# Errors that end a run and are no bugs: a mistake of the user, a failed stage, which has printed
# why, a stop, or a disk.
EXPECTED = (InputError, StageFailed, CancelledError, OSError)
DEFAULT_UI = "http://127.0.0.1:5000"  # the server of `alpro ui`, without --port


@dataclass
class PipelineRun:
    """A run of a plan, whose MLflow run is open.

    Attributes:
        log_entry: the run in the log of the workspace.
        remote_stages: the stages whose steps are runs of their deployments.
        mlflow_run: the id of the run in MLflow.
        artifacts_by_name: the artifact of each finished step.
        states: what became of each step that has ended, in a word.
        failures: why a step has no artifact, by its name.
        stopping: set once the run is to stop: its stages write checkpoints, and no other starts.
        killing: set once its stages are to end at once.
    """

    plan: Plan
    log_entry: RunEntry
    remote_stages: Collection[str]
    tracker: Tracker
    mlflow_run: str
    artifacts_by_name: dict[str, Artifact] = field(default_factory=dict)
    states: dict[str, str] = field(default_factory=dict)
    failures: dict[str, BaseException] = field(default_factory=dict)
    stopping: threading.Event = field(default_factory=threading.Event)
    killing: threading.Event = field(default_factory=threading.Event)

    @property
    def artifacts(self) -> list[Artifact]:
        """The artifacts in the order of the plan."""
        built = self.artifacts_by_name
        return [built[step.name] for step in self.plan.steps if step.name in built]

    def __post_init__(self) -> None:
        resources = self.plan.settings.resources
        gpus = find_gpus(resources)
        count = resources.processes
        groups = [
            gpus[start : start + count]
            for start in range(0, len(gpus) - count + 1, count)
        ]
        # The GPUs of each stage that may run with others here; none on a CPU.
        self._gpus: SimpleQueue[list[str]] = SimpleQueue()
        for group in groups or [[]] * resources.max_stages:
            self._gpus.put(group)

    @contextmanager
    def gpus(self, step: Step) -> Iterator[list[str]]:
        """Wait for the GPUs of a step, which it has for the time of the body."""
        if step.stage not in WITH_MODEL:
            yield []
            return

        gpus = self._gpus.get()
        try:
            yield gpus
        finally:
            self._gpus.put(gpus)

    def announce(self, step: Step, text: str) -> None:
        """Print or log what becomes of a step, and which stage of how many it is."""
        steps = self.plan.required
        number = steps.index(step) + 1
        announce(f"stage {number} of {len(steps)}, {step.name}: {text}")

    def count_models(self, step: Step) -> int:
        """Return how many stages with a model share this machine: the step itself and the
        trainings that may run beside it. An evaluation is over soon."""
        steps = self.plan.steps
        before = with_inputs(steps, [step.name])
        beside = [
            other
            for other in steps
            if other.stage in TRAININGS
            and other.stage not in self.remote_stages
            # If one of two steps needs the other, only one runs at a time.
            and other not in before
            and step not in with_inputs(steps, [other.name])
        ]
        return min(self.plan.settings.resources.max_stages, 1 + len(beside))

    def write_report(self, error: BaseException | None) -> None:
        """Write the end of the run into the log, and the report, and show the results in MLflow and
        Prefect.

        error: what ended the run, if it did not finish.
        """
        log_entry = self.end(error)
        artifacts = self.artifacts
        report = self.plan.report
        changes = self.describe_changes(read_earlier(self.plan.workspace, log_entry))
        document = describe_run(log_entry, self.plan.steps, artifacts, changes)
        # A link of MLflow's own pages, which follows the address of its server.
        run_page = f"#/experiments/{self.tracker.experiment}/runs/{self.mlflow_run}"
        uri = self.tracker.uri
        server = uri.rstrip("/") if uri.startswith("http") else DEFAULT_UI
        links = {"MLflow": f"{server}/{run_page}" if self.mlflow_run else ""}
        report.parent.mkdir(exist_ok=True)
        with atomic_write(report) as temporary:
            temporary.write_text(document.page(links), "utf-8")

        # The report is one of the files of MLflow's run, which has a page for each.
        in_mlflow = {"Report": f"{run_page}/artifacts/{report.name}"}
        self.tracker.log_pipeline(
            self.mlflow_run,
            artifacts,
            report=report,
            figures=document.figures,
            description=document.markdown(in_mlflow, MAX_DESCRIPTION),
        )

        # The command line prints it below the results, if there are some.
        if error is not None or not is_command_line():
            announce(f"report: {report}")
        if not is_command_line():
            create_markdown_artifact(
                document.markdown(links), key="results", description=log_entry.title
            )

    def end(self, error: BaseException | None) -> RunEntry:
        """Write how the run ended into the log. STAGE stands for what was built last, also by a run
        that failed."""
        state = FINISHED
        if error is not None:
            state = FAILED if status_after(error) == "FAILED" else STOPPED
        began = datetime.fromisoformat(self.log_entry.at)
        fingerprints = {record.name: record.fingerprint for _, record in self.artifacts}
        rest = "unfinished" if error else "unused"
        states = {
            step.name: self.states.get(step.name, rest) for step in self.plan.steps
        }
        run = replace(
            self.log_entry,
            state=state,
            reason=one_line(error, max_length=MAX_MESSAGE) if error else "",
            seconds=round((datetime.now(UTC) - began).total_seconds(), 1),
            steps=fingerprints,
            states=states,
        )
        write_run(self.plan.workspace, run)
        write_names(self.plan, fingerprints)
        return run

    def describe_changes(self, earlier: Sequence[RunEntry]) -> list[str] | None:
        """Return how the artifacts of this run differ from the last ones of the same steps; if none
        of those exists, the changes of the command. None, if this is the first run.

        Args:
            earlier: Runs of the same configuration, in order.
        """
        if not earlier:
            return None
        steps: dict[str, str] = {}
        for run in earlier:
            steps |= run.steps
        records = {
            record.fingerprint: record for _, record in self.plan.store.artifacts()
        }
        after = [
            record for _, record in self.artifacts if steps.get(record.name) in records
        ]
        if not after:
            return list(self.log_entry.changes)

        before = [records[steps[record.name]] for record in after]
        return [describe(one) for one in differences(origin(*before), origin(*after))]


def is_command_line() -> bool:
    """Return whether a user called the command line, and no Prefect worker did."""
    return "ALPRO_COMMAND_LINE" in os.environ


def announce(text: str) -> None:
    """Print progress for the command line, or log it to Prefect."""
    (get_log_sink() or log.info)(text)


def get_log_sink() -> Callable[[str], None] | None:
    """Return what receives the output of a stage's processes line by line: the log of Prefect's
    run, or None for this terminal."""
    return None if is_command_line() else get_run_logger().info
