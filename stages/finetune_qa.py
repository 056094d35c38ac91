"""Fine-tunes for question answering as classification of the training answers (paper, section 4.1)."""

from collections import Counter
from pathlib import Path
from typing import cast

import torch
from pydantic import Field

from alpro.errors import InputError
from alpro.models.alpro import Alpro
from alpro.models.folder import ModelFolder, start_from
from alpro.shards.reader import read_index
from alpro.stages.artifacts.store import Outcome, Resources
from alpro.stages.evaluation.encode import load_model
from alpro.stages.evaluation.validation import validate_qa
from alpro.stages.training.config import TrainingConfig
from alpro.stages.training.distributed import init_distributed
from alpro.stages.training.examples import TrainingDataset
from alpro.stages.training.loop import fit
from alpro.stages.training.objective import QaObjective
from alpro.stages.vocabulary.word_lists import read_word_list

VERSION = 3


class Config(TrainingConfig):
    """Fine-tuning for question answering."""

    frames: int = Field(16, ge=1, description="number of frames of a clip; the time embedding is resized")
    answers: int = Field(1500, ge=2, description="number of answer classes: the most frequent training answers")
    answers_file: str = Field(
        "",
        description="file with the answer classes instead, such as the official ans2label.json: a JSON object of "
        "answer to index, a JSON list, or lines",
    )


def run(config: Config, inputs: dict[str, Path], out: Path, resources: Resources) -> Outcome:
    """inputs: `model`, and the corpora of the phases by name. Writes model/ with the best weights on validation."""
    with init_distributed(resources) as world:
        torch.manual_seed(config.seed)
        start = load_model(inputs["model"], world.device)
        if config.answers_file:
            answers = read_word_list(Path(config.answers_file), "finetune_qa.answers_file")
        else:
            answers = frequent_answers([inputs[name] for name in config.corpora], config.answers)
        shape = start.model.config
        shape = shape.model_copy(update={"video": shape.video.model_copy(update={"frames": config.frames})})
        model, _ = start_from(Alpro(shape, answers=len(answers)).to(world.device), cast(Alpro, start.model))
        numbers = {answer: i for i, answer in enumerate(answers)}
        data = TrainingDataset(
            config,
            inputs,
            start.tokenizer,
            "question",
            config.frames,
            shape.video.image_size,
            answers=numbers,
            rank=world.rank,
            ranks=world.size,
        )
        objective = QaObjective(model, list(start.preprocessing.mean), list(start.preprocessing.std)).to(world.device)
        validate, select = validate_qa(objective, inputs, start.tokenizer, answers, config)
        metrics = fit(objective, data, config, out, world, resources, validate, select)
        if world.main:
            preprocessing = start.preprocessing.model_copy(update={"max_text_tokens": config.max_text_tokens})
            ModelFolder("qa", model, start.tokenizer, preprocessing, answers=answers).save_pretrained(out / "model")
        return Outcome(
            {"steps": len(data), "questions": sum(len(s) for s in data.sources), "answers": len(answers)}, metrics
        )


def frequent_answers(folders: list[Path], count: int) -> list[str]:
    """The `count` most frequent answers of the training splits, ties in alphabetical order. Raises InputError if the
    training splits have fewer than two."""
    counts: Counter[str] = Counter()
    for folder in dict.fromkeys(folders):
        for row in read_index(folder, ["split", "questions"]).to_pylist():
            if row["split"] == "train":
                counts.update(q["answer"] for q in row["questions"])
    if len(counts) < 2:
        raise InputError(f"the training split has {len(counts)} different answers; question answering needs at least 2")
    return [answer for answer, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:count]]
