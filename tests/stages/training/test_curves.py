"""The losses of every objective over 60 steps are the recorded ones.

One thread, four stages in order: the prompter (VTC), pre-training with it (VTC, VTM, MLM, PEM),
fine-tuning for retrieval (VTC, VTM) and for questions, on the corpora of benchmarks/tiny_world.py.
`python -m tests.stages.training.test_curves` writes curves.json again. Do so only for a change that
is meant to change training, together with the `VERSION` of its stages.

Equal processors give equal numbers to the last bit. torch's kernels for AVX2 and those without
vector instructions, two threads instead of one, and initial weights changed by a factor of 1 + 1e-6
normal(0, 1) each moved a loss by at most 1.3e-4 (relative). One other hard negative moves VTM by
1.1e-2 in its step and less afterwards. Hence the tolerance.
"""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch

from alpro.stages.execution.interface import Resources
from benchmarks.tiny_world import (
    STAGES,
    add_inputs,
    configuration,
    curves,
    run_stage,
    write_inputs,
)

FILE = Path(__file__).with_name("curves.json")
STEPS = 60
# relative difference of a loss: in a step, and averaged over the steps
LARGEST = 2e-2
MEAN = 1e-3


def compute(folder):
    """The losses by stage and name."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        inputs = write_inputs(folder)
        resources = Resources(workers=1, device="cpu")
        computed = {}
        for stage in STAGES:
            out = folder / stage / "out"
            run_stage(stage, configuration(stage, STEPS), inputs, out, resources)
            add_inputs(stage, inputs, out, resources)
            losses = curves(out)
            computed[stage] = {
                name: losses[name] for name in losses if name.startswith("loss_")
            }
        return computed
    finally:
        torch.set_num_threads(threads)


def differing(computed):
    """The losses that are not the recorded ones: their largest and mean relative difference."""
    recorded = json.loads(FILE.read_text())
    found = {}
    for stage, losses in computed.items():
        assert losses.keys() == recorded[stage].keys()
        for name, values in losses.items():
            differences = np.abs(np.array(values) / np.array(recorded[stage][name]) - 1)
            # NaN too.
            if not (differences.max() <= LARGEST and differences.mean() <= MEAN):
                found[f"{stage}/{name}"] = (
                    float(differences.max()),
                    float(differences.mean()),
                )
    return found


@pytest.mark.long
def test_the_losses_are_the_recorded_ones(tmp_path):
    assert differing(compute(tmp_path)) == {}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        fresh = compute(Path(temporary))
    rounded = {}
    for stage, losses in fresh.items():
        rounded[stage] = {
            name: np.round(values, 7).tolist() for name, values in losses.items()
        }
    # A line for each loss.
    FILE.write_text(json.dumps(rounded).replace("], ", "],\n") + "\n")
