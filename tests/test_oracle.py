"""The models against numbers recorded from the authors' code, on weights that both generate under its key names."""

import json
import os
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from models.alpro import Alpro, ModelConfig, Prompter, VideoConfig
from models.losses import mlm_loss, pem_loss, vtc_loss, vtm_loss
from models.official import from_official
from stages.training.objective import box_patches, masked_positions, merged

ORACLE = Path(os.environ.get("ALPRO_ORACLE") or Path(__file__).parents[2] / "shared" / "oracle")
FILES = sorted(ORACLE.glob("*_*.npz"))
INPUTS = {"seed", "num_frames", "text_ids", "text_mask", "boxes"}
TOLERANCE = 2e-4

# The oracle's README: the places (sample, position) of its masked words, and the id of [MASK].
MASKED_SAMPLES, MASKED_POSITIONS, MASK_ID = [0, 0, 1], [2, 5, 3], 103

Arrays = dict[str, np.ndarray]
Results = Iterator[tuple[str, Tensor]]


@pytest.fixture(autouse=True)
def _no_first_values(monkeypatch: pytest.MonkeyPatch):
    """Every weight is loaded, which `load` makes sure of: drawing first values would take a third of the time."""
    monkeypatch.setattr("models.alpro.initialize", lambda model, how: None)
    for name in ("kaiming_uniform_", "uniform_", "normal_"):
        monkeypatch.setattr(torch.nn.init, name, lambda tensor, *args, **kwargs: tensor)


@pytest.mark.skipif(not FILES, reason=f"no *_*.npz in {ORACLE}; set ALPRO_ORACLE to the oracle's folder")
@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_gives_the_numbers_of_the_official_code(path: Path):
    with np.load(path) as file:
        arrays: Arrays = dict(file)
    compute = {"retrieval": retrieval, "qa": qa, "pretrain": pretrain}[path.stem.split("_")[0]]
    with torch.inference_mode():
        differences = {name: difference(result, arrays[name]) for name, result in compute(arrays)}
    assert differences.keys() == arrays.keys() - INPUTS
    assert {name: value for name, value in differences.items() if not value < TOLERANCE} == {}


def difference(ours: Tensor, theirs: np.ndarray) -> float:
    assert ours.shape == theirs.shape
    return float(np.abs(ours.numpy().astype(np.float64) - theirs).max())


def retrieval(arrays: Arrays) -> Results:
    own, _ = official_weights("retrieval", arrays)
    model = Alpro(config(arrays))
    # The official checkpoint has the MLM head, which a model for retrieval does not.
    load(model, own, unread=("mlm_head.",))
    ids, mask, frames = inputs(arrays)
    video, text = model.encode_video(frames), model.encode_text(ids, mask)
    yield "itc_scores", model.project_video(video) @ model.project_text(text).T / model.clamped_temperature()
    pairs = len(ids)
    every_text = [tensor.repeat(pairs, *[1] * (tensor.dim() - 1)) for tensor in (text, mask)]
    yield "itm_logits", model.match(*every_text, video.repeat_interleave(pairs, dim=0)).view(pairs, pairs, 2)


def qa(arrays: Arrays) -> Results:
    own, _ = official_weights("qa", arrays)
    model = Alpro(config(arrays), answers=arrays["logits"].shape[1])
    load(model, own)
    ids, mask, frames = inputs(arrays)
    yield "logits", model.answer(model.encode_text(ids, mask), mask, model.encode_video(frames))


def pretrain(arrays: Arrays) -> Results:
    size, length = arrays["text_ids"].shape
    assert size == 2, "the negatives of more than two pairs are drawn at random: nothing to compare"
    own, teacher = official_weights("pretrain", arrays)
    model = Alpro(config(arrays), entities=arrays["mpm_logits"].shape[1])
    load(model, own)
    ids, mask, frames = inputs(arrays)
    boxes = torch.from_numpy(arrays["boxes"])

    video, text = model.encode_video(frames), model.encode_text(ids, mask)
    video_feat, text_feat = model.project_video(video), model.project_text(text)
    similarity = video_feat @ text_feat.T / model.clamped_temperature()
    yield "video_embeds", video[:, ::28]
    yield "text_embeds", text
    yield "video_feat", video_feat
    yield "text_feat", text_feat
    yield "itc_loss", vtc_loss(similarity, similarity.T, torch.arange(size), torch.eye(size, dtype=torch.bool))

    # Two positives, the texts with the other video, the videos with the other text; then the masked texts.
    masked_ids, masked_words = ids.clone(), torch.full_like(ids, -100)
    masked_ids[MASKED_SAMPLES, MASKED_POSITIONS] = MASK_ID
    masked_words[MASKED_SAMPLES, MASKED_POSITIONS] = ids[MASKED_SAMPLES, MASKED_POSITIONS]
    masked = model.encode_text(masked_ids, mask)
    other = [1, 0]
    pairs = [(text, mask, video), (text, mask, video[other]), (text[other], mask[other], video), (masked, mask, video)]
    # As in training, the last layer computes what is read alone: [CLS] and the crop's patches, [CLS], masked words.
    cls = torch.zeros(size, 1, dtype=torch.long)
    patches, inside = box_patches(boxes, model.config.video.grid)
    words, labels = masked_positions(masked_words, 8)
    read = [torch.cat([cls, length + 1 + patches], dim=1), cls.repeat(2, 1), words]
    positives, negatives, masked = model.fuse_at(read, *merged(pairs))
    scores = model.vtm_head(torch.cat([positives[:, 0], negatives[:, 0]]))
    yield "itm_scores", scores
    yield "itm_loss", vtm_loss(scores, torch.tensor([1, 1, 0, 0, 0, 0]), torch.ones(3 * size)) / (3 * size)

    scores = model.mlm_scores(masked)
    yield "mlm_scores_masked", scores[labels != -100][:, : arrays["mlm_scores_masked"].shape[1]]
    yield "mlm_loss", mlm_loss(scores.flatten(0, 1), labels.flatten()) / len(MASKED_SAMPLES)

    prompter = Prompter(config(arrays))
    prompts = teacher.pop("video_prompt_feat")
    load(prompter, imported(teacher, arrays), unread=("multimodal_encoder.", "mlm_head.", "vtm_head."))
    pseudo_labels = prompter.pseudo_labels(frames, boxes, prompts)
    logits = model.pem_logits(positives[:, 1:], inside)
    yield "mpm_labels", pseudo_labels
    yield "mpm_logits", logits
    yield "mpm_loss", pem_loss(logits, pseudo_labels, threshold=0.0)[0] / size


def config(arrays: Arrays) -> ModelConfig:
    """The paper's model, for the number of frames that the file was made with."""
    return ModelConfig(video=VideoConfig(frames=int(arrays["num_frames"])))


def inputs(arrays: Arrays) -> tuple[Tensor, Tensor, Tensor]:
    """Word ids and mask (B, L), and frames (B, T, 3, 224, 224)."""
    ids, mask = torch.from_numpy(arrays["text_ids"]), torch.from_numpy(arrays["text_mask"])
    shape = (len(ids), int(arrays["num_frames"]), 3, 224, 224)
    return ids, mask, 2 * torch.from_numpy(uniform("video", shape, int(arrays["seed"])))


def load(model: torch.nn.Module, weights: dict[str, Tensor], unread: tuple[str, ...] = ()) -> None:
    """Gives the model its weights; those named by `unread` may be left over, and nothing else."""
    own = {key: value for key, value in weights.items() if not (unread and key.startswith(unread))}
    model.load_state_dict(own, assign=True)
    model.eval()


def official_weights(kind: str, arrays: Arrays) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The weights of the model under this project's names, and the prompter's, its prompts too, as they are."""
    shapes = {key: tuple(shape) for key, shape in json.loads((ORACLE / f"keys_{kind}.json").read_text()).items()}
    state = generate({key: resized(key, shape, arrays) for key, shape in shapes.items()}, int(arrays["seed"]))
    teacher = {key.removeprefix("prompter."): state.pop(key) for key in list(state) if key.startswith("prompter.")}
    teacher.pop("image_prompt_feat", None)
    return imported(state, arrays), teacher


def imported(state: dict[str, Tensor], arrays: Arrays) -> dict[str, Tensor]:
    weights, _, unknown = from_official(state, config(arrays))
    assert unknown == []
    return weights


def resized(key: str, shape: tuple[int, ...], arrays: Arrays) -> tuple[int, ...]:
    """The shape of a key in the model that the arrays come from: its frames, entities and answers."""
    if key.endswith("time_embed"):
        return (1, int(arrays["num_frames"]), shape[2])
    if key.startswith("mpm_head.2.") or key.endswith("prompt_feat"):
        return (arrays["mpm_logits"].shape[1], *shape[1:])
    if key.startswith("classifier.2."):
        return (arrays["logits"].shape[1], *shape[1:])
    return shape


def generate(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """The oracle's weights, by the rules of its README."""
    state = {key: torch.from_numpy(np.asarray(weight(key, shape, seed))) for key, shape in shapes.items()}
    for key in state:
        if key.endswith("cls.predictions.decoder.weight"):
            words = "bert.embeddings.word_embeddings.weight"
            state[key] = state[key.replace("cls.predictions.decoder.weight", words)]
        elif key.endswith("cls.predictions.decoder.bias"):
            state[key] = state[key.replace("decoder.bias", "bias")]
    return state


def weight(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
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


def uniform(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """float32 in [-1, 1), the same for a key, a shape and a seed wherever it is drawn."""
    random = np.random.RandomState((zlib.crc32(key.encode()) + seed) & 0xFFFFFFFF)
    return (2 * random.random_sample(int(np.prod(shape))).astype(np.float32) - 1).reshape(shape)
