"""Prepares Prefect's work pools for `alpro up`, whose server is reachable from this machine only.

`python -m alpro.pipeline.servers.pools cpu=0 gpu=2` creates pools with these numbers of slots, 0 for no limit. A pool
that exists gets the number, and is no longer paused. Runs that hold a slot and have no process, since the machine was
switched off, say, are marked as crashed.
"""

import sys

import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterState, FlowRunFilterStateType
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectAlreadyExists
from prefect.states import Crashed
from prefect.workers.process import ProcessWorker


def create_pools(client: SyncPrefectClient, limits: dict[str, int]) -> None:
    template = ProcessWorker.get_default_base_job_template()
    for name, slots in limits.items():
        limit = slots or None
        try:
            client.create_work_pool(
                WorkPoolCreate(name=name, type="process", base_job_template=template, concurrency_limit=limit)
            )
        except ObjectAlreadyExists:
            client.update_work_pool(name, WorkPoolUpdate(concurrency_limit=limit, is_paused=False))


def end_dead_runs(client: SyncPrefectClient) -> None:
    states = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
    held = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=states)))
    for run in client.read_flow_runs(flow_run_filter=held):
        if is_dead(run):
            message = f"its process ended without a report; prefect flow-run retry {run.id} continues it"
            client.set_flow_run_state(run.id, Crashed(message=message), force=True)


def is_dead(run: FlowRun) -> bool:
    """Whether the process that a worker started for a run is gone, or was never started. No worker runs now."""
    if run.work_queue_id is None:  # of `alpro run`
        return False
    try:
        process = psutil.Process(int(run.infrastructure_pid or -1))
        return process.environ().get("PREFECT__FLOW_RUN_ID") != str(run.id)
    except psutil.AccessDenied:  # a process of another user
        return False
    except (psutil.Error, ValueError):
        return True


if __name__ == "__main__":
    with get_client(sync_client=True) as client:
        create_pools(
            client, {name: int(slots) for name, _, slots in (argument.partition("=") for argument in sys.argv[1:])}
        )
        end_dead_runs(client)
