"""The memory of a GPU that each shipped configuration names holds its training, computed with fake
tensors."""

import re

import pytest

from alpro.pipeline.config.command import CONFIGS
from tests.pipeline.test_fingerprints import DATA, model_folder
from tests.plans import configure
from tests.stages.training.simulated import peak_memory

# Fraction of the memory: a real peak is about 12 % higher, and CUDA takes its part.
SPARE = 0.8
STAGES = [
    ("from_clip", "train_prompter"),
    ("from_weights", "finetune_qa"),
    ("from_clip", "pretrain"),
    ("from_clip", "finetune_retrieval"),
    ("from_clip", "finetune_qa"),
    ("from_weights", "finetune_retrieval"),
    ("msrvtt_retrieval", "finetune_retrieval"),
    ("didemo_retrieval", "finetune_retrieval"),
    ("msrvtt_qa", "finetune_qa"),
    ("msvd_qa", "finetune_qa"),
    ("webvid_cc3m", "train_prompter"),
    ("webvid_cc3m", "pretrain"),
]


def gpus_of(name):
    """The number of GPUs in the header of a configuration, and the memory of each in GB."""
    header = (CONFIGS / f"{name}.toml").read_text().split("\nname =")[0]
    memory = re.search(r"(\d+) GPUs? of (\d+) GB", header.replace("\n#", ""))
    assert memory, f"{name}: the header names no GPU"
    return int(memory[1]), int(memory[2])


@pytest.mark.long
@pytest.mark.parametrize(("name", "stage"), STAGES)
def test_a_training_fits_the_gpu_that_the_header_names(name, stage, tmp_path):
    changes = [f"corpora.{corpus}.data={tmp_path}" for corpus in DATA[name]]
    if name == "from_weights":
        changes.append(f"pretrained={model_folder(tmp_path, 'pretrain')}")
    config = getattr(configure(name, *changes), stage)
    count, gigabytes = gpus_of(name)
    peak = peak_memory(stage, config, tmp_path, count)
    print(f"{name} {stage}: {peak:.1f} GiB of {gigabytes} GB, {count} GPU")
    assert peak <= SPARE * gigabytes
