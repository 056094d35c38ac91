"""The videos of a split with their captions or questions."""

import numpy as np
import pytest

from alpro.errors import InputError
from alpro.stages.evaluation.gallery import Gallery, Labels, Questions
from alpro.stages.finetune_qa import frequent_answers


def asked(*answers: str) -> list[dict]:
    return [{"question": f"what is it {n}?", "answer": answer, "type": "what"} for n, answer in enumerate(answers)]


@pytest.fixture
def corpus(corpus_of, tmp_path):
    rows = [
        {"id": "a", "captions": ["one"], "questions": asked("ball", "box")},
        {"id": "captioned", "captions": ["two", "three"]},
        {"id": "b", "questions": asked("box", "arrow", "ball")},
        {"id": "c", "captions": ["four"]},
        {"id": "d", "captions": ["five", "six"]},
        {"id": "test", "split": "test", "captions": ["seven"], "questions": asked("moon", "moon", "moon")},
    ]
    return corpus_of(tmp_path, rows)


def test_captions_and_questions_know_their_videos(corpus):
    captions, questions = Gallery.of(corpus, "train"), Questions.of(corpus, "train", exclude={"d"})
    assert (captions.ids, captions.numbers) == (["a", "captioned", "c", "d"], [0, 1, 3, 4])
    assert captions.texts == ["one", "two", "three", "four", "five", "six"]
    assert captions.video_of_text.tolist() == [0, 1, 1, 2, 3, 3]
    assert captions.labels.relevant.argmax(1).tolist() == captions.video_of_text.tolist()
    assert captions.labels.relevant.sum() == 6
    assert (questions.ids, questions.numbers, questions.video_ids) == (["a", "b"], [0, 2], ["a", "a", "b", "b", "b"])
    assert [question["answer"] for question in questions.items] == ["ball", "box", "box", "arrow", "ball"]
    assert questions.texts[1:3] == ["what is it 1?", "what is it 0?"]
    assert Gallery.of(corpus, "train", exclude={"a", "c"}).ids == ["captioned", "d"]
    assert Questions.of(corpus, "validation").texts == []


@pytest.mark.parametrize(
    ("videos", "captions", "ids", "texts", "of"),
    [
        (3, 1, ["a", "captioned", "c"], ["one", "two", "four"], [0, 1, 2]),
        (2, 0, ["a", "captioned"], ["one", "two", "three"], [0, 1, 1]),
        (0, 1, ["a", "captioned", "c", "d"], ["one", "two", "four", "five"], [0, 1, 2, 3]),
        (0, 0, ["a", "captioned", "c", "d"], ["one", "two", "three", "four", "five", "six"], [0, 1, 1, 2, 3, 3]),
    ],
)
def test_the_first_videos_and_captions(corpus, videos, captions, ids, texts, of):
    actual = Gallery.of(corpus, "train").first(videos, captions)
    assert (actual.ids, actual.texts, actual.video_of_text.tolist()) == (ids, texts, of)
    assert actual.numbers == [0, 1, 3, 4][: len(ids)]


def test_the_queries_of_each_direction():
    """A text is a query about its first video; a video with all its texts; one without any is none."""
    relevant = np.array([[0, 1, 1], [0, 1, 0]], bool)
    labels = Labels(["a", "b", "c"], ["x", "y"], relevant)
    for direction, ids, texts in (("t2v", ["b", "b"], ["x", "y"]), ("v2t", ["b", "c"], ["x | y", "x"])):
        queries = labels.queries(direction)
        assert (queries.ids.tolist(), queries.texts.tolist()) == (ids, texts)


def test_answers_are_the_most_frequent_of_training_alone_with_ties_in_alphabetical_order(corpus, corpus_of, tmp_path):
    assert frequent_answers([corpus], 10) == ["ball", "box", "arrow"]
    assert frequent_answers([corpus, corpus], 2) == ["ball", "box"]
    folder = corpus_of(tmp_path / "one", [{"id": "a", "questions": asked("ball", "ball")}])
    with pytest.raises(InputError, match="1 different"):
        frequent_answers([folder], 10)
