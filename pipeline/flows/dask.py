"""Units of a stage (shards to decode, captions to tag) as task runs of Prefect, on a Dask cluster."""

from collections.abc import Callable, Iterator
from concurrent.futures import CancelledError, Executor, Future
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import count
from typing import Any

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext, TaskRunContext
from prefect.settings import PREFECT_API_URL, temporary_settings

from alpro.errors import InputError
from alpro.log import log

CONNECT_SECONDS = 10


@task(cache_policy=NO_CACHE, persist_result=False, task_run_name="{title}")
def unit(title: str, work: Callable[[], Any]) -> Any:
    """Runs one unit in a worker's process. A unit can be repeated after an interruption."""
    return work()


@contextmanager
def on_dask(address: str) -> Iterator[Executor]:
    """An executor whose functions run through Prefect's task runner on the Dask scheduler at an address.

    Workers report to the Prefect server of this flow, and so must be able to reach it. A worker that dies has its units
    run by another; after four deaths Dask gives up, and the future raises KilledWorker. Raises InputError
    where Dask is not installed or no scheduler answers.
    """
    try:
        from prefect_dask import DaskTaskRunner
    except ImportError:
        raise InputError(
            "resources.dask is set, but Dask is not installed: pip install 'alpro-pipeline[dask]'"
        ) from None
    flow = FlowRunContext.get()
    # Set explicitly: where this flow runs with a temporary server, every worker would otherwise start another one.
    server = {PREFECT_API_URL: str(flow.client.api_url)} if flow else {}
    options = {"timeout": f"{CONNECT_SECONDS}s"}
    with temporary_settings(server), DaskTaskRunner(address=address, client_kwargs=options) as runner:
        try:
            runner.client  # noqa: B018 (it connects now)
        except OSError as error:
            raise InputError(f"resources.dask = {address}: no Dask scheduler answers there ({error})") from error
        if not runner.client.nthreads():
            log.info(f"{address} has no workers yet: units wait for one")
        yield _Tasks(runner)


def without_parameters() -> AbstractContextManager[Any]:
    """The context of the running task without its parameters, which Prefect would send along with each unit: those of
    a stage hold an MLflow client, locks and pending calls, which cannot be pickled and which no unit reads."""
    context = TaskRunContext.get()
    return context.model_copy(update={"parameters": {}}) if context else nullcontext()


class _Tasks(Executor):
    """Functions submitted to a task runner of Prefect."""

    def __init__(self, runner: Any) -> None:
        self.runner, self.numbers = runner, count(1)

    @property
    def worker_count(self) -> int:
        """How many units the cluster's workers do at a time now."""
        return max(1, sum(self.runner.client.nthreads().values()))

    def submit(self, function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Future:
        work = partial(function, *arguments, **named)
        title = f"{getattr(function, 'func', function).__name__} {next(self.numbers)}"
        with without_parameters():
            run = self.runner.submit(unit, {"title": title, "work": work})
        result = Future[Any]()
        result.set_running_or_notify_cancel()

        def done(future: Any) -> None:
            if future.status == "cancelled":  # this process is ending, and nobody would answer
                result.set_exception(CancelledError())
                return
            try:
                result.set_result(run.result())
            except BaseException as error:
                result.set_exception(error)

        run.wrapped_future.add_done_callback(done)
        return result
