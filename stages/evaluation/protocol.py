"""The evaluation protocol: its configuration, and the items of a split."""

from pathlib import Path
from typing import Literal

import pyarrow.parquet as pq
from pydantic import Field, NonNegativeInt

from alpro.errors import InputError
from alpro.files import read_json
from alpro.shards.reader import ShardReader
from alpro.stages.evaluation.controls import ControlName
from alpro.stages.evaluation.results import Results
from alpro.stages.execution.interface import Corpora, Share, StageConfig, file_or_word

TOP_K = "most similar pairs of each query that matching scores; 0: all"
OWN_CLIP = "clip"  # as `baseline`: the CLIP that training starts from
TASKS = {"captions": "retrieval", "questions": "qa"}


class EvaluationConfig(StageConfig, frozen=True):
    """Evaluation of the models of a pipeline. Controls are computed only for fine-tuned models."""

    retrieval: str = ""
    """corpus for retrieval; empty: none"""
    qa: str = ""
    """corpus for question answering; empty: none"""
    baseline: str = Field(default="", json_schema_extra=file_or_word(OWN_CLIP))
    """a CLIP or SigLIP to compare with in retrieval: a hub name, a folder, or `clip` for the one
    that training starts from"""
    split: Literal["validation", "test"] = "test"
    """split to evaluate; use validation to choose hyperparameters"""
    top_k: NonNegativeInt = Field(default=0, description=TOP_K)
    min_decoded_share: Share = 0.99
    """minimum fraction of decoded items of the split"""
    frames: NonNegativeInt = 0
    """frames of a clip in retrieval; 0: as in training"""
    max_text_tokens: NonNegativeInt = 0
    """maximum tokens of a caption in retrieval; 0: as in training"""
    exclude_overlap: bool = True
    """exclude items that share a caption or similar frames with a training item
    (overlap.parquet)"""
    mixed_precision: bool = True
    """encoders in bfloat16 where training would use it"""
    entity_crops: NonNegativeInt = 0
    """random crops of each clip for scores of the prompter; 0: whole clips only"""
    controls: tuple[ControlName, ...] = ()
    """shuffled, reversed, single_frame (the best one as a still clip), text_only (questions without
    the video)"""
    seed: NonNegativeInt = 0
    """seed of the shuffled frames"""
    contrasts: tuple[tuple[str, str], ...] = ()
    """pairs of answers to compare, such as left and right"""

    @property
    def texts(self) -> list[tuple[str, str]]:
        """The columns of texts to evaluate, each with the name of its corpus."""
        columns = (("captions", self.retrieval), ("questions", self.qa))
        return [(column, name) for column, name in columns if name]

    @property
    def corpora(self) -> list[str]:
        """The distinct names of the corpora to evaluate."""
        return list(dict.fromkeys(filter(None, (self.retrieval, self.qa))))


def also_in_training(folder: Path, split: str) -> set[str]:
    """Return the ids of the items of a split that share a caption or near-duplicate frames with a
    training item."""
    is_split = [("split", "==", split)]
    table = pq.read_table(folder / "overlap.parquet", filters=is_split)
    return set(table["id"].to_pylist())


def find_excluded(config: EvaluationConfig, folder: Path) -> set[str]:
    """Return the ids of the items that `exclude_overlap` removes from a corpus."""
    return also_in_training(folder, config.split) if config.exclude_overlap else set()


def check_items(
    config: EvaluationConfig, column: str, name: str, folder: Path
) -> tuple[int, int]:
    """Check that enough evaluation items of a corpus are decoded. The pipeline calls it before
    training.

    Args:
        column: captions (retrieval) or questions (question answering).
        name: Name of the corpus.
        folder: Folder of the corpus.

    Returns:
        How many captions or questions of the split are decoded, and how many are annotated.

    Raises:
        InputError: If no item, or too small a fraction, is decoded.
    """
    split = config.split
    excluded = find_excluded(config, folder)
    reader = ShardReader(folder, split, exclude=excluded)
    if not any(reader.column(column).to_pylist()):
        raise InputError(
            f"{name}: no {split} item has {column}, without the {len(excluded)} that are also in "
            f"training; assign some in the column split, raise corpora.{name}.{split}, or set "
            f"evaluate.{TASKS[column]} to an empty string or evaluate.exclude_overlap to false"
        )

    # The statistics also count the items that could not be decoded.
    statistics = read_json(folder / "statistics.json")
    decoded, annotated = statistics["splits"][split][column]
    if decoded < config.min_decoded_share * annotated:
        raise InputError(
            f"{name}: the videos of {decoded} of {annotated} {split} {column} could be decoded, less "
            f"than evaluate.min_decoded_share = {config.min_decoded_share:g}: scores would not be "
            f"comparable; see {folder / 'rejects.parquet'}"
        )
    return decoded, annotated


def describe_data(results: Results, config: EvaluationConfig, corpora: Corpora) -> None:
    """Add the items that could not be decoded or are also in training, if any.

    Raises:
        InputError: As `check_items` does.
    """
    for column, name in config.texts:
        decoded, annotated = check_items(config, column, name, corpora[name])
        if decoded < annotated:
            key = f"decoded/{name}/{column}"
            results.add_share(key, f"{column} of {name}", decoded, annotated)

    for name in config.corpora:
        # A row whether they are excluded or not: with them, scores are too good.
        shared = len(also_in_training(corpora[name], config.split))
        if shared:
            table = "left_out" if config.exclude_overlap else "also_in_training"
            items = len(ShardReader(corpora[name], config.split))
            results.add_share(f"{table}/{name}", f"items of {name}", shared, items)
