"""A program that tests start and kill: a short training run that leaves a checkpoint after every other step or so.

python part_of_a_life.py OUT CORPUS TOKENIZER, with RANK and WORLD_SIZE as torchrun sets them, or alone. When it is done
it writes weights.safetensors, and beside it the samples of each step in the order in which they were trained on.
"""

import json
import os
import sys
from pathlib import Path

from tokenizers import Tokenizer

from alpro.models.alpro import Alpro
from alpro.stages.execution.interface import Resources
from alpro.stages.training import loop
from alpro.stages.training.batch import Batch
from alpro.stages.training.distributed import World
from alpro.stages.training.objective import MatchingObjective
from tests.stages.training.part_of_a_run import train

STEPS = 40
loop.MIN_SAVE_INTERVAL_RATIO = 0  # however long it takes


def main(out: Path, corpus: Path, tokenizer: Tokenizer) -> None:
    def note(batch: Batch, here: World) -> None:
        with open(out / f"seen.{here.rank}.jsonl", "a") as file:
            file.write(json.dumps([batch.step, here.size, batch.ids]) + "\n")

    resources = Resources(device="cpu", workers=1, checkpoint_interval=0.05)
    build = lambda shape: MatchingObjective(Alpro(shape), [0.5] * 3, [0.25] * 3)  # noqa: E731
    phases = [{"corpora": ["clips"], "steps": STEPS}]
    train(out, corpus, tokenizer, build, "caption", note, resources, phases=phases, log_every=2, max_text_tokens=24)


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]), Path(sys.argv[2]), Tokenizer.from_file(sys.argv[3]))
    except SystemExit as left:
        os._exit(left.code)
