"""The one training loop: prompter, pre-training and fine-tunings differ in their objective and their validation."""

import resource
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile, record_function, schedule

from alpro.errors import InputError
from alpro.files import atomic_write, checksum
from alpro.models.flops import peak
from alpro.models.text import Layer, Layers
from alpro.models.timesformer import Block, TimeSformer
from alpro.stages.artifacts.store import EXIT_INTERRUPTED, Resources
from alpro.stages.execution.progress import progress
from alpro.stages.training.checkpoint import Checkpoints, random_state, trainable, write_tensors
from alpro.stages.training.config import TrainingConfig
from alpro.stages.training.distributed import World, gather_bytes, highest, total
from alpro.stages.training.examples import Batch, TrainingDataset
from alpro.stages.training.metrics import Mean, MetricsFile, Skipped
from alpro.stages.training.objective import Objective
from alpro.stages.training.optim import build_optimizer, learning_rate, step_if

ASK_SECONDS = 2.0  # how often ranks ask each other whether to stop
TOLD = 20  # unreadable examples that a rank tells one by one
FEW = 10  # unreadable examples that are no reason to stop, whatever their share
SAVING = 20  # least time between checkpoints, in times that the last one took
BAD_STEPS = 5  # steps in a row that are not finite before the run gives up

Validate = Callable[[], dict[str, float]]


@dataclass
class Progress:
    """What a checkpoint remembers beside the weights: steps done, and the best validation so far."""

    step: int = 0
    best: float = float("-inf")
    best_step: int = 0
    best_sum: str = ""  # checksum of its weights
    best_metrics: dict[str, float] = field(default_factory=dict)
    unlogged: dict[str, float] = field(default_factory=dict)  # metrics since the last logged step
    skipped: int = 0  # steps that were not finite: in all, and in a row
    skipped_in_row: int = 0
    unreadable: int = 0  # examples that were damaged in their shards


def fit(
    objective: Objective,
    data: TrainingDataset,
    config: TrainingConfig,
    out: Path,
    world: World,
    resources: Resources,
    validate: Validate | None = None,
    select: str = "",
    watch: Callable[[int], None] | None = None,
) -> dict[str, float]:
    """Trains the objective's model over all steps of `data`, from the newest checkpoint in `out` where there is one.

    `validate()` gives metrics `validation.times` times, the last time at the end; where `select` names one of them, the
    weights with its highest value are the result, else the last ones. `watch(step)` is called by the first rank after
    every step. Returns the final metrics. A SIGTERM or Ctrl-C writes a checkpoint and ends the process with status
    EXIT_INTERRUPTED.
    """
    for name in objective.unused_parameters:  # or DDP would have every rank look each step whether a gradient has come
        getattr(objective.model, name).requires_grad_(False)
    prepare(objective, resources)
    if world.rank:  # or dropout would be the same on every rank
        torch.manual_seed(config.seed + world.rank)
    optimizer = build_optimizer(objective, config)
    checkpoints, file = Checkpoints(out / "checkpoints"), MetricsFile(out, world.main)
    done = Progress(**(checkpoints.restore(objective, optimizer, world.rank) or {}))
    most, least = highest([done.step, -done.step], world.device)
    if most != -least:
        raise InputError(
            f"{out}: ranks found checkpoints of steps {int(-least)} and {int(most)}; start again when all see both"
        )
    if not world.main:
        done.unlogged = {}  # those of all ranks; the first has them
    file.cut(done.step)
    module: nn.Module = objective
    if world.size > 1:
        module = DistributedDataParallel(objective, broadcast_buffers=False)
    runner = _Run(objective, module, optimizer, data, config, world, checkpoints, file, done, out)
    if world.main and config.augmentation != "none" and not done.step:
        data.draw_augmentation(out / "pictures" / "augmentation.png")
    if done.step and world.main:
        print(f"continuing from step {done.step} of {len(data)}", file=sys.stderr, flush=True)
    trace = traced(out / "trace.json.gz") if resources.profile and world.main else nullcontext(lambda: None)
    name = out.parent.name.replace("_", " ")
    with asked_to_stop() as stopping, progress(name, len(data), "steps") as advance, trace as traced_step:
        advance(done.step)

        def after(step: int, note: str) -> None:
            traced_step()
            if world.main:
                advance(1, note)
                if watch:
                    watch(step)

        try:
            final = runner.train(resources, stopping, after, validate, select)
        except RuntimeError as error:
            if "DataLoader worker (pid" not in str(error):
                raise
            # It may have come in the middle of a step: only a checkpoint is sure to be whole.
            print(f"{str(error).splitlines()[0]} Continue from the last checkpoint.", file=sys.stderr, flush=True)
            raise SystemExit(EXIT_INTERRUPTED) from error
    if select and done.best_step and world.main:  # the one that writes the model
        best = best_weights(out, done.best_step)
        if not best.exists() or checksum(best) != done.best_sum:
            raise InputError(f"{best}: damaged; delete {out} and run again")
        objective.load_state_dict(load_file(best), strict=False)
    return final


def best_weights(out: Path, step: int) -> Path:
    """Where the weights of a step lie that were the best on validation when it was done."""
    return out / "checkpoints" / f"best-{step:08d}.safetensors"


def prepare(objective: Objective, resources: Resources) -> None:
    """Sets up the encoders' layers as the resources ask.

    They are compiled one by one: all of a kind share their code, so that there is little to compile, and gathering over
    ranks, draws and losses stay outside.
    """
    if resources.compile:  # a layer is compiled whole, not cut where DDP sends gradients
        torch._dynamo.config.optimize_ddp = False
    for part in objective.modules():
        if isinstance(part, TimeSformer | Layers):
            part.checkpoint_activations = resources.checkpoint_activations
        if resources.compile and isinstance(part, Block | Layer):
            part.compile(dynamic=False)


@contextmanager
def traced(path: Path) -> Iterator[Callable[[], None]]:
    """Records three steps after the first five, for Perfetto; yields what is to be called after every step."""
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    when = schedule(wait=3, warmup=2, active=3, repeat=1)

    def write(found: profile) -> None:
        found.export_chrome_trace(str(path))
        print(
            f"trace of the last three of its first eight steps: {path} (open it on ui.perfetto.dev)",
            file=sys.stderr,
            flush=True,
        )

    with profile(activities=activities, schedule=when, on_trace_ready=write) as recorded:
        yield recorded.step


@dataclass
class _Run:
    objective: Objective
    module: nn.Module
    optimizer: torch.optim.AdamW
    data: TrainingDataset
    config: TrainingConfig
    world: World
    checkpoints: Checkpoints
    file: MetricsFile
    done: Progress
    out: Path

    def __post_init__(self) -> None:
        self.mean = Mean()
        self.mean.restore(self.done.unlogged, self.world.device)
        self.skipped = Skipped(self.done.skipped_in_row)
        self.unreadable: list[str] = []  # of this rank, since they were counted last

    def train(
        self,
        resources: Resources,
        stopping: list[int],
        after: Callable[[int, str], None],
        validate: Validate | None,
        select: str,
    ) -> dict[str, float]:
        final = dict[str, float]()
        clock, asking = Clock(), self.done.step
        self.objective.train()
        for batch in self.data.loader(self.done.step, resources, self.world.device):
            clock.batch_came()
            self.tell_unreadable(batch)
            self.step(batch.to(self.world.device))
            self.done.step += 1
            clock.step_done(self.objective.flops(batch))
            step, last = self.done.step, self.done.step == len(self.data)
            logged = step % self.config.log_every == 0 or last
            if logged or self.world.device.type == "cpu":  # looking at a GPU would wait for it
                self.done.skipped += self.skipped.read(BAD_STEPS)
            after(step, self.log(clock) if logged else "")
            if validate and self.is_validated(step):
                final = self.validate(validate, select)
                clock.start_window()
            # Ranks agree on when to stop and to save; asking costs a message, so many ask only now and then.
            if not last and (step >= asking or self.world.size == 1):
                due = clock.since_saved > max(resources.checkpoint_interval, SAVING * clock.saving)
                stop, save, pace = highest([bool(stopping), due, clock.pace], self.world.device)
                asking = step + max(1, min(self.config.log_every, int(ASK_SECONDS / pace)))
                if stop or save:
                    started = time.monotonic()
                    self.save()
                    clock.saved(time.monotonic() - started)
                if stop:
                    self.leave()
            clock.step_ended()
        return final

    def is_validated(self, step: int) -> bool:
        """Whether a validation follows a step: `validation.times` in a run, at equal distances, the last at its end."""
        times, steps = self.config.validation.times, len(self.data)
        return step * times // steps > (step - 1) * times // steps

    def tell_unreadable(self, batch: Batch) -> None:
        """Tells of examples that were damaged in their shards, while they are few."""
        for line in batch.unreadable[: max(0, TOLD - self.done.unreadable - len(self.unreadable))]:
            print(f"step {self.done.step}: {line}; another is shown instead", file=sys.stderr, flush=True)
        self.unreadable += batch.unreadable

    def count_unreadable(self) -> None:
        """Counts them over all ranks. Raises InputError, on all, where they are too many."""
        fresh, self.unreadable = self.unreadable, []
        self.done.unreadable += int(total(torch.tensor(len(fresh), device=self.world.device)))
        shown = self.done.step * self.config.batch_size
        if self.done.unreadable >= FEW and self.done.unreadable > self.config.max_unreadable_share * shown:
            raise InputError(
                f"{self.done.unreadable} of {shown} examples cannot be read, more than max_unreadable_share = "
                f"{self.config.max_unreadable_share:g} allows{f'; the last: {fresh[-1]}' if fresh else ''}; "
                "delete the corpus's folder and run again to make it anew"
            )

    def leave(self) -> None:
        if self.world.main:
            print(f"stopped after step {self.done.step}", file=sys.stderr, flush=True)
        raise SystemExit(EXIT_INTERRUPTED)

    def step(self, batch: Batch) -> None:
        """One optimiser step on this rank's part of the global batch. Nothing in it waits for the device."""
        rate = learning_rate(self.done.step, len(self.data), self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        parts, rows = batch.split(self.config.accumulation_steps), []
        for number, part in enumerate(parts, 1):
            with self.gathering(last=number == len(parts)):
                with self.autocast(), record_function("forward"):
                    loss, metrics = self.module(part)
                with record_function("backward"):
                    (loss / len(parts)).backward()
            metrics["loss"] = loss.detach()
            rows.append(torch.stack([value.float() for value in metrics.values()]))
        with record_function("clip"):
            norm = nn.utils.clip_grad_norm_(self.objective.parameters(), self.config.max_grad_norm)
        values = torch.cat([torch.stack(rows).mean(0), norm.detach()[None]])
        # The gradient is that of all ranks, so is its norm; the losses are this rank's.
        finite = total((~torch.isfinite(values)).any().float()) == 0
        with record_function("optimizer"):
            step_if(self.optimizer, finite)
        self.objective.model.clamp_temperature_()
        names = (*metrics, "grad_norm")
        self.mean.add(names, values, finite)
        self.skipped.add(self.done.step, batch.ids, names, values, finite)

    def gathering(self, last: bool) -> AbstractContextManager:
        """Gradients are averaged over the ranks with the last part of a step alone."""
        return self.module.no_sync() if isinstance(self.module, DistributedDataParallel) and not last else nullcontext()

    def autocast(self) -> AbstractContextManager:
        on = self.config.mixed_precision and self.world.device.type == "cuda"
        return torch.autocast("cuda", torch.bfloat16) if on else nullcontext()

    def log(self, clock: "Clock") -> str:
        """Writes the means over all ranks since the last line, and how fast it goes; returns what the bar shows."""
        self.count_unreadable()
        values = {f"train/{name}": value for name, value in self.mean.read().items()}
        seconds = clock.window
        values["train/lr"] = learning_rate(self.done.step - 1, len(self.data), self.config)
        values["train/skipped_steps"] = self.done.skipped
        values["train/unreadable"] = self.done.unreadable
        values["train/data_wait"] = waited = clock.waited / seconds
        values["train/samples_per_second"] = self.config.batch_size * clock.steps / seconds
        values["train/tflops"] = clock.flops / seconds / 1e12
        if self.world.device.type == "cuda":
            if most := peak(torch.cuda.get_device_name(self.world.device)):
                values["train/utilisation"] = clock.flops / seconds / most
            values["train/memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        else:
            values["train/memory_gib"] = memory_gib()
        clock.start_window()
        self.file.write(self.done.step, values)
        said = f"loss {values['train/loss']:.3f}, " if "train/loss" in values else "no finite step, "
        return f"{said}{values['train/samples_per_second']:.3g} samples/s, waiting for data {waited:.0%}"

    def validate(self, validate: Validate, select: str) -> dict[str, float]:
        """Validates, in full precision as evaluation does, and keeps the weights where they are the best so far."""
        self.objective.eval()
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            values = validate()
        self.objective.train()
        self.file.write(self.done.step, values)
        if select and values[select] > self.done.best:
            self.done.best, self.done.best_step, self.done.best_metrics = values[select], self.done.step, values
            if self.world.main:
                best = best_weights(self.out, self.done.step)
                best.parent.mkdir(exist_ok=True)
                with atomic_write(best) as temporary:
                    write_tensors(trainable(self.objective), temporary)
                self.done.best_sum = checksum(best)
        return self.done.best_metrics | {"selected_step": float(self.done.best_step)} if select else values

    def save(self) -> None:
        """Writes a checkpoint; every rank gives its random state to the one that writes.

        Where it cannot be written, as on a full disk, this is said, and training goes on: the earlier ones stand.
        """
        self.done.skipped += self.skipped.read(BAD_STEPS)
        self.count_unreadable()
        self.done.skipped_in_row, self.done.unlogged = self.skipped.in_row, self.mean.state()
        random = gather_bytes(random_state(), self.world.device)
        if self.world.main:
            try:
                self.checkpoints.save(self.done.step, self.objective, self.optimizer, asdict(self.done), random)
            except OSError as error:
                last = next((int(path.name.split("-")[1]) for path in self.checkpoints.all()), 0)
                print(
                    f"no checkpoint written after step {self.done.step}: {error.strerror or error}; "
                    f"a restart would go on from step {last}",
                    file=sys.stderr,
                    flush=True,
                )


class Clock:
    """How fast training goes since the last logged step, in a window that validation is kept out of."""

    def __init__(self) -> None:
        self.last_step = self.last_save = time.monotonic()
        self.saving = 0.0  # seconds that the last checkpoint took
        self.pace = 1e-3  # seconds a step
        self.start_window()

    def start_window(self) -> None:
        self.began, self.steps, self.waited, self.flops = time.monotonic(), 0, 0.0, 0.0

    def batch_came(self) -> None:
        self.waited += time.monotonic() - self.last_step

    def step_done(self, flops: float) -> None:
        self.steps += 1
        self.flops += flops
        self.pace = max(1e-3, (time.monotonic() - self.began) / self.steps)

    def step_ended(self) -> None:
        self.last_step = time.monotonic()

    @property
    def window(self) -> float:
        """Seconds since the window began."""
        return max(time.monotonic() - self.began, 1e-9)

    def saved(self, seconds: float) -> None:
        self.last_save, self.saving = time.monotonic(), seconds

    @property
    def since_saved(self) -> float:
        return time.monotonic() - self.last_save


def memory_gib() -> float:
    """The most memory that this process has held."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / (2**30 if sys.platform == "darwin" else 2**20)


@contextmanager
def asked_to_stop() -> Iterator[list[int]]:
    """A list that is empty until SIGTERM or Ctrl-C comes, and then holds the signal: the step under way is finished."""
    received: list[int] = []
    before = {
        s: signal.signal(s, lambda number, frame: received.append(number)) for s in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
