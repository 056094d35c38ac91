"""The trials of benchmarks/gpu.py that run the training loop: resuming, two ranks on one device, and the loader."""

import json
import multiprocessing
import os
import signal
import socket
import statistics
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tiny_world
import torch
import torch.distributed as dist
from full_size import labels_of, untrained_objective
from gpu_context import Context, Failed
from timed_step import MODELS

from alpro.models.alpro import ModelConfig
from alpro.models.word_pieces import train_tokenizer
from alpro.shards import reader as shard_reader
from alpro.shards.decoding.decode import Clip
from alpro.shards.schema import Row
from alpro.shards.writer import ShardWriter, index_shard
from alpro.stages.execution.interface import Resources
from alpro.stages.training import loop
from alpro.stages.training.batch import Batch
from alpro.stages.training.config import Phase, TrainingConfig
from alpro.stages.training.dataset import TrainingDataset
from alpro.stages.training.distributed import World
from alpro.stages.training.metrics import MetricsFile, read_metrics
from alpro.stages.training.objective import Objective

STEPS, KILLED_AFTER, RANK_STEPS = 12, 7, 4
MAX_DIFFERENCE = 1e-3  # of losses, relative
MAX_WAITING = 0.02  # an aim
WORDS = ("red", "cloud", "drifts", "slowly", "over", "two", "green", "hills", "one", "windy", "day", "birds")


def objective_of(task: str, shape: ModelConfig, device: torch.device) -> Objective:
    """The objective of a task with random weights on a device, the same each time."""
    torch.manual_seed(0)
    with torch.device(device):
        return untrained_objective(task, shape, **labels_of(task, shape))


# Runs of a stage, in processes


@dataclass
class StageRun:
    """A run of pre-training on benchmarks/tiny_world.py in a process of its own."""

    out: Path
    inputs: dict[str, Path]
    device: str
    steps: int
    changes: dict[str, Any] = field(default_factory=dict)
    checkpoint: bool = False  # after every step
    kill_after: int = 0  # the process kills itself after this step; 0: never
    rank: int = 0
    ranks: int = 1
    port: int = 0

    def start(self) -> BaseProcess:
        process = multiprocessing.get_context("spawn").Process(target=self.train)
        process.start()
        return process

    def train(self) -> None:
        """Trains and ends this process."""
        job = {"RANK": self.rank, "WORLD_SIZE": self.ranks, "LOCAL_WORLD_SIZE": self.ranks, "MASTER_PORT": self.port}
        # LOCAL_RANK chooses the device, which the ranks share. cuBLAS needs a workspace for the same sums each time.
        job |= {"LOCAL_RANK": 0, "MASTER_ADDR": "127.0.0.1", "CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
        os.environ |= {name: str(value) for name, value in job.items()}
        torch.use_deterministic_algorithms(True, warn_only=True)
        status: Any = 0
        config = tiny_world.configuration("pretrain", self.steps, self.changes)
        interval = 1e-9 if self.checkpoint else 3600
        resources = Resources(workers=2, device=self.device, checkpoint_interval=interval)
        with ExitStack() as stack, warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            stack.enter_context(patch.object(loop, "MIN_SAVE_INTERVAL_RATIO", 0))
            stack.enter_context(patch.object(MetricsFile, "write", write_and_kill(self.kill_after)))
            # NCCL refuses two ranks on one device.
            init = dist.init_process_group
            stack.enter_context(patch.object(dist, "init_process_group", lambda _, **more: init("gloo", **more)))
            try:
                tiny_world.run_stage("pretrain", config, self.inputs, self.out, resources)
            except SystemExit as left:
                status = left.code
        found = sorted({str(w.message).splitlines()[0] for w in caught if "deterministic" in str(w.message)})
        (self.out / f"warnings.{self.rank}.json").write_text(json.dumps(found))
        os._exit(status)  # threads of gloo may abort the process during Python's shutdown


def write_and_kill(step: int) -> Callable[..., None]:
    """MetricsFile.write, after which the process kills itself if the metrics are those of `step`."""
    write = MetricsFile.write

    def method(self: MetricsFile, at: int, values: dict[str, float]) -> None:
        write(self, at, values)
        if at == step:
            os.kill(os.getpid(), signal.SIGKILL)

    return method


def prepare(context: Context) -> dict[str, Path]:
    """Writes the corpora and trains a prompter for a few steps; returns the inputs of pre-training."""
    inputs = tiny_world.write_inputs(context.folder / "inputs")
    resources = Resources(workers=1, device=context.device.type, checkpoint_interval=3600)
    out = context.folder / "prompter"
    tiny_world.run_stage("train_prompter", tiny_world.configuration("train_prompter", 2), inputs, out, resources)
    tiny_world.add_inputs("train_prompter", inputs, out, resources)
    return inputs


def ended(process: BaseProcess, expected: int = 0) -> None:
    """Waits for a process. Raises Failed if it ends with another exit status."""
    process.join()
    if process.exitcode != expected:
        raise Failed(f"a training process ended with status {process.exitcode} instead of {expected}; see gpu.log")


def difference(one: dict[str, list[float]], other: dict[str, list[float]]) -> float:
    """The largest relative difference of two trainings' losses and gradient norms; infinite if steps differ."""
    if [(name, len(values)) for name, values in one.items()] != [(name, len(values)) for name, values in other.items()]:
        return float("inf")
    pairs = [pair for name, values in one.items() for pair in zip(values, other[name], strict=True)]
    return max(abs(b - a) / (abs(a) or 1.0) for a, b in pairs)


def resume(context: Context) -> None:
    """Pre-training that is killed and started again has the losses of a training without interruption."""
    inputs = prepare(context)
    outs = {name: context.folder / name / "out" for name in ("whole", "broken")}
    shared = {"inputs": inputs, "device": context.device.type, "steps": STEPS, "checkpoint": True}
    both = [
        StageRun(outs["whole"], **shared).start(),
        StageRun(outs["broken"], kill_after=KILLED_AFTER, **shared).start(),
    ]
    ended(both[1], -signal.SIGKILL)
    ended(StageRun(outs["broken"], **shared).start())
    ended(both[0])
    largest = difference(*(tiny_world.curves(out) for out in outs.values()))
    found = json.loads((outs["broken"] / "warnings.0.json").read_text())
    context.report(
        f"killed after step {KILLED_AFTER} of {STEPS}; losses of the resumed run differ by at most {largest:.2g} "
        "(relative) from a run without interruption",
        difference=largest,
        warnings=found,
    )
    if found:
        context.report(f"operations that PyTorch does not make deterministic: {'; '.join(found)}")
    if not largest <= (MAX_DIFFERENCE if found else 0):
        raise Failed("the resumed run has other losses")


def ranks(context: Context) -> None:
    """Two ranks on one device, over gloo, have the losses of one process with the same batches, in float32."""
    inputs = prepare(context)
    outs = {count: context.folder / str(count) / "out" for count in (1, 2)}
    changes = {"model.video.drop_path": 0.0, "mixed_precision": False}  # each rank draws its own dropout
    shared = {"inputs": inputs, "device": context.device.type, "steps": RANK_STEPS, "changes": changes}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    runs = [StageRun(outs[1], **shared)]
    runs += [StageRun(outs[2], rank=rank, ranks=2, port=port, **shared) for rank in range(2)]
    for process in [run.start() for run in runs]:
        ended(process)
    largest = difference(*(tiny_world.curves(out) for out in outs.values()))
    context.report(
        f"losses of {RANK_STEPS} steps of pre-training differ by at most {largest:.2g} (relative) from one process; "
        f"required: {MAX_DIFFERENCE:g}",
        difference=largest,
    )
    if not largest <= MAX_DIFFERENCE:
        raise Failed("two ranks have other losses than one process")


# The loader


def loader(context: Context) -> None:
    """Samples/s of pre-training with the loader, of the same step on one batch in memory, and of the loader alone."""
    size, steps = (64, 64) if context.cuda else (4, 8)
    captions = write_clips(context.folder / "corpus", *((64, 16, 256) if context.cuda else (4, 16, 64)))
    resources = Resources(device=context.device.type, checkpoint_interval=3600)
    workers = resources.worker_count if context.cuda else 0  # see TrainingDataset.loader
    data = partial(training_data, context, captions, size)
    with patch.object(shard_reader, "MAX_CACHED_BYTES", 0):  # every frame is decoded, as in a large corpus
        in_memory = data(steps // 2)
        batch = in_memory[0].pin_memory() if context.cuda else in_memory[0]
        in_memory.loader = partial(repeated, batch, steps // 2)  # type: ignore[method-assign]
        resident = trained(context, in_memory, resources, "resident")["train/samples_per_second"]
        context.report(f"eager steps of {size} on one batch in memory: {resident:.4g} samples/s", resident=resident)
        for augmentation in ("none", "official"):
            fed = trained(context, data(steps, augmentation), resources, augmentation)
            rate, waiting = fed["train/samples_per_second"], fed["train/data_wait"]
            batches = data(6 * max(1, workers), augmentation).loader(0, resources, context.device)
            deque(islice(batches, 2 * max(1, workers)), maxlen=0)  # the workers have started
            started = time.perf_counter()
            alone = size * sum(1 for _ in batches) / (time.perf_counter() - started)
            context.report(
                f"augmentation {augmentation}: {rate:.4g} samples/s with the loader, {waiting:.1%} of the time waiting "
                f"for it (aim on a GPU: {MAX_WAITING:.0%}); the loader alone, {workers} workers: {alone:.4g} samples/s",
                **{augmentation: {"samples_per_second": rate, "data_wait": waiting, "loader": alone}},
            )


def training_data(
    context: Context, captions: list[str], size: int, steps: int, augmentation: str = "none"
) -> TrainingDataset:
    """The batches of pre-training on the corpus."""
    shape, phase = MODELS[context.size], Phase(corpora=("clips",), steps=steps)
    config = TrainingConfig(phases=(phase,), batch_size=size, augmentation=augmentation, log_every=max(1, steps // 8))
    tokenizer = train_tokenizer(captions, shape.text.vocab_size)
    values = config, {"clips": context.folder / "corpus"}, tokenizer, "sample", shape.video.frames
    return TrainingDataset(*values, shape.video.image_size, shape.video.grid, mlm_probability=0.15)


def repeated(batch: Batch, steps: int, *_: Any) -> Iterator[Batch]:
    """Stands for a loader: the same batch at every step."""
    return iter([batch] * steps)


def trained(context: Context, data: TrainingDataset, resources: Resources, name: str) -> dict[str, float]:
    """Trains on all steps; the medians of the metrics of the second half, in which no prefetched batches are left."""
    objective = objective_of("pretrain", MODELS[context.size], context.device)
    out = context.folder / name / "out"
    out.mkdir(parents=True)
    loop.fit(objective, data, data.config, out, World(0, 1, context.device), resources)
    lines = read_metrics(out / "metrics.jsonl")
    lines = lines[len(lines) // 2 :]
    del objective
    torch.cuda.empty_cache()
    return {name: statistics.median(line[name] for line in lines) for name in lines[0]}


def write_clips(folder: Path, clips: int, frames: int, size: int, shards: int = 1) -> list[str]:
    """Writes a corpus of clips with moving textures, whose spectrum is that of photographs; returns the captions."""
    folder.mkdir()
    side, captions = 2 * size, []
    spectrum = (np.hypot(np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)) + 1e-3) ** -1.6
    files = [folder / f"{number:02}.tar" for number in range(shards)]
    for shard, file in enumerate(files):
        with ShardWriter(file, 90) as writer:
            for number in range(shard, clips, shards):
                rng = np.random.default_rng(number)
                texture = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((3, side, side))) * spectrum, (side, side))
                texture = np.moveaxis(120 + 45 * texture / texture.std(), 0, 2)
                texture = np.clip(texture + rng.normal(0, 4, texture.shape), 0, 255).astype(np.uint8)
                views = [texture[n * size // frames :][:size, n * size // frames :][:, :size] for n in range(frames)]
                captions.append(" ".join(rng.choice(WORDS, 28)))
                about = {"id": str(number), "path": "none", "kind": "video", "split": "train", "group": str(number)}
                row = Row.model_validate(about | {"captions": [captions[-1]]})
                writer.write(row, Clip(np.stack(views), 10.0, size, size))
    pq.write_table(pa.concat_tables(index_shard(file) for file in files), folder / "index.parquet")
    return captions
