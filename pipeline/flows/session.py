"""One run of a pipeline: its request, its artifacts, its MLflow runs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alpro.pipeline.plan.dag import Planned
from alpro.pipeline.store.artifacts import Store
from alpro.pipeline.store.lineage import current_folder
from alpro.pipeline.tracking.stage_runs import StageResult, end_dead_runs, git_commit, run_tags
from alpro.pipeline.tracking.tracker import Run, Tracker
from alpro.stages.execution.interface import Resources


@dataclass(frozen=True)
class Request:
    """What a run was started with, checked. `stage` is "" for the whole pipeline. `passed`: the workspace and the
    MLflow server that the runs of its steps by deployments get; None if it runs its steps itself."""

    stage: str
    config: str
    data: str
    changes: list[str]
    workspace: Path
    tracking_uri: str
    passed: dict[str, Any] | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        return {"config": self.config, "data": self.data, "changes": self.changes}


@dataclass(frozen=True)
class Place:
    """How a run appears in MLflow and Prefect. A study gives its runs names, tags, and the run of their variant."""

    title: str
    tags: Mapping[str, str] = field(default_factory=dict)
    parent: Run | None = None


@dataclass
class Session:
    """One running pipeline: its artifacts, its MLflow runs, its resources."""

    store: Store
    tracker: Tracker
    parent: Run | None  # MLflow run of the pipeline; None if it is in a store of another machine
    resources: Resources
    commit: str
    experiment: str
    arguments: dict[str, Any]  # config, data, changes and folder, as in the records of the artifacts
    title: str = ""  # of the pipeline's run
    stage: str = ""  # that was asked for; empty for the whole pipeline
    started: datetime = field(default_factory=lambda: datetime.now(UTC))
    results: list[StageResult] = field(default_factory=list)
    failures: dict[str, BaseException] = field(default_factory=dict)  # of steps that failed or were interrupted
    progress: dict[str, str] = field(default_factory=dict)  # "stage 5 of 11, " by the names of the steps
    threads: dict[str, int] = field(default_factory=dict)  # by the names of steps that run side by side
    passed: dict[str, Any] | None = None  # parameters of the deployment `step`; None: steps run in this process

    @property
    def run(self) -> Run:
        """The pipeline's run in MLflow, of a session that `start_session` has returned."""
        assert self.parent is not None
        return self.parent

    @property
    def folders(self) -> dict[str, str]:
        """The folder of each artifact, by the names of the steps."""
        return {result.step.name: str(result.folder) for result in self.results}


def open_tracker(uri: str, root: Path, experiment: str) -> Tracker:
    """The MLflow store of a run: the server, or a file in the workspace."""
    return Tracker.open(uri or f"sqlite:///{root / 'mlflow.db'}", root / "mlflow", experiment)


def place_of(request: Request, plan: Planned) -> Place:
    """How a run appears. Its name distinguishes runs: the configuration, the stage, the changes, and the last step's
    fingerprint."""
    config, steps, _ = plan
    parts = (config.name, request.stage, " ".join(request.changes), steps[-1].fingerprint[:6])
    return Place(" · ".join(part for part in parts if part))


def start_session(
    request: Request, plan: Planned, place: Place, tags: Callable[[dict[str, str]], dict[str, str]]
) -> Session:
    """Starts the MLflow run of a pipeline. `tags` completes its tags."""
    settings, _, store = plan
    commit = git_commit()
    tracker = open_tracker(request.tracking_uri, request.workspace, settings.name)
    end_dead_runs(tracker, {})
    about = tags({**run_tags(commit), **place.tags})
    configuration = settings.model_dump(mode="json")
    changed = settings.model_dump(mode="json", exclude_defaults=True)
    parent = tracker.start(place.title, changed, about, place.parent)
    recorded = {**request.arguments, "folder": current_folder()}
    return Session(
        store,
        tracker,
        parent,
        settings.resources,
        commit,
        settings.name,
        recorded,
        place.title,
        request.stage,
        passed=None if request.passed is None else {**request.passed, "settings": configuration, "arguments": recorded},
    )
