"""A run that finds every artifact. It has an MLflow run and a report as any run has, but no flow run: Prefect and its
temporary server take as long as everything else that the command does."""

from alpro.errors import InputError
from alpro.log import log
from alpro.pipeline.artifacts.store import Step
from alpro.pipeline.planning import Planned
from alpro.pipeline.record import StageResult, log_cached, run_tags, status_after
from alpro.pipeline.run_report import report_run
from alpro.pipeline.session import Request, place_of, start_session


def run_cached(request: Request, plan: Planned, steps: list[Step]) -> dict[str, str]:
    """Logs a run whose steps are all cached, and writes its report. Returns the folder of each artifact.

    Raises InputError if somebody removes an artifact meanwhile.
    """
    session = start_session(request, plan, place_of(request, plan), dict)
    status = "FINISHED"
    try:
        for step in steps:
            with session.store.lock(step, log.info):
                if (record := session.store.find(step)) is None:
                    raise InputError(f"{step.name}: its artifact was removed meanwhile; run the same command again")
                result = StageResult(step, session.store.folder(step), record, cached=True)
                log_cached(session.tracker, result, session.parent, run_tags(session.commit, step), session.store)
            session.results.append(result)
        report_run(session, plan, request.workspace)
    except BaseException as error:
        status = status_after(error)
        raise
    finally:
        session.tracker.end(session.run, status)
        session.tracker.close()
    return session.folders
