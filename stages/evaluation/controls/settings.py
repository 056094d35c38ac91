"""Controls: what is left of a score if a model, or a ranker without a model, gets only a part of the input."""

from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import numpy as np
from pydantic import Field

from alpro.stages.encoding.encode import Reorder
from alpro.stages.evaluation.controls.columns import words_only
from alpro.stages.evaluation.protocol import EvaluationConfig, excluded
from alpro.stages.evaluation.retrieval import Gallery

Name = Annotated[str, Field(pattern=r"^\w+$")]
ControlName = Literal["shuffled", "reversed", "clip_or_reversed", "single_frame", "text_only", "counterfactual"]


class Control(NamedTuple):
    """How the results name a control, and what its scores show, in a sentence for the report."""

    label: str
    meaning: str


CONTROLS: dict[ControlName, Control] = {
    "shuffled": Control(
        "frames shuffled",
        "The same model sees the frames of each clip in random order; a score that stays the same does not rest on "
        "their order.",
    ),
    "reversed": Control(
        "frames reversed",
        "The same model sees each clip backwards; a score far below the one for shuffled frames shows that the model "
        "recognizes the direction of time.",
    ),
    "clip_or_reversed": Control(
        "clip or reversed clip",
        "For each caption the model chooses between its clip and the same clip backwards; half is chance, and no model "
        "gets more on clips that fit their captions in both directions.",
    ),
    "single_frame": Control(
        "best single frame",
        "The model sees one frame as a still clip, and each pair has the score of the frame that fits it best, an "
        "optimistic choice that knows the text; what this reaches needs no video.",
    ),
    "text_only": Control(
        "text only",
        "The model answers from the question and a clip of one plain color; what exceeds the most frequent answer is "
        "learned from the wording of the questions.",
    ),
    "counterfactual": Control(
        "counterfactual captions",
        "The model chooses between a caption and the same caption with one noun, verb or direction word swapped; half "
        "means that it ignores such words or that the swapped word is just as true (counterfactual.parquet lists all "
        "pairs).",
    ),
}
WORD_LABEL = "{} known"


class ControlsConfig(EvaluationConfig):
    """Settings of an evaluation with controls."""

    word_controls: dict[Name, str | tuple[str, ...]] = Field(
        {},
        description="controls by name that rank videos only by the words of one or several columns of the manifest, "
        'such as `tags = "tags"` or `all_but_genre = ["tags", "objects.label"]`; `objects.label` reads the key `label` '
        "of a list of tables. A vertical bar separates the spellings of one word",
    )
    controls: tuple[ControlName, ...] = Field(
        (),
        description="controls to evaluate: shuffled, reversed (frames in another order); clip_or_reversed (which of "
        "the two fits the caption); single_frame (the best one as a still clip); text_only (questions without the "
        "video); counterfactual (captions with one noun, verb or direction word swapped; English; needs spaCy)",
    )
    seed: int = Field(0, ge=0, description="random seed of the shuffled frames and of the swapped words")

    def check_columns(self, folder: Path) -> None:
        if self.word_controls:
            gallery = Gallery.of(folder, self.split, excluded(self, folder))
            for paths in self.word_controls.values():
                words_only(gallery, paths)


def reverse(frames: list[int]) -> list[int]:
    return frames[::-1]


class Shuffle:
    """Shuffles frames, never to the original order; the seeded order differs from clip to clip."""

    def __init__(self, seed: int):
        self.rng = np.random.default_rng([seed, 31])

    def __call__(self, frames: list[int]) -> list[int]:
        if len(set(frames)) < 2:
            return frames
        while True:
            order = [frames[i] for i in self.rng.permutation(len(frames))]
            if order != frames:
                return order


def still(place: int) -> Reorder:
    """A still clip of one frame: the frame at `place`, repeated."""
    return lambda frames: [frames[place]] * len(frames)
