"""The memory of a GPU that each shipped configuration names holds its training, computed with fake tensors."""

import re

import pytest

from alpro.pipeline.config.load import CONFIGS, load_config
from alpro.stages import TRAININGS
from tests.stages.training.simulated import peak_memory

SPARE = 0.8  # of the memory; a real peak is about 12 % higher, and CUDA and the allocator take their part
# Configuration, stage, and the number of GPUs that its header names.
FAST = [("from_clip", "train_prompter"), ("from_weights", "finetune_qa")]
EVERY = [
    (name, stage)
    for name in (
        "from_clip",
        "from_weights",
        "msrvtt_retrieval",
        "didemo_retrieval",
        "msrvtt_qa",
        "msvd_qa",
        "webvid_cc3m",
    )
    for stage in TRAININGS
]


def gpus_of(name: str) -> tuple[int, int]:
    """The number of GPUs of the header of a configuration, and the memory of each in GB."""
    header = (CONFIGS / f"{name}.toml").read_text().split("\nname =")[0]
    memory = re.search(r"(\d+) GPUs? of (\d+) GB", header.replace("\n#", ""))
    assert memory, f"{name}: the header names no GPU"
    return int(memory[1]), int(memory[2])


@pytest.mark.parametrize(
    ("name", "stage"),
    [pytest.param(*case, marks=[] if case in FAST else pytest.mark.long) for case in EVERY],
)
def test_a_training_fits_the_gpu_that_the_header_names(name, stage, tmp_path):
    config = load_config(name, data="data" if name.startswith("from_") else "")
    trained = getattr(config, stage)
    if trained is None:
        pytest.skip("it has no such stage")
    count, gigabytes = gpus_of(name)
    peak = peak_memory(stage, trained, tmp_path, count)
    print(f"{name} {stage}: {peak:.1f} GiB of {gigabytes} GB, {count} GPU")
    assert peak * 2**30 <= SPARE * gigabytes * 1e9
