"""A corpus of clips that become brighter or darker, and a fake model that reads it off the
frames."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from alpro.models.alpro import Alpro, ModelConfig
from alpro.models.folder import ModelBundle
from alpro.models.frames import NormalizedModel
from alpro.models.word_pieces import train_tokenizer
from alpro.stages.evaluation.loaded_model import LoadedModel


def statistics(folder: Path, **counts: tuple[int, int]) -> Path:
    """Writes the numbers of items that a corpus has, and was to have."""
    nothing = dict.fromkeys(("items", "captions", "questions"), (0, 0))
    splits = {"train": nothing, "validation": nothing}
    (folder / "statistics.json").write_text(
        json.dumps({"splits": splits | {"test": counts}})
    )
    also_in_training(folder)
    return folder


def also_in_training(folder: Path, **splits: str) -> None:
    """Writes the items, each with its split, that share a caption with a training item."""
    columns = {
        "id": pa.array(splits, pa.string()),
        "split": pa.array(splits.values(), pa.string()),
        "captions": pa.array([True] * len(splits), pa.bool_()),
        "frames": pa.array([False] * len(splits), pa.bool_()),
    }
    pq.write_table(pa.table(columns), folder / "overlap.parquet")


class Reading(Alpro):
    """A fake model that reads off frames how bright they are one after the other, and off a text
    its last word.

    Both are embeddings: rising, falling, or neither; a still clip is rising if it is brighter than
    grey, else falling. A clip matches the text that names what it is, and a question is answered by
    it.
    """

    def __init__(
        self,
        shape: ModelConfig,
        answers: list[str],
        words: dict[int, int],
        certainty: float,
    ):
        super().__init__(shape, answers=len(answers))
        self.multimodal_encoder = Pairing()
        self.vtm_head = Matching()
        self.qa_head = Answering(len(answers))
        self.words = words
        self.seen = list[Tensor]()
        self.lengths = set[int]()
        self.certainty = certainty

    def encode_video(self, frames: Tensor, cls_only: bool = False) -> Tensor:
        self.seen.append(frames)
        means = frames.mean(dim=(2, 3, 4))
        rising, falling = (
            (means.diff(dim=1) * sign > 0).all(dim=1) for sign in (1, -1)
        )
        still = (frames == frames[:, :1]).flatten(1).all(dim=1)
        place = torch.where(rising, 0, torch.where(falling, 1, 2))
        place = torch.where(still, (means[:, 0] < 0).long(), place)
        tokens = nn.functional.one_hot(place, self.config.video.width).float()
        tokens[still & (place == 1)] *= self.certainty
        return tokens[:, None].expand(-1, 1 + self.config.video.grid**2, -1)

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        self.lengths.add(int(mask.sum(1).max()))
        last = ids.gather(1, mask.sum(1, keepdim=True) - 2).squeeze(1)  # before [SEP]
        place = torch.tensor([self.words.get(int(word), 3) for word in last])
        tokens = nn.functional.one_hot(place, self.config.text.width).float()
        return tokens[:, None].expand(-1, ids.shape[1], -1)

    def project_video(self, tokens: Tensor) -> Tensor:
        return tokens[:, 0]

    project_text = project_video


class Pairing(nn.Module):
    """Both [CLS] of each pair."""

    def project(self, tokens: Tensor) -> Tensor:
        return tokens

    def fuse_pairs(
        self,
        text: Tensor,
        text_indices: Tensor,
        video: Tensor,
        video_qkv: Tensor,
        video_indices: Tensor,
    ) -> Tensor:
        return torch.cat([text[text_indices, 0], video_qkv[video_indices, 0]], dim=1)


class Matching(nn.Module):
    def forward(self, pairs: Tensor) -> Tensor:
        same = pairs.unflatten(1, (2, -1)).prod(dim=1).sum(1)
        # Margins of -2 and -6.
        return torch.stack([torch.zeros_like(same), 4 * same - 6], dim=1)


class Answering(nn.Module):
    def __init__(self, answers: int):
        super().__init__()
        self.answers = answers

    def forward(self, pairs: Tensor) -> Tensor:
        return 3 * pairs.unflatten(1, (2, -1))[:, 1, : self.answers]


def grey(first: int, last: int) -> np.ndarray:
    """Frames (8, 32, 32, 3) whose brightness goes from one value to another."""
    return (
        np.linspace(first, last, 8)
        .astype(np.uint8)
        .repeat(32 * 32 * 3)
        .reshape(8, 32, 32, 3)
    )


@pytest.fixture
def clips_of_brightness(tmp_path, corpus_of):
    """Two test clips that become brighter, two that become darker; training has more questions
    about the latter."""
    ramps = {"up": grey(40, 220), "down": grey(220, 40)}
    way = {"up": "rising", "down": "falling"}

    def row(name, kind, split):
        asked = [{"question": "how does it go?", "answer": way[kind], "type": "how"}]
        texts = {"captions": [f"light {way[kind]}"], "questions": asked}
        return {"id": name, "split": split, "frames": ramps[kind], **texts}

    rows = [row(f"{kind}{n}", kind, "test") for n in range(2) for kind in ramps]
    rows += [
        row(f"train{n}", kind, "train") for n, kind in enumerate(["up", "down", "down"])
    ]
    return statistics(
        corpus_of(tmp_path / "clips", rows), captions=(4, 4), questions=(4, 4)
    )


@pytest.fixture
def reading(tiny_model):
    """reading(mean, std, certainty): the fake model, loaded."""

    def make(mean=0.5, std=0.25, certainty=1.0):
        own = train_tokenizer(
            ["light rising", "light falling", "how does it go?"] * 3, 200
        )
        words = {own.token_to_id("rising"): 0, own.token_to_id("falling"): 1}
        answers = ["rising", "falling", "other"]
        model = Reading(tiny_model(own.get_vocab_size()), answers, words, certainty)
        encoder = NormalizedModel(model, (mean,) * 3, (std,) * 3).eval()
        bundle = ModelBundle("qa", model, own, answers=answers)
        return LoadedModel("reader", bundle, encoder, length=12)

    return make
