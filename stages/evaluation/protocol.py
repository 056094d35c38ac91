"""What an evaluation is of: the items of a split, the model as it sees them, and how pairs are scored."""

from pathlib import Path
from typing import Literal, cast

import numpy as np
import pyarrow.parquet as pq
import torch
from pydantic import Field

from alpro.errors import InputError
from alpro.files import read_json
from alpro.models.alpro import Alpro
from alpro.models.folder import ModelFolder, set_frames
from alpro.shards.reader import ShardReader
from alpro.stages.artifacts.store import StageConfig, require
from alpro.stages.evaluation.encode import Reorder, Texts, Videos, evaluator, load_model
from alpro.stages.evaluation.retrieval import Gallery, encode_gallery, match_pairs
from alpro.stages.training.config import Protocol

TASKS = {"captions": "retrieval", "questions": "qa"}


class EvaluationConfig(StageConfig):
    """What every evaluation has: the corpora and their split, the protocol, and the shape of the inputs."""

    retrieval: str = Field("", description="corpus whose test captions are queries; empty: no retrieval")
    qa: str = Field("", description="corpus whose test questions are asked; empty: no question answering")
    split: Literal["validation", "test"] = Field(
        "test", description="the split; validation while choices are still made"
    )
    protocol: Protocol = Field(
        "all", description="all: the matching head on every pair; top_k: on the k most similar pairs of a query"
    )
    k: int = Field(128, ge=1, description="pairs a query that top_k matches")
    min_decoded_share: float = Field(
        0.99, ge=0, le=1, description="share of the split's items that must have been decoded; below, it is an error"
    )
    frames: int = Field(
        0,
        ge=0,
        description="frames of a clip, to which the time embedding is resized as in fine-tuning; 0: as many as in the "
        "model's training. The prompter always sees as many as in its training",
    )
    max_text_tokens: int = Field(
        0, ge=0, description="most word pieces of a text; 0: as many as in the model's training"
    )
    exclude_overlap: bool = Field(
        False,
        description="leave out items that share a caption or equal-looking frames with a training item of their corpus "
        "(listed in its overlap.parquet)",
    )

    @property
    def corpora(self) -> list[str]:
        """The names of the corpora whose items are asked for, each once."""
        return list(dict.fromkeys(filter(None, (self.retrieval, self.qa))))


def excluded(config: EvaluationConfig, folder: Path) -> set[str]:
    """The ids of items that `exclude_overlap` leaves out of a corpus."""
    if not config.exclude_overlap:
        return set()
    table = pq.read_table(require(folder, "overlap.parquet"), filters=[("split", "==", config.split)])
    return set(table["id"].to_pylist())


def check_items(config: EvaluationConfig, name: str, folder: Path) -> list[tuple[str, int, int]]:
    """How many test items of a corpus were decoded: for captions (retrieval) and questions (question answering), where
    they are asked of it, the column, the number of them that are there, and the number in the annotations.

    Raises InputError if none is there, or too small a share; a pipeline calls it before it trains anything.
    """
    counts = []
    for wanted, column in ((config.retrieval, "captions"), (config.qa, "questions")):
        if wanted != name:
            continue
        if not any(ShardReader(folder, config.split, exclude=excluded(config, folder)).column(column).to_pylist()):
            left = " that is not also in training" if config.exclude_overlap else ""
            raise InputError(
                f"{name}: no {config.split} item{left} has {column}; name some in the column split, raise "
                f"corpora.{name}.{config.split}, or leave evaluate.{TASKS[column]} empty"
            )
        there, asked = read_json(folder / "statistics.json")["splits"][config.split][column]
        if there < config.min_decoded_share * asked:
            raise InputError(
                f"{name}: the videos of {there} of {asked} {config.split} {column} could be decoded, less than "
                f"evaluate.min_decoded_share = {config.min_decoded_share:g}: scores would be of another test; see "
                f"{folder / 'rejects.parquet'}"
            )
        counts.append((column, there, asked))
    return counts


def load(config: EvaluationConfig, folder: Path, device: torch.device) -> ModelFolder:
    """A model with the configured number of frames."""
    loaded = load_model(folder, device)
    if config.frames:
        set_frames(loaded.model, config.frames)
    return loaded


def score(
    folder: ModelFolder,
    gallery: Gallery,
    config: EvaluationConfig,
    device: torch.device,
    reorder: Reorder | None = None,
) -> tuple[np.ndarray, Texts, Videos]:
    """Scores (texts, videos) by the configured protocol."""
    model = cast(Alpro, folder.model)
    texts, videos = encode_gallery(
        evaluator(folder, device), gallery, folder.tokenizer, length_of(config, folder), device, reorder
    )
    return match_pairs(model, texts, videos, config.protocol, config.k), texts, videos


def length_of(config: EvaluationConfig, folder: ModelFolder) -> int:
    return config.max_text_tokens or folder.preprocessing.max_text_tokens
