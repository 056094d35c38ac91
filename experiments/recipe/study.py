"""How a small CLIP is fine-tuned on clips: the recipe of `from_clip` at e07c0eb, and that of today.

    OMP_NUM_THREADS=1 python experiments/recipe/study.py --seeds 0 1 2 --out FOLDER

Each seed draws a sample, trains a small CLIP from random weights on its stills, and fine-tunes this
CLIP on its clips in the ways of `arms`. The scores are R@1 from text to video among the 200 test
clips, by similarity. Validation has 120 other clips. A row, a JSON file in --results, has the
scores of a seed; rows that exist are not computed again, and a study that was stopped continues in
the same FOLDER.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

# for experiments, if this file is the program
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import BpeTrainer

from alpro.files import read_json, write_json
from alpro.inference.encoding import similarities
from alpro.models.clip_prompter import load_clip
from alpro.shards.clip import Clip
from alpro.shards.sample.draw import render
from alpro.shards.schema import Row
from alpro.shards.writer import ShardWriter
from alpro.stages import index_shards, render_sample, train_prompter
from alpro.stages.evaluation.gallery import Gallery
from alpro.stages.evaluation.metrics import retrieval_metrics
from alpro.stages.evaluation.scorer import Scorer
from alpro.stages.execution.interface import Outcome, Resources
from alpro.stages.training import loop
from alpro.stages.training.optim import build_optimizer
from experiments.silent.study import once, plus_minus, stage

CPU = torch.device("cpu")
SIZE = 64  # pixels
FRAMES = 4
TOKENS = 32
WORD_PIECES = 400
WIDTH = 96
LAYERS = 4
SIZES = {"stills": 3200}  # of the sample; the rest as in its configuration
TINY = {"stills": 64, "clips": 24, "lessons": 0, "validation": 8, "test": 8}
SHARD_SIZE = 500
JPEG_QUALITY = 95
LAYER_DECAY = 0.7  # of the learning rate, from each layer to the one below
# The rates of `from_clip` are for a CLIP of 400 million pairs. This one learned from 3,200 stills at
# 1e-3, twice the rate of OpenAI's: the recipes are also compared at ten times their rates.
SCALES = (1, 10)


def arms(scale: float) -> dict[str, dict[str, Any]]:
    """The settings of `[train_prompter]` by recipe, at a multiple of the learning rates of `from_clip`."""
    old = {
        "lr": 5e-6 * scale,
        "random_crop": 0.875,
        "augmentation": "official",
        "crops": {"share": 0.25},
    }
    new = {
        "lr": 5e-6 * scale,
        "new_lr": 1e-4 * scale,
        "random_crop": 0.875,
        "validation": {"times": 5},
    }
    return {
        "old": old,
        "new": new,
        "new, interpolated": new | {"interpolate": True},
        "new, layer-wise decay": new,
    }


def write_clip(folder: Path, captions: list[str], seed: int) -> Outcome:
    """Writes a CLIP with random weights and a tokenizer for the captions, in the format of transformers."""
    # After alpro.models, which repairs the import of torchvision.
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

    words = Tokenizer(BPE(end_of_word_suffix="</w>"))
    words.pre_tokenizer = Whitespace()
    trainer = BpeTrainer(
        vocab_size=WORD_PIECES,
        special_tokens=["<|startoftext|>", "<|endoftext|>"],
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    words.train_from_iterator([caption.lower() for caption in captions], trainer)
    model = json.loads(words.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    CLIPTokenizer(vocab=model["vocab"], merges=merges).save_pretrained(folder)

    layers = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
    }
    text = layers | {
        "vocab_size": len(model["vocab"]),
        "max_position_embeddings": TOKENS,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
    }
    vision = layers | {"image_size": SIZE, "patch_size": 8}
    torch.manual_seed(seed)
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
    CLIPModel(config).save_pretrained(folder)
    constants = {"image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    write_json(folder / "preprocessor_config.json", constants)
    return Outcome()


def write_shards(folder: Path, seed: int, sizes: dict[str, int]) -> Outcome:
    """Draws the clips and stills of the sample into shards, without videos, which take most of the time."""
    config = render_sample.Config(seed=seed, **sizes)
    for corpus, items in (
        ("clips", render_sample.clips(config)),
        ("stills", render_sample.stills(config)),
    ):
        (folder / corpus).mkdir(exist_ok=True)
        frames = 8 if corpus == "clips" else 1
        for start in range(0, len(items), SHARD_SIZE):
            shard = folder / corpus / f"{corpus}-{start:06d}.tar"
            with ShardWriter(shard, JPEG_QUALITY) as writer:
                for item in items[start : start + SHARD_SIZE]:
                    row = Row.model_validate(item.row)
                    clip = Clip(render(item.scene, frames, SIZE), 2.0, SIZE, SIZE)
                    writer.write(row, clip)
        captions = [caption for item in items for caption in item.row["captions"]]
        write_json(folder / f"{corpus}.json", captions)
    return Outcome()


def corpora(out: Path, seed: int, sizes: dict[str, int], resources: Resources) -> dict[str, Path]:
    """The clips and stills of a sample, and the untrained CLIP."""
    shards = once(out / "shards", partial(write_shards, seed=seed, sizes=sizes))
    paths = {}
    captions: list[str] = []
    for corpus in ("clips", "stills"):
        given = {"shards": shards / corpus}
        values = {"kinds": "video" if corpus == "clips" else "image"}
        paths[corpus] = stage(out / corpus, index_shards, values, given, resources)
        captions += read_json(shards / f"{corpus}.json")
    paths["untrained"] = once(out / "untrained", partial(write_clip, captions=captions, seed=seed))
    return paths


def training(clip: Path, corpus: str, seed: int, **changes: Any) -> dict[str, Any]:
    """The settings of `[train_prompter]` that all trainings share, with changes.

    changes: `steps` or `epochs` is the length.
    """
    length = {key: changes.pop(key) for key in ("steps", "epochs") if key in changes}
    shared = {
        "clip": str(clip),
        "phases": [{"corpora": [corpus], **length}],
        "seed": seed,
        "batch_size": 32,
        "weight_decay": 0.05,
        "warmup_ratio": 0.1,
        "max_grad_norm": 1.0,
        "max_text_tokens": TOKENS,
        "sampling": "random",
        "model": {"video": {"frames": FRAMES}},
    }
    return shared | changes


@contextmanager
def layer_wise_decay(factor: float) -> Iterator[None]:
    """Trainings within have a learning rate that falls by `factor` from each layer of a tower to
    the one below."""

    def build(objective: Any, config: Any) -> torch.optim.AdamW:
        optimizer = build_optimizer(objective, config)
        depths = {id(weight): depth(name) for name, weight in objective.named_parameters()}
        groups = []
        for group in optimizer.param_groups:
            is_new = "lr_scale" in group
            for parameter in group["params"]:
                scale = group["lr_scale"] if is_new else factor ** depths[id(parameter)]
                groups.append({**group, "params": [parameter], "lr_scale": scale})
        return type(optimizer)(groups, fused=True)

    with mock.patch.object(loop, "build_optimizer", build):
        yield


def depth(name: str) -> int:
    """The number of layers above a weight of a tower."""
    parts = name.split(".")
    if "layers" in parts:
        return LAYERS - 1 - int(parts[parts.index("layers") + 1])
    return LAYERS if "embeddings" in parts else 0


def test_recall(model: Path, corpus: Path) -> float:
    """R@1 (%) from text to video among the test clips, by similarity."""
    folder = load_clip(str(model))
    folder.model.set_frames(FRAMES)
    gallery = Gallery.of(corpus, "test")
    scorer = Scorer(folder.normalized(CPU), folder.tokenizer, TOKENS)
    texts, videos = scorer.encode(gallery)
    scores = similarities(texts.features, videos.features).cpu().numpy()
    return retrieval_metrics(scores, gallery.labels.relevant)["t2v/R1"]


def row_of(seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """The scores of all arms with a seed."""
    resources = Resources(workers=1)
    out = options.out / f"seed-{seed}"
    paths = corpora(out, seed, TINY if options.tiny else SIZES, resources)
    started = time.process_time()
    values = training(
        paths["untrained"], "stills", seed, steps=options.clip_steps, lr=1e-3, batch_size=64,
        repeat_images=False, random_crop=1.0, min_lr_ratio=0.05, model={"video": {"frames": 1}},
    )  # fmt: skip
    given = {"stills": paths["stills"]}
    clip = stage(out / "clip", train_prompter, values, given, resources) / "model"
    row: dict[str, Any] = {
        "seed": seed,
        "clip_steps": options.clip_steps,
        "epochs": options.epochs,
        "test_R1": {"CLIP as it is": test_recall(clip, paths["clips"])},
        "shares": {},
    }

    for scale in SCALES:
        for name, changes in arms(scale).items():
            arm = f"{name}, rates x {scale}"
            values = training(clip, "clips", seed, epochs=options.epochs, **changes)
            decay = LAYER_DECAY if "layer-wise" in name else 1.0
            with layer_wise_decay(decay):
                trained = stage(
                    out / arm.replace(", ", "-").replace(" ", "-"),
                    train_prompter,
                    values,
                    {"clips": paths["clips"]},
                    resources,
                )
            row["test_R1"][arm] = test_recall(trained / "model", paths["clips"])
            metrics = read_json(trained / "outcome.json")["metrics"]
            if "interpolation_share" in metrics:
                row["shares"][arm] = metrics["interpolation_share"]
            print(f"seed {seed}, {arm}: {row['test_R1'][arm]:.1f}", flush=True)
    row["cpu_seconds"] = time.process_time() - started
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """Lines with the mean of each arm over seeds, and its difference to the CLIP as it is and to
    the old recipe."""
    lines = [f"{'R@1':36} {'mean':>12} {'to the CLIP':>12} {'to old':>12}  each seed"]
    for arm in rows[0]["test_R1"]:
        values = [row["test_R1"][arm] for row in rows]
        start = [row["test_R1"]["CLIP as it is"] for row in rows]
        gains = [value - before for value, before in zip(values, start, strict=True)]
        of_old = ""
        if "rates" in arm:
            old = f"old, rates {arm.rpartition('rates ')[2]}"
            differences = [row["test_R1"][arm] - row["test_R1"][old] for row in rows]
            of_old = plus_minus(differences, "+")
        each = " ".join(f"{value:.1f}" for value in values)
        lines.append(
            f"{arm:36} {plus_minus(values):>12} {plus_minus(gains, '+'):>12} {of_old:>12}  {each}"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder of all results")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--clip-steps", type=int, default=1000, help="steps of the CLIP on stills")
    parser.add_argument("--tiny", action="store_true", help="a small sample, which teaches nothing")
    parser.add_argument("--epochs", type=float, default=3, help="of a fine-tuning on clips")
    parser.add_argument(
        "--results", type=Path, default=Path(__file__).parent / "results", help="folder of the rows"
    )
    options = parser.parse_args(arguments)
    options.results.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in options.seeds:
        file = options.results / f"seed-{seed}.json"
        if not file.exists():
            write_json(file, row_of(seed, options))
        rows.append(read_json(file))
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
