"""The losses of every objective over 60 steps equal the recorded ones: a change of training changes this file.

One thread, four stages in order: the prompter (VTC), pre-training with it (VTC, VTM, MLM, PEM), fine-tuning for retrieval
(VTC, VTM) and for questions, on the corpora of benchmarks/tiny_world.py. `python -m tests.stages.training.test_curves`
writes curves.json again; do so for a change that is meant to change training, and say so in the commit.
"""

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from alpro.stages.execution.interface import Resources
from benchmarks.tiny_world import STAGES, configuration, run_stage, write_inputs

FILE = Path(__file__).with_name("curves.json")
STEPS = 60


def compute(folder: Path, stages: tuple[str, ...] = tuple(STAGES)) -> dict[str, dict[str, list[float]]]:
    """The curves of the stages by name."""
    threads = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
    try:
        inputs, resources = write_inputs(folder / "inputs"), Resources(workers=1, device="cpu", checkpoint_interval=3600)
        return {s: run_stage(s, configuration(s, STEPS), inputs, folder / s / "out", resources) for s in stages}
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        recorded = compute(Path(temporary))
    rounded = {s: {n: [float(f"{v:.7g}") for v in vs] for n, vs in c.items()} for s, c in recorded.items()}
    FILE.write_text(json.dumps(rounded, indent=1))
