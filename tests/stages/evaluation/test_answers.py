"""Questions, answers, and the answers that can be given."""

import pytest
import torch

from alpro.errors import InputError
from alpro.models.alpro import Alpro
from alpro.stages.evaluation.qa import Questions, answer_logits
from alpro.stages.finetune_qa import frequent_answers
from alpro.stages.training.objective import QaObjective

CPU = torch.device("cpu")


def asked(*answers: str) -> list[dict]:
    return [{"question": f"what is it {n}?", "answer": answer, "type": "what"} for n, answer in enumerate(answers)]


@pytest.fixture
def corpus(corpus_of, tmp_path):
    rows = [
        {"id": "a", "questions": asked("ball", "box")},
        {"id": "captioned", "captions": ["a ball"]},
        {"id": "b", "questions": asked("box", "arrow", "ball")},
        {"id": "c", "split": "validation", "questions": asked("moon", "moon", "moon")},
    ]
    return corpus_of(tmp_path, rows)


def test_questions_know_their_videos(corpus):
    actual = Questions.of(corpus, "train")
    assert (actual.ids, actual.numbers) == (["a", "b"], [0, 2])
    assert actual.answers == ["ball", "box", "box", "arrow", "ball"]
    assert actual.video_of_question.tolist() == [0, 0, 1, 1, 1]
    assert Questions.of(corpus, "test").texts == []


def test_answers_are_the_most_frequent_of_training_alone_with_ties_in_alphabetical_order(corpus):
    assert frequent_answers([corpus], 10) == ["ball", "box", "arrow"]
    assert frequent_answers([corpus, corpus], 2) == ["ball", "box"]


def test_fewer_than_two_answers_is_a_mistake(corpus_of, tmp_path):
    folder = corpus_of(tmp_path / "one", [{"id": "a", "questions": asked("ball", "ball")}])
    with pytest.raises(InputError, match="1 different"):
        frequent_answers([folder], 10)


@torch.no_grad()
def test_a_question_is_answered_as_it_is_alone(tiny_model, tokenizer, clips):
    torch.manual_seed(0)
    model = Alpro(tiny_model(tokenizer.get_vocab_size()), answers=4)
    objective = QaObjective(model, [0.5] * 3, [0.25] * 3).eval()
    questions = Questions.of(clips, "test")
    whole = answer_logits(objective, questions, tokenizer, 24, CPU)
    assert whole.shape == (len(questions.texts), 4)
    torch.testing.assert_close(answer_logits(objective, questions, tokenizer, 24, CPU, batch=5), whole)
    place = 6
    video = questions.video_of_question[place]
    one = Questions(
        questions.reader,
        [questions.numbers[video]],
        [],
        [questions.texts[place]],
        [],
        [],
        questions.video_of_question[:1],
    )
    torch.testing.assert_close(answer_logits(objective, one, tokenizer, 24, CPU)[0], whole[place], atol=1e-5, rtol=1e-4)


def test_the_device_holds_the_tokens_of_few_questions_at_a_time(
    tiny_model, tokenizer, corpus_of, tmp_path, monkeypatch
):
    """However many questions there are: what is encoded together is a batch of questions and the videos of some."""
    rows = [{"id": str(n), "split": "test", "questions": asked("a", "b", "c")} for n in range(7)]
    questions = Questions.of(corpus_of(tmp_path, rows), "test")
    model = Alpro(tiny_model(tokenizer.get_vocab_size()), answers=4)
    objective = QaObjective(model, [0.5] * 3, [0.25] * 3).eval()
    whole = answer_logits(objective, questions, tokenizer, 24, CPU)
    sizes: dict[str, list[int]] = {"encode_text": [], "encode_video": []}
    for name, seen in sizes.items():
        call = getattr(model, name)
        monkeypatch.setattr(model, name, lambda first, *rest, c=call, s=seen: s.append(len(first)) or c(first, *rest))
    monkeypatch.setattr("alpro.stages.evaluation.qa.VIDEOS", 3)
    torch.testing.assert_close(answer_logits(objective, questions, tokenizer, 24, CPU, batch=4), whole)
    assert sizes == {"encode_text": [4, 4, 1, 4, 4, 1, 3], "encode_video": [3, 3, 1]}


def test_questions_of_the_first_videos(corpus):
    questions = Questions.of(corpus, "train").first(1)
    assert (questions.ids, questions.answers, questions.types) == (["a"], ["ball", "box"], ["what", "what"])
    later = Questions.of(corpus, "train").between(1, 2)
    assert (later.ids, later.numbers, later.answers) == (["b"], [2], ["box", "arrow", "ball"])
    assert later.video_of_question.tolist() == [0, 0, 0]
