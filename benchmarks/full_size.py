"""One training step of each task at the paper's sizes: batch of 2, checkpointed activations; seconds and peak memory.

    python benchmarks/full_size.py [--tasks prompter pretrain retrieval qa] [--json FILE]

Each task runs in a separate process, with random weights and random frames, words, boxes and answers, and the objective
and optimizer of training. The peak memory is that of the process, including weights and optimizer. If a process is
killed, such as for lack of memory, a message is printed, the other tasks continue, and the exit status is 1.
"""

import argparse
import json
import multiprocessing
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import normalize

from alpro.models.alpro import Alpro, ModelConfig, Prompter
from alpro.models.folder import Preprocessing
from alpro.models.text import Layers
from alpro.models.timesformer import TimeSformer
from alpro.stages.training.batch import Batch
from alpro.stages.training.config import Phase, TrainingConfig
from alpro.stages.training.objective import MatchingObjective, Objective, PrompterObjective, QaObjective
from alpro.stages.training.optim import build_optimizer
from alpro.stages.training.pretrain_objective import LossWeights, PretrainObjective

ENTITIES, ANSWERS = 1000, 1500
SHAPES = {"prompter": (4, 30), "pretrain": (4, 30), "retrieval": (8, 40), "qa": (16, 40)}  # frames, words


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=SHAPES, default=list(SHAPES))
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    figures = {}
    for task in arguments.tasks:
        try:
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
                measured = figures[task] = process.submit(measure, task).result()
        except BrokenProcessPool:
            print(f"{task:10} no figures: the process was killed (out of memory?)")
            continue
        frames, words = SHAPES[task]
        print(
            f"{task:10} {frames:2} frames, {words} words: {measured['parameters'] / 1e6:6.1f} M parameters, "
            f"{measured['seconds']:6.1f} s a step, peak {measured['gigabytes']:5.2f} GiB, loss {measured['loss']:.3f}",
            flush=True,
        )
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))
    sys.exit(len(figures) < len(arguments.tasks))


def measure(task: str) -> dict[str, float]:
    torch.manual_seed(0)
    objective = build(task).train()
    for part in objective.model.modules():
        if isinstance(part, TimeSformer | Layers):
            part.checkpoint_activations = True
    config = TrainingConfig(phases=(Phase(corpora=("none",), steps=1),))
    optimizer = build_optimizer(objective, config)
    started = time.perf_counter()
    loss, _ = objective(batch_of(task))
    loss.backward()
    optimizer.step()
    seconds = time.perf_counter() - started
    parameters = sum(p.numel() for p in objective.model.parameters())
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return {"seconds": seconds, "gigabytes": peak, "parameters": parameters, "loss": loss.item()}


def build(task: str) -> Objective:
    """The task's objective around a full-size model."""
    shape = ModelConfig()
    shape = shape.model_copy(update={"video": shape.video.model_copy(update={"frames": SHAPES[task][0]})})
    return untrained_objective(task, shape, **labels_of(task, shape))


def untrained_objective(
    task: str,
    shape: ModelConfig,
    *,
    entities: int = 0,
    answers: int = 0,
    teacher: ModelConfig | None = None,
) -> Objective:
    """The objective of a task around a model with random weights, on torch's default device.

    entities, answers: outputs of the heads. teacher: the prompter of pre-training; None: pre-training without
    one, whose batches have pseudo-labels. Every pseudo-label is kept (the threshold is 0).
    """
    norm = Preprocessing().mean, Preprocessing().std
    if task == "prompter":
        return PrompterObjective(Prompter(shape), *norm)
    if task == "retrieval":
        return MatchingObjective(Alpro(shape, entities), *norm)
    if task == "qa":
        return QaObjective(Alpro(shape, answers=answers), *norm)
    if task != "pretrain":
        raise ValueError(f"{task!r} is not one of {', '.join(SHAPES)}")
    prompts = {}
    if teacher:
        kinds = "video", "image"
        prompts = {kind: normalize(torch.randn(entities, teacher.embed_dim), dim=1) for kind in kinds}
    return PretrainObjective(
        Alpro(shape, entities), *norm, Prompter(teacher) if teacher else None, prompts, LossWeights(), 0.0
    )


def labels_of(task: str, shape: ModelConfig) -> dict[str, Any]:
    """What `untrained_objective` needs for a task besides the sizes of the model."""
    if task == "pretrain":
        return {"entities": ENTITIES, "teacher": shape}
    return {"answers": ANSWERS} if task == "qa" else {}


def batch_of(task: str, size: int = 2) -> Batch:
    """A batch of random examples of the task."""
    frames, words = SHAPES[task]
    ids = torch.randint(1000, 30522, (size, words))
    batch = Batch(
        step=0,
        kind="video",
        ids=[str(i) for i in range(size)],
        video=torch.arange(size),
        frames=torch.randint(0, 256, (size, frames, 3, 224, 224), dtype=torch.uint8),
        text=ids,
        mask=torch.ones_like(ids),
    )
    if task == "pretrain":
        batch.masked, batch.labels = ids.clone(), torch.full_like(ids, -100)
        batch.masked[:, 2:6], batch.labels[:, 2:6] = 103, ids[:, 2:6]
        batch.boxes = torch.tensor([[2, 1, 9, 8], [0, 4, 8, 9]])
    if task == "qa":
        batch.answers = torch.randint(0, ANSWERS, (size,))
    return batch


if __name__ == "__main__":
    main()
