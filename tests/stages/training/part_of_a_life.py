"""A program that tests start and kill: a short training run that leaves a checkpoint after every other step or so.

python part_of_a_life.py OUT CORPUS TOKENIZER, with RANK and WORLD_SIZE as torchrun sets them, or alone. When it is done
it writes weights.safetensors, and beside it the samples of each step in the order in which they were trained on.
"""

import json
import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer

from models.alpro import Alpro, ModelConfig
from stages.artifacts import Resources
from stages.training import loop
from stages.training.config import TrainingConfig
from stages.training.distributed import world
from stages.training.examples import Steps
from stages.training.loop import fit
from stages.training.objective import MatchingObjective
from tests.stages.training.part_of_a_run import TEXT, VIDEO

STEPS = 40
loop.SAVING = 0  # however long it takes


def main(out: Path, corpus: Path, tokenizer: Tokenizer) -> None:
    resources = Resources(device="cpu", workers=1, seconds_between_checkpoints=0.05)
    values = {"phases": [{"corpora": ["clips"], "steps": STEPS}], "batch_size": 4, "log_every": 2, "text_length": 24}
    config = TrainingConfig.model_validate(values)
    with world(resources) as here:
        torch.manual_seed(config.seed)
        text = TEXT | {"vocab_size": tokenizer.get_vocab_size()}
        shape = ModelConfig.model_validate({"video": VIDEO, "text": text, "embed_dim": 8, "init": "scratch"})
        objective = MatchingObjective(Alpro(shape), [0.5] * 3, [0.25] * 3)
        data = Steps(config, {"clips": corpus}, tokenizer, "caption", 2, 16, rank=here.rank, ranks=here.size)
        load = data.loader

        def loader(*given):
            for batch in load(*given):
                with open(out / f"seen.{here.rank}.jsonl", "a") as file:
                    file.write(json.dumps([batch.step, here.size, batch.ids]) + "\n")
                yield batch

        data.loader = loader
        fit(objective, data, config, out, here, resources)
        if here.main:
            save_file({name: p.detach() for name, p in objective.named_parameters()}, out / "weights.safetensors")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), Tokenizer.from_file(sys.argv[3]))
    except SystemExit as left:
        os._exit(left.code)
