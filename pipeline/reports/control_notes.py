"""What each control of an evaluation shows, in a sentence with its scores, for the report."""

from typing import Any

from alpro.pipeline.reports.results import shown
from alpro.stages.evaluation.controls.settings import CONTROLS, WORDS_KNOWN

CROPS_KNOWN = (
    "The prompter names an entity of random crops, as PEM asks it to; the accuracy on the kept crops is that of PEM's "
    "labels, and a floor, because a crop may show no entity of its clip."
)
# The score with and without the control: the names of a control's rows start with these.
SCORES = {"retrieval": "t2v/R1", "qa": "acc"}
Row = dict[str, Any]


def control_notes(rows: list[Row]) -> list[tuple[str, str]]:
    """The label of each control with results, and what it shows."""
    by_name = {row["name"]: row for row in rows}
    notes = []
    for control, (label, meaning) in CONTROLS.items():
        own = [row for row in rows if row["what"] == f"control: {label}"]
        if own:
            pairs = [row for row in own if row["table"] == "controls"]
            scores = [f"{row['metric']} {shown(row['value'], row['unit'])}" for row in pairs]
            for name, score in SCORES.items():
                if row := by_name.get(f"{name}_{control}/{score}"):
                    scores.append(compared(row, by_name.get(f"{name}/{score}")))
            notes.append((label, f"{meaning} {listed(scores)}"))
    for row in rows:
        if row["name"].endswith(f"_only/{SCORES['retrieval']}"):
            label = row["what"].removeprefix("control: ")
            notes.append((label, f"{WORDS_KNOWN} {listed([compared(row, by_name.get('retrieval/t2v/R1'))])}"))
    crops = [row for row in rows if row["name"].startswith("entity_crops/")]
    if crops:
        scores = [f"{row['metric']} {shown(row['value'], row['unit'])}" for row in crops]
        notes.append(("prompter on random crops", f"{CROPS_KNOWN} {listed(scores)}"))
    return notes


def compared(row: Row, without: Row | None) -> str:
    """The score of a control beside that of the model without it."""
    score = f"{row['metric']} {shown(row['value'], row['unit'])}"
    return f"{score} instead of {shown(without['value'], without['unit'])}" if without else score


def listed(scores: list[str]) -> str:
    """The scores as a sentence."""
    return f"Here: {', '.join(scores)}."
