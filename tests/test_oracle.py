"""The models against numbers recorded from the authors' code, on weights that both generate under
its key names."""

import json
import os
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from torch import Tensor

from alpro.models.alpro import ModelConfig, VideoConfig
from alpro.models.frames import NormalizedModel
from alpro.models.official import PAPER, PROMPTER, build
from alpro.models.text import TextConfig
from alpro.models.weights import select_prefix
from alpro.stages.training.batch import Batch
from alpro.stages.training.pretrain_objective import PretrainObjective, PretrainSettings

ORACLE = Path(
    os.environ.get("ALPRO_ORACLE") or Path(__file__).parents[2] / "shared" / "oracle"
)
FILES = sorted(ORACLE.glob("*_*.npz"))
INPUTS = {"seed", "num_frames", "text_ids", "text_mask", "boxes"}
TOLERANCE = 1e-5

# The oracle's README: the places (sample, position) of its masked words, and the id of [MASK].
MASKED_SAMPLES = [0, 0, 1]
MASKED_POSITIONS = [2, 5, 3]
MASK_ID = 103

Arrays = dict[str, np.ndarray]
Results = Iterator[tuple[str, Tensor]]


@pytest.mark.skipif(
    not FILES, reason=f"no *_*.npz in {ORACLE}; set ALPRO_ORACLE to the oracle's folder"
)
# Each builds a model of full size; tests/models/test_golden.py has small models of each task.
@pytest.mark.long
@pytest.mark.parametrize("path", FILES, ids=str)
def test_the_numbers_are_those_of_the_official_code(path):
    with np.load(path) as file:
        arrays: Arrays = dict(file)
    compute = {"retrieval": retrieval, "qa": qa, "pretrain": pretrain}[
        path.stem.split("_")[0]
    ]
    with torch.inference_mode():
        differences = {
            name: difference(result, arrays[name]) for name, result in compute(arrays)
        }
    assert differences.keys() == arrays.keys() - INPUTS
    assert {
        name: value for name, value in differences.items() if not value < TOLERANCE
    } == {}


def difference(ours, theirs):
    assert ours.shape == theirs.shape
    return float(np.abs(ours.numpy().astype(np.float64) - theirs).max())


def retrieval(arrays):
    model = imported("retrieval", arrays).bundle.model
    ids, mask, frames = inputs(arrays)
    video = model.encode_video(frames)
    text = model.encode_text(ids, mask)
    yield (
        "itc_scores",
        model.project_video(video)
        @ model.project_text(text).T
        / model.clamped_temperature(),
    )
    pairs = len(ids)
    every_text = [
        tensor.repeat(pairs, *[1] * (tensor.dim() - 1)) for tensor in (text, mask)
    ]
    yield (
        "itm_logits",
        model.match(*every_text, video.repeat_interleave(pairs, dim=0)).view(
            pairs, pairs, 2
        ),
    )


def qa(arrays):
    model = imported("qa", arrays).bundle.model
    ids, mask, frames = inputs(arrays)
    yield (
        "logits",
        model.answer(model.encode_text(ids, mask), mask, model.encode_video(frames)),
    )


def pretrain(arrays):
    """One pass of the objective that training uses; intermediate values are recorded."""
    size = len(arrays["text_ids"])
    assert size == 2, (
        "the negatives of more than two pairs are drawn at random: nothing to compare"
    )
    weights = official_weights("pretrain", arrays)
    own = {key: value for key, value in weights.items() if not key.startswith(PROMPTER)}
    teacher = select_prefix(weights, PROMPTER)
    model = imported("pretrain", arrays, own).bundle.model
    imported_prompter = imported("prompter", arrays, teacher)
    prompter = imported_prompter.bundle.model
    # With these statistics the oracle's frames, which are normalized already, go through
    # normalization unchanged, and a black pixel is the zero that the oracle has outside the crop.
    identity = [0.0] * 3, [1.0] * 3
    objective = PretrainObjective(
        model,
        *identity,
        NormalizedModel(prompter, *identity),
        imported_prompter.bundle.prompts,
        PretrainSettings(threshold=0.0),
    )
    methods = {
        "video": "encode_video",
        "text": "encode_text",
        "video_feat": "project_video",
    }
    methods |= {
        "text_feat": "project_text",
        "mlm_scores": "mlm_scores",
        "mpm_logits": "pem_logits",
    }
    seen = {name: noted(model, method) for name, method in methods.items()}
    seen |= {
        "itm_scores": noted(model.vtm_head, "forward"),
        "mpm_labels": noted(prompter, "probabilities"),
    }
    batch = masked_batch(arrays)
    batch = objective.eval().with_pseudo_labels(batch)
    loss, metrics = objective(batch, objective.step_counts([batch]))

    yield "video_embeds", seen["video"][0][:, ::28]
    # The clean texts; the masked ones are behind them.
    yield "text_embeds", seen["text"][0][:size]
    for name in ("video_feat", "text_feat", "itm_scores", "mpm_logits", "mpm_labels"):
        yield name, seen[name][0]
    words = seen["mlm_scores"][0][
        torch.arange(seen["mlm_scores"][0].shape[1])
        < (batch.labels != -100).sum(1)[:, None]
    ]
    yield "mlm_scores_masked", words[:, : arrays["mlm_scores_masked"].shape[1]]
    for ours, theirs in (
        ("vtc", "itc"),
        ("vtm", "itm"),
        ("mlm", "mlm"),
        ("pem", "mpm"),
    ):
        yield f"{theirs}_loss", metrics[f"loss_{ours}"]
    torch.testing.assert_close(
        loss, sum(metrics[f"loss_{name}"] for name in objective.losses)
    )


def noted(owner, method):
    """Records the return values of a method."""
    results = []
    call = getattr(owner, method)

    def note(*args, **kwargs):
        results.append(call(*args, **kwargs))
        return results[-1]

    setattr(owner, method, note)
    return results


def masked_batch(arrays):
    """The oracle's inputs as training has them."""
    ids, mask, frames = inputs(arrays)
    masked = ids.clone()
    labels = torch.full_like(ids, -100)
    masked[MASKED_SAMPLES, MASKED_POSITIONS] = MASK_ID
    labels[MASKED_SAMPLES, MASKED_POSITIONS] = ids[MASKED_SAMPLES, MASKED_POSITIONS]
    items = [str(n) for n in range(len(ids))], torch.arange(len(ids)), frames
    # Recorded as top, left, height, width.
    boxes = torch.from_numpy(arrays["boxes"][:, [1, 0, 3, 2]])
    return Batch(
        0,
        "video",
        *items,
        ids,
        mask,
        uniforms=torch.rand(len(ids), 2),
        masked=masked,
        labels=labels,
        boxes=boxes,
        max_masked=8,
    )


def inputs(arrays):
    """Word ids and mask (B, L), and frames (B, T, 3, 224, 224)."""
    ids = torch.from_numpy(arrays["text_ids"])
    mask = torch.from_numpy(arrays["text_mask"])
    shape = (len(ids), int(arrays["num_frames"]), 3, 224, 224)
    return ids, mask, 2 * torch.from_numpy(uniform("video", shape, int(arrays["seed"])))


def imported(task, arrays, weights=None):
    """The model of `alpro model import`."""
    state = weights or official_weights(task, arrays)
    model = build(
        state, task, tokenizer(), words=None, max_text_tokens=None, sizes=PAPER
    )
    assert model.unknown == []
    frames = int(arrays["num_frames"])
    assert model.bundle.model.config == ModelConfig(video=VideoConfig(frames=frames))
    return model


@cache
def tokenizer():
    """A tokenizer with as many word pieces as BERT's; it encodes no text."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [f"word{number}" for number in range(TextConfig().vocab_size - len(words))]
    return Tokenizer(
        WordPiece(dict(zip(words, range(len(words)), strict=True)), unk_token="[UNK]")
    )


def official_weights(kind, arrays):
    """Every tensor of an official checkpoint under its official name."""
    shapes = {
        key: tuple(shape)
        for key, shape in json.loads((ORACLE / f"keys_{kind}.json").read_text()).items()
    }
    return generate(
        {key: resized(key, shape, arrays) for key, shape in shapes.items()},
        int(arrays["seed"]),
    )


def resized(key, shape, arrays):
    """The shape of a key in the model that the arrays come from: its frames, entities and
    answers."""
    if key.endswith("time_embed"):
        return (1, int(arrays["num_frames"]), shape[2])
    if key.startswith("mpm_head.2.") or key.endswith("prompt_feat"):
        return (arrays["mpm_logits"].shape[1], *shape[1:])
    if key.startswith("classifier.2."):
        return (arrays["logits"].shape[1], *shape[1:])
    return shape


def generate(shapes, seed):
    """The oracle's weights, by the rules of its README."""
    state = {
        key: torch.from_numpy(np.asarray(weight(key, shape, seed)))
        for key, shape in shapes.items()
    }
    for key in state:
        if key.endswith("cls.predictions.decoder.weight"):
            words = "bert.embeddings.word_embeddings.weight"
            state[key] = state[key.replace("cls.predictions.decoder.weight", words)]
        elif key.endswith("cls.predictions.decoder.bias"):
            state[key] = state[key.replace("decoder.bias", "bias")]
    return state


def weight(key, shape, seed):
    if key.endswith("position_ids"):
        return np.arange(shape[-1]).reshape(shape)
    if key.endswith("temp"):
        return np.full(shape, 0.07, np.float32)
    values = uniform(key, shape, seed)
    if len(shape) == 1 and key.endswith("weight"):
        return 1 + np.float32(0.1) * values
    if "prompt_feat" in key:
        return values / np.linalg.norm(values, axis=-1, keepdims=True)
    return np.float32(0.05) * values


def uniform(key, shape, seed):
    """float32 in [-1, 1), the same for a key, a shape and a seed wherever it is drawn."""
    random = np.random.RandomState((zlib.crc32(key.encode()) + seed) & 0xFFFFFFFF)
    return (
        2 * random.random_sample(int(np.prod(shape))).astype(np.float32) - 1
    ).reshape(shape)
