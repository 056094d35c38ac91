"""Which videos and texts a gallery has."""

import numpy as np
import pytest

from alpro.errors import InputError
from alpro.stages.evaluation.gallery import Gallery
from alpro.stages.finetune_qa import frequent_answers


def ask(*answers):
    questions = [f"what is it {number}?" for number in range(len(answers))]
    pairs = zip(questions, answers, strict=True)
    return [
        {"question": text, "answer": answer, "type": "what"} for text, answer in pairs
    ]


@pytest.fixture
def corpus(corpus_of, tmp_path):
    rows = [
        {"id": "a", "captions": ["one"], "questions": ask("box", "ball")},
        {"id": "captioned", "captions": ["two", "three"]},
        {"id": "b", "questions": ask("box", "arrow", "ball")},
        {"id": "c", "captions": ["four"]},
        {"id": "d", "captions": ["five", "six"]},
        {"id": "test", "split": "test", "questions": ask("moon", "moon", "moon")},
    ]
    return corpus_of(tmp_path, rows)


def test_captions_are_right_for_their_videos(corpus):
    gallery = Gallery.read(corpus, "train")

    assert gallery.ids == ["a", "captioned", "c", "d"]
    assert gallery.texts == ["one", "two", "three", "four", "five", "six"]
    assert gallery.video_of_text.tolist() == [0, 1, 1, 2, 3, 3]
    assert np.argwhere(gallery.relevant)[:, 1].tolist() == [0, 1, 1, 2, 3, 3]
    assert Gallery.read(corpus, "train", exclude={"a", "c"}).ids == ["captioned", "d"]


def test_questions_are_about_their_videos(corpus):
    gallery = Gallery.read(corpus, "train", exclude={"d"}, column="questions")

    assert gallery.queries("t2v").ids.tolist() == ["a", "a", "b", "b", "b"]
    answers = [question["answer"] for question in gallery.questions]
    assert answers == ["box", "ball", "box", "arrow", "ball"]
    assert gallery.texts[1:3] == ["what is it 1?", "what is it 0?"]
    assert Gallery.read(corpus, "validation", column="questions").texts == []


@pytest.mark.parametrize(
    ("videos", "captions", "texts", "video_of_text"),
    [
        (3, 1, ["one", "two", "four"], [0, 1, 2]),
        (2, 0, ["one", "two", "three"], [0, 1, 1]),
        (0, 1, ["one", "two", "four", "five"], [0, 1, 2, 3]),
    ],
)
def test_the_first_videos_and_captions(corpus, videos, captions, texts, video_of_text):
    gallery = Gallery.read(corpus, "train", videos=videos, texts=captions)

    assert gallery.texts == texts
    assert gallery.video_of_text.tolist() == video_of_text
    assert [
        gallery.sample(n).metadata["id"] for n in range(len(gallery.ids))
    ] == gallery.ids


def test_selected_videos_keep_the_texts_that_are_right_for_them():
    items = [["y"], ["x"], ["X", "z"]]
    gallery = Gallery(list("uvw"), ["u", "w", "v"], items, merged=True)

    chosen = gallery.select([1, 2])

    assert chosen.videos == ["v", "w"]
    assert chosen.ids == ["w", "v"]
    assert chosen.texts == ["x", "z"]
    assert chosen.relevant.tolist() == [[True, True], [False, True]]
    # Equal captions have the first id, whatever the order of the rows.
    assert chosen.queries("t2v").ids.tolist() == ["v", "v"]


def test_answers_are_the_most_frequent_of_training_with_ties_in_alphabetical_order(
    corpus, corpus_of, tmp_path
):
    few = corpus_of(tmp_path / "one", [{"id": "a", "questions": ask("ball", "ball")}])

    assert frequent_answers([corpus], 10) == ["ball", "box", "arrow"]
    assert frequent_answers([corpus, corpus], 2) == ["ball", "box"]
    with pytest.raises(InputError, match="1 different"):
        frequent_answers([few], 10)
