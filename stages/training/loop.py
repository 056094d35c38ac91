"""The training loop of all stages, which differ in objective, data and validation."""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from alpro.errors import InputError
from alpro.log import log, progress
from alpro.models.precision import autocast
from alpro.models.ranks import all_reduce_max, all_reduce_sum
from alpro.shards.reader import REPAIR
from alpro.stages.execution.interface import EXIT_STOPPED, Metrics, Resources
from alpro.stages.execution.lifecycle import STOP_FILE
from alpro.stages.training.batch import Batch
from alpro.stages.training.checkpoint import (
    Checkpoints,
    Weights,
    copy_trainable,
    random_state,
)
from alpro.stages.training.config import TrainingConfig
from alpro.stages.training.dataset import TrainingDataset
from alpro.stages.training.distributed import World, distributed, gather
from alpro.stages.training.layers import (
    are_layers_compiled,
    configure_layers,
    training_precision,
)
from alpro.stages.training.metrics import Mean, MetricsFile
from alpro.stages.training.objective import Objective
from alpro.stages.training.optim import build_optimizer, learning_rate, step_if

SYNC_SECONDS = 2.0  # interval at which ranks agree on stopping and saving
MIN_UNREADABLE = 10  # fewer unreadable examples never stop a training
MAX_SKIPPED_IN_ROW = 5  # consecutive non-finite steps after which training fails

Validate = Callable[[], Metrics]


@dataclass
class TrainerState:
    """The state in a checkpoint beside the weights: completed steps, the best validation and
    counters."""

    step: int = 0
    best: float = float("-inf")
    best_step: int = 0
    best_metrics: Metrics = field(default_factory=dict)
    # Metric sums since the last logged step.
    unlogged: Metrics = field(default_factory=dict)
    skipped: int = 0  # non-finite steps
    skipped_in_row: int = 0  # consecutive non-finite steps
    unreadable: int = 0  # examples that could not be read from their shards


class Clock:
    """Time of the steps since the last logged one, without validation, and of the last checkpoint."""

    def __init__(self) -> None:
        self.last_step = self.last_save = time.monotonic()
        self.start_window()

    def start_window(self) -> None:
        self.started = time.monotonic()
        self.steps = 0
        self.waited = 0.0  # seconds of waiting for batches

    def batch_loaded(self) -> None:
        self.steps += 1
        self.waited += time.monotonic() - self.last_step

    def seconds(self) -> float:
        """Return the seconds since the start of the window."""
        return max(time.monotonic() - self.started, 1e-9)


@dataclass
class Trainer:
    """Training of an objective's model on all steps of a data set. It continues from the newest
    checkpoint in `out`.

    Raises:
        InputError: If ranks find different checkpoints.
    """

    objective: Objective
    data: TrainingDataset
    config: TrainingConfig
    out: Path
    world: World
    resources: Resources

    def __post_init__(self) -> None:
        objective = self.objective
        config = self.config
        world = self.world
        self.dtype = training_precision(objective, config, world)

        # The running mean of a BatchNorm would be lost where a training resumes.
        model = objective.model
        names = dict(model.named_parameters(remove_duplicate=False)).keys()
        assert model.state_dict().keys() == names, (
            "checkpoints, ranks and the best weights have parameters alone, and no saved buffers"
        )
        # DDP waits for the gradient of every parameter that requires one.
        for name in objective.unused_parameters:
            getattr(model, name).requires_grad_(False)
        self.compiled = are_layers_compiled(objective, self.resources, world)
        checkpoint_activations = self.resources.checkpoint_activations
        configure_layers(objective, self.compiled, checkpoint_activations)

        if world.rank:  # ranks need different random numbers for dropout
            torch.manual_seed(config.seed + world.rank)
        self.optimizer = build_optimizer(objective, config)
        self.checkpoints = Checkpoints(self.out / "checkpoints")
        # The best weights on validation, which rank 0 keeps on the CPU.
        self.best: Weights = {}
        self.state = self.restore()
        self.file = MetricsFile(self.out)
        if world.main:
            self.file.drop_after(self.state.step)

        # Wrapped after `restore`, because DDP broadcasts the weights of rank 0.
        self.module: nn.Module = distributed(objective) if world.size > 1 else objective
        self.mean = Mean(self.state.unlogged, world.device)
        # Step, names of metrics, and the number of ranks on which each is not finite, of the steps
        # since the last count. The numbers stay on the device until then.
        self.unchecked: list[tuple[int, tuple[str, ...], Tensor]] = []
        # Errors of this rank since the last count.
        self.unreadable: list[str] = []

    def restore(self) -> TrainerState:
        stored, best = self.checkpoints.restore(
            self.objective, self.optimizer, self.world.rank
        )
        state = TrainerState(**stored)

        newest, oldest = all_reduce_max([state.step, -state.step], self.world.device)
        if newest != -oldest:
            raise InputError(
                f"{self.out}: ranks found checkpoints of steps {int(-oldest)} and {int(newest)}; "
                "restart when all ranks see the same files"
            )
        if self.world.main:
            # Copies: the file is mapped into memory, and is deleted with its checkpoint.
            self.best = {name: weight.clone() for name, weight in best.items()}
        return state

    def train(self, validate: Validate | None = None, select: str = "") -> Metrics:
        """Train to the last step and return the final metrics.

        The file STOP_FILE in `out`, SIGTERM and Ctrl-C write a checkpoint and exit with
        EXIT_STOPPED.

        Args:
            validate: returns metrics; called `validation.times` times, the last time at the end.
            select: the metric whose highest value decides which weights are the result. Empty: the
                last weights are.

        Raises:
            InputError: If too many examples are unreadable, or MAX_SKIPPED_IN_ROW steps in succession
                are not finite.
        """
        steps = len(self.data)
        world = self.world
        first_step = self.state.step
        if world.main and first_step:
            log.info(f"continuing from step {first_step} of {steps}")

        final: Metrics = {}
        clock = Clock()
        next_sync = first_step
        bar = progress(
            self.out.parent.name.replace("_", " "), steps, "steps", first_step
        )
        self.objective.train()
        with catch_stop_signals() as received, bar as advance:
            batches = self.data.loader(first_step, self.resources, world.device)
            for step, batch in enumerate(batches, first_step + 1):
                clock.batch_loaded()
                self.unreadable += batch.unreadable
                self.update(batch.to(world.device))
                self.state.step = step

                pace = clock.seconds() / clock.steps
                last = step == steps
                logged = step % self.config.log_every == 0 or last
                # On a GPU this is a synchronization.
                if logged or world.device.type == "cpu":
                    self.count_skipped()
                message = self.log(clock) if logged else ""
                if world.main:
                    advance(1, message)

                # A stop waits for its end: a checkpoint before each validation would cost minutes in a
                # training that validates 50 times, and ranks agree only between steps.
                if validate and self.is_validated(step):
                    final = self.validate(validate, select)
                    clock.start_window()
                # Skipped after most steps: a collective makes the ranks wait for each other.
                if not last and (step >= next_sync or world.size == 1):
                    pace = self.save_or_stop(clock, bool(received), pace)
                    next_sync = step + max(
                        1, min(self.config.log_every, int(SYNC_SECONDS / pace))
                    )
                clock.last_step = time.monotonic()

        # Otherwise DDP would be deleted after the process group, and join its thread while holding the
        # GIL, for which that thread may wait: the process would never end.
        self.module = self.objective
        if select and world.main:  # rank 0 saves the model
            self.objective.load_state_dict(self.best, strict=False)
        return final

    def save_or_stop(self, clock: Clock, signalled: bool, pace: float) -> float:
        """Save a checkpoint if it is time to, and exit with one if a rank is to stop.

        Args:
            signalled: whether this rank received a signal that stops it.
            pace: seconds a step.

        Returns:
            The pace of the slowest rank.
        """
        since_save = time.monotonic() - clock.last_save
        save_due = since_save > self.resources.checkpoint_interval
        # Every rank looks, because NFS may show a new file to other nodes a minute later.
        stop_requested = signalled or (self.out / STOP_FILE).exists()
        device = self.world.device
        stop, save, pace = all_reduce_max([stop_requested, save_due, pace], device)

        if stop or save:
            self.save()
            clock.last_save = time.monotonic()
        if stop:
            if self.world.main:
                log.info(f"stopped after step {self.state.step}")
            # The first rank that exits ends the others: they wait until rank 0 has saved.
            all_reduce_max([0.0], device)
            raise SystemExit(EXIT_STOPPED)
        return pace

    def update(self, batch: Batch) -> None:
        """Take an optimizer step on this rank's part of the global batch, without a host-device
        sync."""
        rate = learning_rate(self.state.step, len(self.data), self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["lr_scale"]
        self.optimizer.zero_grad(set_to_none=True)

        # Each micro-batch needs the counts of all, and for contrast over the batch their features.
        features = None
        with self.autocast():
            micro_batches = [
                self.objective.with_pseudo_labels(micro_batch)
                for micro_batch in batch.split(self.config.accumulation_steps)
            ]
            counts = self.objective.step_counts(micro_batches)
            if self.config.contrasts_whole_batch:
                features = self.objective.step_features(micro_batches)

        rows = []
        names: tuple[str, ...] = ()
        for index, micro_batch in enumerate(micro_batches):
            if features:
                features = replace(features, micro_batch=index)
            with self.gradient_sync(last=index == len(micro_batches) - 1):
                with self.autocast():
                    loss, metrics = self.module(micro_batch, counts, features)
                (loss / len(micro_batches)).backward()
            metrics["loss"] = loss.detach()
            names = (*metrics, "grad_norm")
            rows.append(torch.stack([value.float() for value in metrics.values()]))

        norm = nn.utils.clip_grad_norm_(
            self.objective.parameters(), self.config.max_grad_norm
        )
        values = torch.cat([torch.stack(rows).mean(0), norm.detach()[None]])
        # Gradients and their norm are averaged over the ranks, but the losses are this rank's.
        wrong = all_reduce_sum((~torch.isfinite(values)).float())
        finite = wrong.sum() == 0

        step_if(self.optimizer, finite)
        self.objective.model.clamp_temperature_()
        self.mean.add(names, values, finite)
        self.unchecked.append((self.state.step, names, wrong))

    def gradient_sync(self, last: bool) -> AbstractContextManager:
        """Return a context that averages gradients over the ranks only in the last micro-batch."""
        if isinstance(self.module, DistributedDataParallel) and not last:
            return self.module.no_sync()
        return nullcontext()

    def autocast(self) -> AbstractContextManager:
        return autocast(self.dtype, self.world.device)

    def eager(self) -> AbstractContextManager:
        """Return a context in which compiled layers run uncompiled."""
        # set_stance imports torch._dynamo, which takes more than a second.
        if not self.compiled:
            return nullcontext()
        return torch.compiler.set_stance("force_eager")

    def is_validated(self, step: int) -> bool:
        """Return whether to validate after `step`. Validations are equally spaced, and the last one
        is at the end."""
        times = self.config.validation.times
        steps = len(self.data)
        return step * times // steps > (step - 1) * times // steps

    def count_skipped(self) -> None:
        """Count the steps that were skipped because a loss or the gradient was not finite.

        Raises:
            InputError: If MAX_SKIPPED_IN_ROW consecutive steps were skipped.
        """
        for step, names, wrong in self.unchecked:
            ranks = zip(names, wrong.tolist(), strict=True)
            quantities = [name for name, count in ranks if count]
            if not quantities:
                self.state.skipped_in_row = 0
                continue
            self.state.skipped += 1
            self.state.skipped_in_row += 1
            if self.state.skipped_in_row >= MAX_SKIPPED_IN_ROW:
                raise InputError(
                    f"{', '.join(quantities)} not finite in {MAX_SKIPPED_IN_ROW} consecutive "
                    f"steps, the last being step {step}; lower lr or max_grad_norm"
                )
        self.unchecked = []

    def count_unreadable(self) -> None:
        """Sum the unreadable examples over all ranks, and log the last one of this rank.

        Raises:
            InputError: On all ranks, if there are too many.
        """
        if self.unreadable:
            log.warning(
                f"step {self.state.step}: {len(self.unreadable)} examples cannot be read and are "
                f"replaced, the last: {self.unreadable[-1]}"
            )
        new = torch.tensor(len(self.unreadable), device=self.world.device)
        self.unreadable = []
        self.state.unreadable += int(all_reduce_sum(new))

        seen = self.state.step * self.config.batch_size
        allowed = self.config.max_unreadable_share * seen
        if self.state.unreadable >= MIN_UNREADABLE and self.state.unreadable > allowed:
            raise InputError(
                f"{self.state.unreadable} of {seen} examples cannot be read, more than "
                f"max_unreadable_share = {self.config.max_unreadable_share:g} allows; "
                f"{REPAIR}"
            )

    def log(self, clock: Clock) -> str:
        """Write the means of the metrics over all ranks and the throughput since the last log.

        Returns:
            The message of the progress bar.
        """
        self.count_unreadable()
        values = {f"train/{name}": value for name, value in self.mean.read().items()}
        seconds = clock.seconds()
        values |= {
            # `state.step` counts the step that is done, whose rate this is.
            "train/lr": learning_rate(self.state.step - 1, len(self.data), self.config),
            "train/skipped_steps": self.state.skipped,
            "train/unreadable": self.state.unreadable,
            "train/data_wait": clock.waited / seconds,
            "train/samples_per_second": self.config.batch_size * clock.steps / seconds,
        }
        if self.world.device.type == "cuda":
            values["train/memory_gib"] = torch.cuda.max_memory_allocated() / 2**30
        clock.start_window()
        self.write(values)

        # Without a finite step there is no mean.
        return (
            f"loss {values.get('train/loss', math.nan):.3f}, "
            f"{values['train/samples_per_second']:.3g} samples/s"
        )

    def validate(self, validate: Validate, select: str) -> Metrics:
        """Validate in the precision of training, and keep the weights if they are the best so far.

        Returns:
            The metrics of this validation, or with `select` of the best one so far.
        """
        values = self.measure(validate)
        self.write(values)
        if not select:
            return values

        if values[select] > self.state.best:
            self.state.best = values[select]
            self.state.best_step = self.state.step
            self.state.best_metrics = values
            if self.world.main:
                self.best = copy_trainable(self.objective)
        return self.state.best_metrics | {"selected_step": float(self.state.best_step)}

    def write(self, values: Metrics) -> None:
        """Write metrics of this step, on rank 0."""
        if self.world.main:
            self.file.write(self.state.step, values)

    def measure(self, validate: Validate) -> Metrics:
        """Return the metrics of the current weights in the precision of training."""
        self.objective.eval()
        with torch.no_grad(), self.autocast(), self.eager():
            values = validate()
        self.objective.train()
        return values

    def save(self) -> None:
        """Write a checkpoint with the random states of all ranks.

        If it cannot be written, for example because the disk is full, a warning is logged and
        training continues.
        """
        self.count_skipped()
        self.count_unreadable()
        self.state.unlogged = self.mean.state()
        rng = gather(random_state().to(self.world.device)).cpu().chunk(self.world.size)
        if not self.world.main:
            return

        try:
            self.file.sync()
            self.checkpoints.save(
                self.state.step,
                model=self.objective,
                optimizer=self.optimizer,
                state=asdict(self.state),
                rng=rng,
                best=self.best,
            )
        except OSError as error:
            log.warning(
                f"no checkpoint written after step {self.state.step}: {error}; the last one is kept"
            )


@contextmanager
def catch_stop_signals() -> Iterator[list[int]]:
    """Yield a list that receives SIGTERM and SIGINT instead of the process, so that the current step
    can finish: Slurm signals every process, and not only the one that creates the stop file."""
    received: list[int] = []
    previous = {
        name: signal.signal(name, lambda number, _: received.append(number))
        for name in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield received
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)
