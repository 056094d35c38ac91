"""A program that tests start under torchrun: a stage of which one rank fails while the others wait
for it.

python part_of_a_failure.py WORK.json HOW, HOW being input-error or silent.
"""

import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

from alpro.errors import InputError
from alpro.pipeline.execution import run_stage as run
from alpro.stages.execution.interface import Resources
from alpro.stages.training.distributed import init_distributed


def stage(work: dict) -> None:
    with init_distributed(Resources.model_validate(work["resources"])) as world:
        for step in range(5):
            if world.rank == 1 and step == 3:
                fail(sys.argv[2])
            dist.all_reduce(torch.ones(1))


def fail(how: str) -> None:
    if how == "input-error":
        raise InputError("clips/shard-000001.tar: cut short")
    time.sleep(600)


if __name__ == "__main__":
    run.run = stage
    run.start(Path(sys.argv[1]))
