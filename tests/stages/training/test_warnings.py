"""Warnings about a training: losses that stayed at chance, texts that are cut."""

import math

import pytest

from alpro.stages.training.metrics import chance_levels, losses_at_chance


def lines(**losses: list[float]) -> list[dict[str, float]]:
    """A line of metrics.jsonl for each value, and a line of a validation."""
    return [{f"train/loss_{name}": value} for name, values in losses.items() for value in values] + [{"validation": 1}]


@pytest.mark.parametrize(
    ("losses", "warned"),
    [
        ({"vtc": [9.0, 2.08, 2.07, 2.09]}, ["loss_vtc ended at 2.080; a model that has learned nothing has 2.079"]),
        ({"vtc": [2.08, 2.08, 2.0, 1.9]}, []),
        ({"vtm": [0.64]}, ["loss_vtm ended at 0.640; a model that has learned nothing has 0.637"]),
        ({"vtm": [0.6], "qa": [1.6]}, ["loss_qa ended at 1.600; a model that has learned nothing has 1.609"]),
        ({"mlm": [9.0]}, []),
        ({}, []),
    ],
)
def test_losses_that_stayed_at_chance_are_named(training, losses, warned):
    """ln 8 pairs: 2.079; a third of the pairs match: 0.637; ln 5 answers: 1.609."""
    config = training(("a",), 1, batch_size=8)
    assert [line.partition(":")[0] for line in losses_at_chance(lines(**losses), config, answers=5)] == warned


def test_contrast_is_over_a_micro_batch_unless_it_is_over_the_batch(training):
    halves = training(("a",), 1, batch_size=8, accumulation_steps=2)
    assert chance_levels(halves, 1) == {"vtc": math.log(4), "vtm": pytest.approx(0.6365, abs=1e-4), "qa": 0}
    assert chance_levels(halves.model_copy(update={"contrast": "batch"}), 1)["vtc"] == math.log(8)


def test_cut_texts_are_counted_in_each_unit(rows, corpus_of, tmp_path, steps_of, tokenizer):
    question = [{"question": "how many balls are there?", "answer": "two", "type": "how"}]
    corpus = corpus_of(tmp_path, rows(3, captions=2, questions=question))
    texts = ["red ball", "how many balls are there?"]
    length = {text: len(tokenizer.encode(text).ids) for text in texts}
    limit = length[texts[1]] - 1
    (line,) = steps_of({"a": corpus}, 1, "question", answers=(), batch_size=1, max_text_tokens=limit).cut_texts()
    assert line == f"a: 3 of 3 questions have more than max_text_tokens = {limit} tokens and are cut"
    longer = steps_of({"a": corpus}, 1, "question", answers=(), batch_size=1, max_text_tokens=limit + 1)
    assert list(longer.cut_texts()) == []
    (line,) = steps_of({"a": corpus}, 1, batch_size=1, max_text_tokens=4).cut_texts()
    assert line.startswith("a: 6 of 6 captions have more")
