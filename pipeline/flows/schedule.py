"""Runs the steps of a plan as Prefect tasks: each as soon as its inputs exist, as many at once as resources allow."""

import os
import signal
from concurrent.futures import FIRST_COMPLETED, Future, wait
from typing import Any, cast

from prefect import Task
from prefect.futures import PrefectConcurrentFuture
from prefect.states import State
from prefect.utilities.annotations import quote

from alpro.pipeline.execution.launch import GRACE_SECONDS
from alpro.pipeline.flows.session import Session
from alpro.pipeline.flows.tasks import announce, make, make_by_deployment, make_data
from alpro.pipeline.plan.step import Step
from alpro.pipeline.plan.steps import required
from alpro.pipeline.store.artifacts import Store
from alpro.pipeline.tracking.stage_runs import step_title
from alpro.progress import PLAIN
from alpro.stages import EVALUATIONS, STAGES, WITH_MODEL
from alpro.stages.evaluation.protocol import EvaluationConfig, check_items
from alpro.stages.execution.interface import Interrupted, cores
from alpro.stages.execution.stop import STOP, Stop


def run_steps(session: Session, steps: list[Step]) -> None:
    """Runs the steps: in this process, or, if the session has parameters for them, by the deployments of `step`.

    A step that fails stops the steps that depend on it, and no others; its error is raised at the end. If this thread
    is interrupted, all stages are stopped: they have time to write a checkpoint, then they are killed.
    """
    schedule, stop = Schedule(session, steps), Stop()
    token = STOP.set(stop)
    try:
        schedule.run()
    except BaseException:
        stop.request()
        try:
            wait(schedule.running, GRACE_SECONDS)
        finally:
            stop.request(signal.SIGKILL)
        raise
    finally:
        STOP.reset(token)
        order = [step.name for step in steps]
        session.results.sort(key=lambda result: order.index(result.step.name))


class Schedule:
    """Which steps wait, run, and have failed."""

    def __init__(self, session: Session, steps: list[Step]):
        self.session, self.steps = session, steps
        self.waiting = required(steps, session.store)
        self.total = len(self.waiting)
        self.running: dict[Future, Step] = {}
        self.futures: dict[str, PrefectConcurrentFuture] = {}  # of all steps that were started, for Prefect's arrows
        self.failures: dict[str, Exception] = {}
        self.checked: set[str] = set()  # test splits

    def run(self) -> None:
        """Runs all steps. Raises the first error."""
        while self.waiting or self.running:
            self.start_ready()
            done, _ = wait(self.running, return_when=FIRST_COMPLETED)
            for future in done:
                self.finish(self.running.pop(future), future)
        if self.failures:
            raise next(iter(self.failures.values()))

    def start_ready(self) -> None:
        """Starts the steps whose inputs exist, in order, within the limit; drops those whose inputs failed."""
        ready: list[Step] = []
        # `waiting` is in the order of the plan, where inputs come first: a failure reaches all that depends on it in
        # this one pass.
        for step in list(self.waiting):
            inputs = [other.name for other in step.inputs.values()]
            failed = [name for name in inputs if name in self.failures]
            unfinished = {other.name for other in (*self.waiting, *self.running.values())}
            if failed:
                announce(f"{step.name}: skipped, because {failed[0]} failed")
                self.failures[step.name] = self.failures[failed[0]]
                self.waiting.remove(step)
            elif not unfinished.intersection(inputs):
                ready.append(step)
        if self.session.passed is None:  # otherwise the work pools of the deployments limit it
            ready = ready[: max(0, self.session.resources.max_stages - len(self.running))]
        at_once = [step for step in (*self.running.values(), *ready) if not self.session.store.find(step)]
        # Progress bars of several stages would overwrite each other: they print lines. Their processes read this, too.
        os.environ[PLAIN] = str(int(len(at_once) > 1))
        models = [step for step in at_once if step.stage in WITH_MODEL]
        for step in ready:
            # Two models with all threads each would wait for each other's threads.
            if len(models) > 1:
                self.session.threads[step.name] = max(1, cores() // len(models))
            self.waiting.remove(step)
            self.start(step)

    def start(self, step: Step) -> None:
        store = self.session.store
        self.session.progress[step.name] = f"stage {len(self.futures) + 1} of {self.total}, "
        if STAGES[step.stage].kind != "data":
            check_test_split(store, [other for other in self.steps if other.name not in self.failures], self.checked)
        exists = store.find(step)
        inputs = [self.futures[other.name] for other in step.inputs.values() if other.name in self.futures]
        task: Task[..., Any] = make if step.stage in WITH_MODEL else make_data
        if self.session.passed is not None and not exists:
            task = make_by_deployment
        future = cast(
            PrefectConcurrentFuture,
            task.submit(step_title(step), quote(self.session), quote(step), wait_for=inputs),
        )
        self.futures[step.name] = future
        self.running[future.wrapped_future] = step

    def finish(self, step: Step, future: Future) -> None:
        """Notes a failure. Raises what stops the whole pipeline."""
        state: State = future.result()
        if state.is_completed():
            return
        error = cast(BaseException, state.result(raise_on_failure=False))
        self.session.failures[step.name] = error
        if not isinstance(error, Exception) or isinstance(error, Interrupted):
            raise error
        self.failures[step.name] = error
        if step is not self.steps[-1]:
            announce(f"{step.name}: failed: {error}")


def check_test_split(store: Store, steps: list[Step], checked: set[str]) -> None:
    """Rejects the corpora that an evaluation would reject, before days of training. Adds those that exist to
    `checked`, which are not checked again."""
    for step in steps:
        if step.stage not in EVALUATIONS or store.find(step):
            continue
        config = cast(EvaluationConfig, step.config)
        for name in config.corpora:
            if f"{step.name} {name}" not in checked and store.find(step.inputs[name]):
                check_items(config, name, store.folder(step.inputs[name]))
                checked.add(f"{step.name} {name}")
