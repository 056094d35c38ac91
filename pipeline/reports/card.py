"""The card of an exported model, README.md: its training and scores, from its artifact."""

import json
from pathlib import Path

from alpro.artifact import Record, artifacts, read_record
from alpro.models.folder import ModelBundle
from alpro.pipeline.plan.difference import count_text
from alpro.pipeline.reports.results import Rows, tables
from alpro.pipeline.reports.templates import render
from alpro.stages import EVALUATIONS
from alpro.stages.evaluation.comparison import read_results


def write_card(artifact: Path, model: ModelBundle, name: str, license: str = "") -> str:
    """Return the text of README.md.

    Args:
        artifact: Folder of an artifact of a store, or any model folder, of which less is known.
    """
    record = read_record(artifact) or Record()
    split = ""
    scores: Rows = []
    if record.name:
        # The folder of an artifact is STORE/STAGE/FINGERPRINT.
        split, scores = find_newest_scores(artifact.parents[1], record)
    return render(
        "card.md.jinja",
        model=model,
        name=name,
        license=license,
        record=record,
        counts=count_text(record),
        settings=json.dumps(record.config, indent=1),
        parameters=sum(p.numel() for p in model.model.parameters()),
        split=split,
        tables=tables(scores),
    )


def find_newest_scores(store: Path, record: Record) -> tuple[str, Rows]:
    """Return the split and the scores of the newest evaluation of a model; empty without one."""
    for folder, evaluation in reversed(artifacts(store)):
        model = evaluation.inputs.get("model")
        is_of_model = model and model.fingerprint == record.fingerprint
        if evaluation.stage in EVALUATIONS and is_of_model:
            scores = [row for row in read_results(folder) if row["model"]]
            return evaluation.config["split"], scores
    return "", []
