"""What the report says of each control: its meaning, and its score beside that without it."""

from typing import Any, get_args

import pytest

from alpro.pipeline.reports.control_notes import control_notes
from alpro.stages.evaluation.controls.settings import CONTROLS, WORDS_KNOWN, ControlName


def row(name: str, what: str, value: float, metric: str = "R@1", table: str = "retrieval") -> dict[str, Any]:
    return {"name": name, "what": what, "value": value, "metric": metric, "table": table, "unit": "%"}


RETRIEVAL = row("retrieval/t2v/R1", "fine-tuned retrieval", 51.0)
QA = row("qa/acc", "question answering", 77.5, "all questions", "qa")


def test_every_control_has_a_sentence():
    assert tuple(CONTROLS) == get_args(ControlName)
    assert len({control.label for control in CONTROLS.values()}) == len(CONTROLS)
    for control in CONTROLS.values():
        assert control.meaning.endswith(".")
        assert control.meaning.count(". ") == 0


@pytest.mark.parametrize(
    ("rows", "scores"),
    [
        ([row("retrieval_reversed/t2v/R1", "control: frames reversed", 8.5), RETRIEVAL], "R@1 8.5 % instead of 51.0 %"),
        ([row("retrieval_reversed/t2v/R1", "control: frames reversed", 8.5)], "R@1 8.5 %"),
        (
            [
                row("qa_reversed/acc", "control: frames reversed", 63.0, "all questions", "qa"),
                row("qa_reversed/acc_what", "control: frames reversed", 1.0, "what", "qa"),
                row("retrieval_reversed/t2v/R1", "control: frames reversed", 8.5),
                row("retrieval_reversed/t2v/R5", "control: frames reversed", 9.5, "R@5"),
                QA,
                RETRIEVAL,
            ],
            "R@1 8.5 % instead of 51.0 %, all questions 63.0 % instead of 77.5 %",
        ),
    ],
)
def test_a_control_has_its_scores_with_and_without_it(rows, scores):
    assert control_notes(rows) == [("frames reversed", f"{CONTROLS['reversed'].meaning} Here: {scores}.")]


def test_two_way_controls_have_all_their_scores():
    rows = [
        row("counterfactual/noun_vtm", "control: counterfactual captions", 80.0, "noun, matching", "controls"),
        row("counterfactual/noun_vtc", "control: counterfactual captions", 70.0, "noun, similarity", "controls"),
    ]
    ((label, note),) = control_notes(rows)
    assert label == "counterfactual captions"
    assert note.endswith("Here: noun, matching 80.0 %, noun, similarity 70.0 %.")


def test_words_and_crops_are_explained_too():
    rows = [
        row("colours_only/t2v/R1", "control: colours known", 13.5),
        row("colours_only/t2v/R5", "control: colours known", 20.0, "R@5"),
        RETRIEVAL,
        row("entity_crops/acc", "prompter on random crops", 12.0, "all crops", "entities"),
    ]
    words, crops = control_notes(rows)
    assert words == ("colours known", f"{WORDS_KNOWN} Here: R@1 13.5 % instead of 51.0 %.")
    assert crops[0] == "prompter on random crops"
    assert crops[1].endswith("Here: all crops 12.0 %.")


def test_without_controls_there_is_nothing_to_say():
    assert control_notes([RETRIEVAL, QA]) == []
