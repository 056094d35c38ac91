"""Fine-tunes for question answering: classification among the training split's answers (paper, section 4.1)."""

from collections import Counter
from pathlib import Path
from typing import cast

import torch
from pydantic import Field

from alpro.errors import InputError
from alpro.models.alpro import Alpro
from alpro.models.folder import ModelFolder, start_from
from alpro.shards.reader import read_index
from alpro.stages import Stage
from alpro.stages.artifacts.store import FILE, Outcome, Resources
from alpro.stages.evaluation.encode import load_model
from alpro.stages.evaluation.validation import validate_qa
from alpro.stages.training.config import TrainingConfig
from alpro.stages.training.distributed import world
from alpro.stages.training.examples import TrainingDataset
from alpro.stages.training.loop import fit
from alpro.stages.training.objective import QaObjective
from alpro.stages.vocabulary.word_lists import read_word_list

VERSION = 3
STAGE = Stage(help="fine-tune for question answering", kind="training")


class Config(TrainingConfig):
    """Fine-tuning for question answering."""

    frames: int = Field(16, ge=1, description="frames of a clip; the time embedding is resized to it")
    answers: int = Field(1500, ge=2, description="the most frequent training answers, which are what can be answered")
    answers_file: str = Field(
        "",
        description="a list of answers in place of these, all of which can be answered, such as the official "
        "ans2label.json: a JSON object of answer to number, a JSON list, or lines",
        json_schema_extra=FILE,
    )


def run(config: Config, inputs: dict[str, Path], out: Path, resources: Resources) -> Outcome:
    """inputs: `model` and, by their names, the corpora of the phases. Writes model/, the best on validation."""
    with world(resources) as here:
        torch.manual_seed(config.seed)
        start = load_model(inputs["model"], here.device)
        if config.answers_file:
            answers = read_word_list(Path(config.answers_file), "finetune_qa.answers_file")
        else:
            answers = frequent_answers([inputs[name] for name in config.corpora], config.answers)
        shape = start.model.config
        shape = shape.model_copy(update={"video": shape.video.model_copy(update={"frames": config.frames})})
        model, _ = start_from(Alpro(shape, answers=len(answers)).to(here.device), cast(Alpro, start.model))
        numbers = {answer: i for i, answer in enumerate(answers)}
        data = TrainingDataset(
            config,
            inputs,
            start.tokenizer,
            "question",
            config.frames,
            shape.video.image_size,
            answers=numbers,
            rank=here.rank,
            ranks=here.size,
        )
        objective = QaObjective(model, list(start.preprocessing.mean), list(start.preprocessing.std)).to(here.device)
        validate, select = validate_qa(objective, inputs, start.tokenizer, answers, config)
        metrics = fit(objective, data, config, out, here, resources, validate, select)
        if here.main:
            preprocessing = start.preprocessing.model_copy(update={"max_text_tokens": config.max_text_tokens})
            ModelFolder("qa", model, start.tokenizer, preprocessing, answers=answers).save_pretrained(out / "model")
        return Outcome(
            {"steps": len(data), "questions": sum(len(s) for s in data.sources), "answers": len(answers)}, metrics
        )


def frequent_answers(folders: list[Path], most: int) -> list[str]:
    """The most frequent answers of the training splits, ties in alphabetical order."""
    counts: Counter[str] = Counter()
    for folder in dict.fromkeys(folders):
        for row in read_index(folder, ["split", "questions"]).to_pylist():
            if row["split"] == "train":
                counts.update(q["answer"] for q in row["questions"])
    if len(counts) < 2:
        raise InputError(f"the training split has {len(counts)} different answers; question answering needs at least 2")
    return [answer for answer, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]]
