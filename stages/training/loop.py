"""The one training loop: prompter, pre-training and fine-tunings differ in their objective and their validation."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from models.text import Layers
from models.timesformer import TimeSformer
from shards.schema import InputError
from stages.artifacts import CONTINUE, Resources
from stages.progress import progress
from stages.training.checkpoint import Checkpoints, random_state, trainable
from stages.training.config import TrainingConfig
from stages.training.distributed import World, gather_bytes, highest
from stages.training.examples import Batch, Steps
from stages.training.metrics import Mean, MetricsFile
from stages.training.objective import Objective
from stages.training.optim import build_optimizer, learning_rate

ASK_SECONDS = 2.0  # how often ranks ask each other whether to stop
BAD_STEPS = 5  # losses in a row that are not finite before the run gives up

Validate = Callable[[], dict[str, float]]


@dataclass
class Progress:
    """What a checkpoint remembers beside the weights: steps done, and the best validation so far."""

    step: int = 0
    best: float = float("-inf")
    best_step: int = 0
    best_metrics: dict[str, float] = field(default_factory=dict)
    unlogged: dict[str, tuple[float, int]] = field(default_factory=dict)  # metrics since the last logged step
    bad_steps: int = 0
    seconds: float = 0.0


def fit(
    objective: Objective,
    data: Steps,
    config: TrainingConfig,
    out: Path,
    world: World,
    resources: Resources,
    validate: Validate | None = None,
    select: str = "",
) -> dict[str, float]:
    """Trains the objective's model over all steps of `data`, from the newest checkpoint in `out` where there is one.

    `validate()` gives metrics every `validate_every` steps and at the end; where `select` names one of them, the
    weights with its highest value are the result, else the last ones. Returns the final metrics. A SIGTERM or
    Ctrl-C writes a checkpoint and ends the process with status CONTINUE.
    """
    for part in objective.model.modules():
        if isinstance(part, TimeSformer | Layers):
            part.checkpoint_activations = resources.checkpoint_activations
    if world.rank:  # or dropout would be the same on every rank
        torch.manual_seed(config.seed + world.rank)
    optimizer = build_optimizer(objective, config, world.device)
    checkpoints, file = Checkpoints(out / "checkpoints"), MetricsFile(out, world.main)
    done = Progress(**(checkpoints.restore(objective, optimizer, world.rank) or {}))
    file.cut(done.step)
    module: nn.Module = objective
    if world.size > 1:
        module = DistributedDataParallel(objective, find_unused_parameters=True, broadcast_buffers=False)
    runner = _Run(objective, module, optimizer, data, config, world, checkpoints, file, done, out / "best.safetensors")
    if done.step:
        print(f"continuing from step {done.step} of {len(data)}", file=sys.stderr, flush=True)
    with asked_to_stop() as stopping, progress(out.parent.name.replace("_", " "), len(data), "steps") as advance:
        advance(done.step)
        final = runner.train(resources, stopping, advance if world.main else lambda *_: None, validate, select)
    if select and (out / "best.safetensors").exists():
        objective.load_state_dict(load_file(out / "best.safetensors"), strict=False)
    return final


@dataclass
class _Run:
    objective: Objective
    module: nn.Module
    optimizer: torch.optim.Optimizer
    data: Steps
    config: TrainingConfig
    world: World
    checkpoints: Checkpoints
    file: MetricsFile
    done: Progress
    best_weights: Path

    def train(self, resources: Resources, stopping: list[int], advance, validate, select: str) -> dict[str, float]:
        mean, final = Mean(), dict[str, float]()
        mean.restore(self.done.unlogged, self.world.device)
        clock, asking = Clock(self.done.seconds), self.done.step
        self.objective.train()
        for batch in self.data.loader(self.done.step, resources, self.world.device):
            clock.batch_came()
            clock.steps += 1
            mean.add(self.step(batch.to(self.world.device)))
            self.done.step += 1
            self.done.seconds = clock.seconds
            step, last = self.done.step, self.done.step == len(self.data)
            logged = step % self.config.log_every == 0 or last
            advance(1, f"loss {self.log(mean, clock)['train/loss']:.3f}" if logged else "")
            if validate and (last or (self.config.validate_every and step % self.config.validate_every == 0)):
                final = self.validate(validate, select)
            # Ranks agree on when to stop and to save; asking costs a message, so many ask only now and then.
            if not last and (step >= asking or self.world.size == 1):
                due = clock.since_saved > resources.seconds_between_checkpoints
                stop, save, pace = highest([bool(stopping), due, clock.pace], self.world.device)
                asking = step + max(1, min(self.config.log_every, int(ASK_SECONDS / pace)))
                if stop or save:
                    self.done.unlogged = mean.state()
                    self.save()
                    clock.saved()
                if stop:
                    self.leave()
            clock.step_ended()
        if validate and not final:  # the last step was done before an interruption
            final = self.validate(validate, select)
        return final

    def leave(self) -> None:
        if self.world.main:
            print(f"checkpoint written after step {self.done.step}", file=sys.stderr, flush=True)
        raise SystemExit(CONTINUE)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One optimiser step on this rank's part of the global batch; returns metrics, still on the device."""
        rate = learning_rate(self.done.step, len(self.data), self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        collected = Mean()
        parts = batch.split(self.config.accumulate)
        for number, part in enumerate(parts, 1):
            with self.gathering(last=number == len(parts)):
                with self.autocast():
                    loss, metrics = self.module(part)
                (loss / len(parts)).backward()
            collected.add(metrics | {"loss": loss.detach()})
        norm = nn.utils.clip_grad_norm_(self.objective.parameters(), self.config.clip_norm)
        if self.is_finite(norm, batch):
            self.optimizer.step()
            self.objective.model.hold_temperature()
        metrics = {name: value / len(parts) for name, value in collected.sums.items()}
        return metrics | {"grad_norm": norm.detach(), "lr": torch.tensor(rate)}

    def gathering(self, last: bool) -> AbstractContextManager:
        """Gradients are averaged over the ranks with the last part of a step alone."""
        return self.module.no_sync() if isinstance(self.module, DistributedDataParallel) and not last else nullcontext()

    def autocast(self) -> AbstractContextManager:
        on = self.config.mixed_precision and self.world.device.type == "cuda"
        return torch.autocast("cuda", torch.bfloat16) if on else nullcontext()

    def is_finite(self, norm: Tensor, batch: Batch) -> bool:
        """Whether the step may be taken. Skips and counts one that may not; raises InputError after five in a row."""
        if bool(torch.isfinite(norm)):
            self.done.bad_steps = 0
            return True
        self.done.bad_steps += 1
        if self.done.bad_steps >= BAD_STEPS:
            raise InputError(
                f"the gradient was not finite in {BAD_STEPS} steps in a row, the last being step {self.done.step} "
                f"(samples {', '.join(batch.ids[:4])}, ...); lower lr or clip_norm"
            )
        return False

    def log(self, mean: Mean, clock: "Clock") -> dict[str, float]:
        """Writes the means since the last line, and how fast it goes."""
        values = {f"train/{name}": value for name, value in mean.read().items()}
        values["train/data_wait"] = clock.waited_share
        values["train/samples_per_second"] = self.config.batch_size * self.done.step / max(self.done.seconds, 1e-9)
        if self.world.device.type == "cuda":
            values["train/gpu_memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        self.file.write(self.done.step, values)
        return values

    def validate(self, validate: Validate, select: str) -> dict[str, float]:
        """Validates, in full precision as evaluation does, and keeps the weights where they are the best so far."""
        self.objective.eval()
        with torch.no_grad():
            values = validate()
        self.objective.train()
        self.file.write(self.done.step, values)
        if select and values[select] > self.done.best:
            self.done.best, self.done.best_step, self.done.best_metrics = values[select], self.done.step, values
            if self.world.main:
                temporary = self.best_weights.with_suffix(".part")
                save_file(trainable(self.objective), temporary)
                os.replace(temporary, self.best_weights)
        return self.done.best_metrics | {"selected_step": float(self.done.best_step)} if select else values

    def save(self) -> None:
        """Writes a checkpoint; every rank gives its random state to the one that writes."""
        random = gather_bytes(random_state(), self.world.device)
        if self.world.main:
            self.checkpoints.save(self.done.step, self.objective, self.optimizer, asdict(self.done), random)


class Clock:
    """How long training has taken, over all its starts, and which share of this start it has waited for data."""

    def __init__(self, earlier: float):
        self.earlier = earlier
        self.began = self.last_step = self.last_save = time.monotonic()
        self.waited = 0.0
        self.steps = 0

    def batch_came(self) -> None:
        self.waited += time.monotonic() - self.last_step

    def step_ended(self) -> None:
        self.last_step = time.monotonic()

    def saved(self) -> None:
        self.last_save = time.monotonic()

    @property
    def seconds(self) -> float:
        return self.earlier + time.monotonic() - self.began

    @property
    def pace(self) -> float:
        """Seconds a step, of this start."""
        return max(1e-3, (time.monotonic() - self.began) / max(1, self.steps))

    @property
    def since_saved(self) -> float:
        return time.monotonic() - self.last_save

    @property
    def waited_share(self) -> float:
        return self.waited / max(time.monotonic() - self.began, 1e-9)


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
