"""The report of a run that has ended."""

from datetime import UTC, datetime
from pathlib import Path

from alpro.pipeline.flows.session import Session
from alpro.pipeline.plan.dag import Planned
from alpro.pipeline.reports.report import write_report
from alpro.pipeline.reports.results import Listed
from alpro.pipeline.reports.summary import FINISHED, STATES, RunSummary, StepSummary, first_line, report_file
from alpro.pipeline.store.artifacts import Step
from alpro.pipeline.tracking.stage_runs import log_stages, status_after
from alpro.stages.execution.interface import Interrupted


def report_run(session: Session, plan: Planned, root: Path, error: BaseException | None = None) -> Path:
    """Writes the report of a run into a workspace and logs it to the run of the pipeline in MLflow. error: what ended
    the run, if it did not finish."""
    config, steps, _ = plan
    report = write_report(report_file(root, config, steps), summarize(session, plan, error), listed(session))
    if session.parent:
        session.tracker.file(session.parent, report)
        session.tracker.text(session.parent, config.model_dump_json(indent=1), "config.json")
        log_stages(session.tracker, session.parent, session.results)
    return report


def listed(session: Session) -> list[Listed]:
    """The artifacts of a session, as tables of results take them."""
    return [(result.step.name, result.folder, result.record, result.cached) for result in session.results]


def summarize(session: Session, plan: Planned, error: BaseException | None) -> RunSummary:
    """What a run has done."""
    config, steps, _ = plan
    state = STATES[status_after(error)] if error else FINISHED
    return RunSummary(
        title=session.title,
        name=config.name,
        stage=session.stage,
        state=state,
        reason=reason(session, error) if error else "",
        started=session.started.isoformat(timespec="seconds"),
        seconds=round((datetime.now(UTC) - session.started).total_seconds(), 1),
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
