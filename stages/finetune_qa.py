"""Fine-tunes for question answering as classification of the training answers (paper, section
4.1)."""

from collections import Counter
from pathlib import Path

import torch
from pydantic import Field, model_validator

from alpro.errors import InputError
from alpro.inference.encoding import load_model
from alpro.models.folder import ModelBundle
from alpro.models.words import read_word_list
from alpro.shards.reader import read_index
from alpro.stages.evaluation.validation import validate_qa
from alpro.stages.execution.interface import FILE, Needs, Outcome, Pipeline, Resources, StageInputs
from alpro.stages.training.config import TrainingConfig
from alpro.stages.training.objective import QaObjective
from alpro.stages.training.stage import Training, fine_tuned, train

VERSION = 7  # a byte order mark is no part of the first answer


class Config(TrainingConfig, frozen=True):
    """Fine-tuning for question answering; the official values are those of `msrvtt_qa`."""

    frames: int = Field(
        default=16, ge=1, description="frames of a clip; the time embedding is resized"
    )
    answers: int = Field(default=1500, ge=2, description="answers, the most frequent in training")
    answers_file: str = Field(
        default="",
        description="a file of answers instead: a JSON object of answer to index, a JSON list or "
        "lines",
        json_schema_extra=FILE,
    )

    @model_validator(mode="after")
    def _no_contrast(self) -> "Config":
        if self.contrast == "batch":
            raise ValueError(
                "contrast = batch: question answering has no contrastive loss; remove the key"
            )
        return self


class Inputs(StageInputs):
    """The pre-trained model, and the corpora of the phases."""

    model: Path
    corpora: dict[str, Path]


def needs(pipeline: Pipeline) -> Needs | None:
    config: Config | None = pipeline.finetune_qa
    if config is None:
        return None

    # `start` replaces pre-training: the model is a folder of the user's then.
    folders = {"model": pipeline.start} if pipeline.start else {}
    return Needs(config, {"model": "pretrain"}, folders, config.corpora)


def run(config: Config, inputs: Inputs, out: Path, resources: Resources) -> Outcome:
    """Writes model/ with the best weights on validation."""

    def build(device: torch.device) -> Training:
        start = load_model(inputs.model, device)
        if config.answers_file:
            answers = read_word_list(Path(config.answers_file), "finetune_qa.answers_file")
        else:
            folders = [inputs.corpora[name] for name in config.corpora]
            answers = frequent_answers(folders, config.answers)

        model = fine_tuned(start, config.frames, device, answers)
        objective = QaObjective(
            model,
            mean=start.preprocessing.mean,
            std=start.preprocessing.std,
            answers=answers,
        ).to(device)
        validate, select = validate_qa(objective, inputs.corpora, start.tokenizer, answers, config)

        # Row i of the head is answers[i]: the folder holds both.
        bundle = ModelBundle("qa", model, start.tokenizer, start.preprocessing, answers=answers)
        return Training(bundle, objective, validate, select)

    return train(build, config, inputs.corpora, out, resources)


def frequent_answers(folders: list[Path], count: int) -> list[str]:
    """The `count` most frequent answers of the training splits, ties in alphabetical order. Raises
    InputError if the training splits have fewer than two."""
    counts: Counter[str] = Counter()
    for folder in dict.fromkeys(folders):  # two names may have one folder
        for row in read_index(folder, ["split", "questions"]).to_pylist():
            if row["split"] == "train":
                counts.update(question["answer"] for question in row["questions"])

    if len(counts) < 2:
        raise InputError(
            f"the training split has {len(counts)} different answers; question answering needs at "
            "least 2"
        )
    # `Counter.most_common` keeps ties in the order of the rows.
    return sorted(counts, key=lambda answer: (-counts[answer], answer))[:count]
