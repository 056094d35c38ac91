"""Fine-tune for question answering, a classification of the training answers (paper, section 4.1)."""

from collections import Counter
from itertools import chain
from pathlib import Path

import torch
from pydantic import Field

from alpro.errors import InputError
from alpro.models.folder import ModelBundle
from alpro.models.words import read_word_list
from alpro.stages.evaluation.evaluate_model import Asked
from alpro.stages.execution.interface import (
    Corpora,
    Count,
    FilePath,
    Outcome,
    Resources,
    StageInputs,
)
from alpro.stages.training.config import TrainingConfig
from alpro.stages.training.objective import QaObjective
from alpro.stages.training.stage import (
    Training,
    build_fine_tuned,
    train,
)
from alpro.stages.vocabulary.nouns import training_texts

VERSION = 7  # a byte order mark does not belong to the first answer


class Config(TrainingConfig, frozen=True):
    """Fine-tuning for question answering; `msrvtt_qa` has the official values."""

    frames: Count = 16
    """frames of a clip; the time embedding is resized"""
    answers: int = Field(default=1500, ge=2)
    """answers, the most frequent in training"""
    answers_file: FilePath = ""
    """a file of answers instead: a JSON object of answer to index, a JSON list or lines"""

    @property
    def compares_pairs(self) -> bool:
        return False


class Inputs(StageInputs):
    """The pre-trained model, and the corpora of the phases."""

    model: Path
    corpora: Corpora


def run(config: Config, inputs: Inputs, out: Path, resources: Resources) -> Outcome:
    """Write model/ with the best weights on validation."""

    def build(device: torch.device) -> Training:
        start = ModelBundle.from_pretrained(inputs.model, device)
        if config.answers_file:
            answers = read_word_list(
                Path(config.answers_file), "finetune_qa.answers_file"
            )
        else:
            folders = [inputs.corpora[name] for name in config.corpora]
            answers = frequent_answers(folders, config.answers)

        # Row i of the head is the class of answers[i], so the folder has both.
        bundle = build_fine_tuned("qa", start, config.frames, device, answers)
        objective = QaObjective.of(bundle, answers=tuple(answers))
        return Training(bundle, objective, Asked(), select="validation/qa/acc")

    return train(build, config, inputs.corpora, out, resources)


def frequent_answers(folders: list[Path], count: int) -> list[str]:
    """Return the `count` most frequent answers of the training splits, ties in alphabetical order.

    Raises:
        InputError: If the training splits have fewer than two different answers.
    """
    distinct = dict.fromkeys(folders)  # two corpora may be the same folder
    asked = chain.from_iterable(training_texts(distinct, "questions"))
    counts = Counter(question["answer"] for question in asked)
    if len(counts) < 2:
        raise InputError(
            f"the training split has {len(counts)} different answers; question answering needs at "
            "least 2"
        )
    # `Counter.most_common` keeps ties in the order of the rows.
    return sorted(counts, key=lambda answer: (-counts[answer], answer))[:count]
