"""The summary of a run that has ended, for its report."""

from datetime import UTC, datetime

from alpro.pipeline.artifacts.store import Step
from alpro.pipeline.config import PipelineConfig
from alpro.pipeline.record import status_after
from alpro.pipeline.reporting.run_summary import FINISHED, STATES, RunSummary, StepSummary, first_line
from alpro.pipeline.tasks import Session
from alpro.stages.execution.interface import Interrupted


def now() -> datetime:
    return datetime.now(UTC)


def summarize(
    title: str,
    stage: str,
    started: datetime,
    session: Session,
    config: PipelineConfig,
    steps: list[Step],
    error: BaseException | None,
) -> RunSummary:
    """What a run has done. stage: empty for the whole pipeline; error: what ended the run, if it did not finish."""
    state = STATES[status_after(error)] if error else FINISHED
    return RunSummary(
        title=title,
        name=config.name,
        stage=stage,
        state=state,
        reason=reason(session, error) if error else "",
        started=started.isoformat(timespec="seconds"),
        seconds=round((now() - started).total_seconds(), 1),
        commit=session.commit,
        arguments=session.arguments,
        config=config.model_dump(mode="json"),
        steps=[step_summary(step, session, finished=state == FINISHED) for step in steps],
    )


def reason(session: Session, error: BaseException) -> str:
    """Why a run did not finish, in a line that names the stage."""
    line = first_line(error)
    failed = [name for name, own in session.failures.items() if own is error]
    return f"{failed[0]}: {line}" if failed and not line.startswith(failed[0]) else line


def step_summary(step: Step, session: Session, finished: bool) -> StepSummary:
    """A step with its state at the end of the run."""
    result = next((result for result in session.results if result.step.name == step.name), None)
    if result:
        state = "cached" if result.cached else "built"
    elif step.name in session.failures and not isinstance(session.failures[step.name], Interrupted):
        state = "failed"
    else:
        state = "unused" if finished else "unfinished"
    seconds = result.record["run"]["seconds"] if result else None
    inputs = [source.name for source in step.inputs.values()]
    return StepSummary(step.name, step.stage, step.fingerprint, inputs, state, seconds)
