"""Write a corpus that small models learn in a few hundred steps.

A clip has one of four skies in its upper half and one of four grounds in its lower half; shade and
noise are drawn. A caption names both, so the sixteen scenes differ in one word from six others.
Corpora are written as decode_videos writes them, without videos, and the vocabulary as
build_vocabulary does; no code of the sample is used.
"""

from importlib import import_module
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from alpro.models.word_pieces import train_tokenizer
from alpro.shards.clip import Clip
from alpro.shards.schema import Row
from alpro.shards.writer import ShardWriter, index_shard
from alpro.stages import cache_prompts
from alpro.stages.execution.interface import Resources
from alpro.stages.training.metrics import read_metrics

SIZE = 32  # pixels
FRAMES = 4  # frames of a stored clip
SKIES = {
    "dusk": (220, 20, 20),
    "noon": (20, 20, 220),
    "dawn": (200, 20, 200),
    "fog": (200, 200, 200),
}
GROUNDS = {
    "sand": (220, 200, 20),
    "grass": (20, 180, 20),
    "sea": (20, 200, 200),
    "lava": (240, 110, 10),
}
ENTITIES = SKIES | GROUNDS
SCENES = tuple(product(SKIES, GROUNDS))
QUESTIONS = ("what is above", "what is below")
TEMPLATES = {"video": ["{}", "a clip of {}"], "image": ["{}", "a picture of {}"]}
MODEL: dict[str, Any] = {
    "embed_dim": 16,
    "temperature": 0.2,
    "init": "scratch",
    "video": {
        "image_size": SIZE,
        "patch_size": 8,
        "frames": 2,
        "width": 32,
        "depth": 2,
        "heads": 2,
        "drop_path": 0.0,
    },
    "text": {
        "width": 32,
        "depth": 2,
        "fusion_layer": 1,
        "heads": 2,
        "max_length": 24,
        "dropout": 0.0,
    },
}

# Every stage reads both corpora, with augmentation. Dropout is off, because its masks differ between
# builds of torch.
TRAINING: dict[str, Any] = {
    "batch_size": 16,
    "lr": 2e-3,
    "warmup_ratio": 0.1,
    "max_text_tokens": 16,
    "augmentation": "official",
    "log_every": 1,
    "validation": {"videos": 4},
}
FINETUNING = {"max_grad_norm": 5.0, "sampling": "random", "random_crop": 1.0}
ENCODERS = {"model": MODEL | {"video": MODEL["video"] | {"drop_path": 0.1}}}
# Changes of TRAINING by stage, in the order of the stages.
STAGES: dict[str, dict[str, Any]] = {
    "train_prompter": ENCODERS,
    "pretrain": ENCODERS
    | {"start": "prompter", "mlm_probability": 0.3, "negative_pool_size": 8},
    "finetune_retrieval": FINETUNING | {"frames": 3, "lr": 5e-4},
    "finetune_qa": FINETUNING
    | {"frames": 2, "lr": 5e-4, "answers": len(ENTITIES), "accumulation_steps": 2},
}


def draw(sky: str, ground: str, frames: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a scene. Returns (frames, SIZE, SIZE, 3) uint8."""
    pixels = np.empty((frames, SIZE, SIZE, 3))
    pixels[:, : SIZE // 2] = np.array(SKIES[sky]) + rng.normal(0, 12, 3)
    pixels[:, SIZE // 2 :] = np.array(GROUNDS[ground]) + rng.normal(0, 12, 3)
    return np.clip(pixels + rng.normal(0, 10, pixels.shape), 0, 255).astype(np.uint8)


def write_corpus(
    folder: Path, kind: str = "video", seed: int = 0, **splits: int
) -> Path:
    """Write a corpus, with so many samples of each scene in each split, such as train=8. Return its
    folder."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    with ShardWriter(folder / "all.tar", 95) as writer:
        for split, copies in splits.items():
            for copy, (sky, ground) in product(range(copies), SCENES):
                row = {
                    "id": f"{split}-{sky}-{ground}-{copy}",
                    "path": "none",
                    "kind": kind,
                    "split": split,
                    "group": f"{sky}-{ground}",
                    "captions": [f"{sky} over {ground}"],
                    "questions": [
                        {"question": q, "answer": a}
                        for q, a in zip(QUESTIONS, (sky, ground), strict=True)
                    ],
                }
                frames = draw(sky, ground, FRAMES if kind == "video" else 1, rng)
                writer.write(Row.model_validate(row), Clip(frames, 1.0, SIZE, SIZE))
    pq.write_table(index_shard(folder / "all.tar"), folder / "index.parquet")
    return folder


def write_vocabulary(folder: Path) -> Path:
    """Write skies and grounds as entities, and a tokenizer with all words."""
    folder.mkdir(parents=True)
    pq.write_table(pa.table({"entity": list(ENTITIES)}), folder / "entities.parquet")
    texts = [
        *QUESTIONS,
        *(f"{sky} over {ground}" for sky, ground in SCENES),
        *TEMPLATES["video"],
        *TEMPLATES["image"],
    ]
    train_tokenizer(texts, 200).save(str(folder / "tokenizer.json"))
    return folder


def configuration(
    stage: str, steps: int, changes: dict[str, Any] | None = None
) -> dict[str, Any]:
    """Return the configuration of a training stage on the corpora `clips` and `stills`.

    Args:
        changes: Values by their keys, which may have dots.
    """
    config = TRAINING | {
        "phases": [{"corpora": ["clips", "stills"], "weights": [3, 1], "steps": steps}]
    }
    config |= STAGES[stage]
    for key, value in (changes or {}).items():
        *tables, last = key.split(".")
        table = config
        for name in tables:
            table[name] = dict(table.get(name, {}))
            table = table[name]
        table[last] = value
    return config


def write_inputs(folder: Path) -> dict[str, Path]:
    """Write the corpora, the vocabulary and the tokenizer. Return their folders by name."""
    vocabulary = write_vocabulary(folder / "vocabulary")
    return {
        "clips": write_corpus(folder / "clips", train=8, validation=1),
        "stills": write_corpus(folder / "stills", "image", seed=1, train=4),
        "vocabulary": vocabulary,
        "tokenizer": vocabulary,
    }


def run_stage(
    stage: str,
    config: dict[str, Any],
    inputs: dict[str, Path],
    out: Path,
    resources: Resources,
) -> None:
    """Trains a stage, from a checkpoint in `out` if there is one."""
    module = import_module(f"alpro.stages.{stage}")
    out.mkdir(parents=True, exist_ok=True)
    module.run(
        module.Config.model_validate(config), module.Inputs.of(inputs), out, resources
    )


def add_inputs(
    stage: str, inputs: dict[str, Path], out: Path, resources: Resources
) -> None:
    """Add to `inputs` what later stages read of a trained stage, such as the prompts that a prompter
    embeds."""
    if stage == "train_prompter":
        inputs["prompter"], inputs["prompts"] = out, out.with_name("prompts")
        inputs["prompts"].mkdir(exist_ok=True)
        config = cache_prompts.Config.model_validate({"templates": TEMPLATES})
        cache_prompts.run(
            config,
            cache_prompts.Inputs(vocabulary=inputs["vocabulary"], prompter=out),
            inputs["prompts"],
            resources,
        )
    elif stage == "pretrain":
        inputs["model"] = out


def curves(out: Path) -> dict[str, list[float]]:
    """Return the losses and the gradient norm of a stage by step. `loss` is the weighted sum of
    several losses."""
    lines = [
        line for line in read_metrics(out / "metrics.jsonl") if "train/loss" in line
    ]
    names = [name for name in lines[0] if name.startswith("train/loss_")]
    names += (
        ["train/loss", "train/grad_norm"] if len(names) > 1 else ["train/grad_norm"]
    )
    return {
        name.removeprefix("train/"): [line[name] for line in lines] for name in names
    }
