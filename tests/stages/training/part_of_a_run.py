"""A program that tests start: one rank of a short training run with dropout.

python part_of_a_run.py OUT CORPUS TOKENIZER STOP..., with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT as torchrun
sets them. The rank sends itself a SIGTERM as step STOP[RANK] begins; -1 is no step.
"""

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from alpro.models.alpro import ModelConfig, Prompter
from alpro.stages.execution.interface import Resources
from alpro.stages.training.batch import Batch
from alpro.stages.training.config import TrainingConfig
from alpro.stages.training.dataset import Examples, TrainingDataset
from alpro.stages.training.distributed import World, init_distributed
from alpro.stages.training.loop import Run
from alpro.stages.training.objective import Objective, PrompterObjective

VIDEO = {"image_size": 16, "patch_size": 8, "frames": 2, "width": 16, "depth": 1, "heads": 2, "drop_path": 0.0}
TEXT = {"width": 16, "depth": 2, "fusion_layer": 1, "heads": 2, "max_length": 32, "dropout": 0.2}


def train(
    out: Path,
    corpus: Path,
    tokenizer: Tokenizer,
    build: Callable[[ModelConfig], Objective],
    unit: Literal["sample", "caption"],
    begun: Callable[[Batch, World], None],
    resources: Resources,
    **values,
) -> None:
    """A short run of a small model; `begun` is called as each step begins."""
    config = TrainingConfig.model_validate({"batch_size": 4, **values})
    with init_distributed(resources) as world:
        torch.manual_seed(config.seed)
        text = TEXT | {"vocab_size": tokenizer.get_vocab_size()}
        objective = build(ModelConfig.model_validate({"video": VIDEO, "text": text, "embed_dim": 8, "init": "scratch"}))
        shared = objective.shares_texts(config.batch_size // world.size)
        data = TrainingDataset(
            config, {"clips": corpus}, tokenizer, Examples(unit, 2, 16), world.rank, world.size, shared
        )
        load = data.loader

        def loader(*args):
            for batch in load(*args):
                begun(batch, world)
                yield batch

        data.loader = loader
        Run(objective, data, config, out, world, resources).train()
        if world.main:
            save_file({name: p.detach() for name, p in objective.named_parameters()}, out / "weights.safetensors")


def main(out: Path, corpus: Path, tokenizer: Tokenizer, stops: list[int]) -> None:
    def stop(batch: Batch, world: World) -> None:
        if batch.step == stops[world.rank]:
            os.kill(os.getpid(), signal.SIGTERM)

    resources = Resources(device="cpu", workers=1, checkpoint_interval=3600)
    build = lambda shape: PrompterObjective(Prompter(shape), [0.5] * 3, [0.25] * 3)  # noqa: E731
    phases = [{"corpora": ["clips"], "steps": 12}]
    # Ranks agree on stopping at least as often as they log; with fast steps, otherwise only after the last one.
    train(out, corpus, tokenizer, build, "sample", stop, resources, phases=phases, log_every=4)


if __name__ == "__main__":
    status = 0
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), Tokenizer.from_file(sys.argv[3]), [int(n) for n in sys.argv[4:]])
    except SystemExit as left:
        status = int(left.code or 0)
    sys.stderr.flush()
    os._exit(status)  # as pipeline/execution/run_stage.py ends: threads of gloo may abort the process during shutdown
