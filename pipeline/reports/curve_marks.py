"""Chance levels of validation and borders of phases, for the curves of the report."""

from pathlib import Path
from typing import Any

import numpy as np

from alpro.pipeline.reports.figures import Marks
from alpro.stages import CORPUS_STAGES
from alpro.stages.evaluation.metrics import accuracy_by_type, majority_baseline, mean_recall, retrieval_metrics
from alpro.stages.evaluation.qa import Questions
from alpro.stages.evaluation.retrieval import Gallery

MAX_PAIRS = 20_000_000  # of texts and videos, so that chance levels need little memory


def marks_of(folder: Path, record: dict[str, Any]) -> Marks:
    """The marks for the curves of a training stage's artifact, as far as its corpora are in the same store."""
    config, inputs = record.get("config", {}), record.get("inputs", {})
    phases = config.get("phases", [])
    names = dict.fromkeys(name for phase in phases for name in phase["corpora"])
    sources = [inputs[name] for name in names if name in inputs and inputs[name]["stage"] in CORPUS_STAGES]
    corpora = [folder.parents[1] / source["stage"] / source["fingerprint"][:16] for source in sources]
    chance: dict[str, float] = {}
    if phases and len(corpora) == len(names) and all((corpus / "artifact.json").is_file() for corpus in corpora):
        chance = chance_of_answers(corpora, config) if "answers" in config else chance_of_retrieval(corpora, config)
    return Marks(chance, borders(phases, record["counts"].get("steps", 0)))


def borders(phases: list[dict[str, Any]], total: int) -> list[int]:
    """The last steps of all phases but the last. None are known if several phases are measured in epochs.

    >>> borders([{"steps": 600}, {"steps": 0}, {"steps": 250}], 1000)
    [600, 750]
    """
    steps = [phase["steps"] for phase in phases]
    if steps.count(0) == 1:
        steps[steps.index(0)] = total - sum(steps)
    if 0 in steps or sum(steps) != total:
        return []
    return np.cumsum(steps)[:-1].tolist()


def chance_of_retrieval(corpora: list[Path], config: dict[str, Any]) -> dict[str, float]:
    """The mean over the corpora of the metrics of equal scores, in which ties count as half a rank."""
    validation = config["validation"]
    galleries = [
        Gallery.of(corpus, "validation").first(validation["videos"], validation["captions"]) for corpus in corpora
    ]
    galleries = [gallery for gallery in galleries if gallery.texts]
    if any(len(gallery.texts) * len(gallery.ids) > MAX_PAIRS for gallery in galleries):
        return {}
    levels = []
    for gallery in galleries:
        values = retrieval_metrics(np.zeros((len(gallery.texts), len(gallery.ids))), gallery.video_of_text)
        levels.append(values | {"mean_recall": mean_recall(values)})
    means = mean_levels(levels)
    return {f"validation/{prefix}{name}": value for prefix in ("vtc/", "") for name, value in means.items()}


def chance_of_answers(corpora: list[Path], config: dict[str, Any]) -> dict[str, float]:
    """The accuracy of the most frequent training answer of each type, as in the evaluation."""
    levels = []
    for corpus in corpora:
        train, questions = (Questions.of(corpus, split) for split in ("train", "validation"))
        questions = questions.first(config["validation"]["videos"])
        if questions.texts:
            pairs = [list(zip(part.types, part.answers, strict=True)) for part in (train, questions)]
            levels.append(accuracy_by_type(majority_baseline(*pairs), questions.types))
    return {f"validation/qa/{name}": value for name, value in mean_levels(levels).items()}


def mean_levels(levels: list[dict[str, float]]) -> dict[str, float]:
    """The mean of each value over the corpora that have it."""
    names = dict.fromkeys(name for values in levels for name in values)
    return {name: float(np.mean([values[name] for values in levels if name in values])) for name in names}
