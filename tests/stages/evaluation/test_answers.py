"""Questions, answers, and the answers that can be given."""

import pytest
import torch

from models.alpro import Alpro
from shards.schema import InputError
from stages.evaluation.qa import Questions, answer_logits, validate_qa, validation_questions
from stages.finetune_qa import frequent_answers
from stages.training.objective import QaObjective

CPU = torch.device("cpu")


def asked(*answers: str) -> list[dict]:
    return [{"question": f"what is it {n}?", "answer": answer, "type": "what"} for n, answer in enumerate(answers)]


@pytest.fixture
def corpus(corpus_of, tmp_path):
    rows = [
        {"id": "a", "questions": asked("ball", "box")},
        {"id": "told", "captions": ["a ball"]},
        {"id": "b", "questions": asked("box", "arrow", "ball")},
        {"id": "c", "split": "validation", "questions": asked("moon", "moon", "moon")},
    ]
    return corpus_of(tmp_path, rows)


def test_questions_know_their_videos(corpus):
    found = Questions.of(corpus, "train")
    assert (found.ids, found.numbers) == (["a", "b"], [0, 2])
    assert found.answers == ["ball", "box", "box", "arrow", "ball"]
    assert found.video_of_question.tolist() == [0, 0, 1, 1, 1]
    assert Questions.of(corpus, "train", 1).ids == ["a"]
    assert Questions.of(corpus, "test").texts == []


def test_answers_are_the_most_frequent_of_training_alone_with_ties_in_alphabetical_order(corpus):
    assert frequent_answers([corpus], 10) == ["ball", "box", "arrow"]
    assert frequent_answers([corpus, corpus], 2) == ["ball", "box"]


def test_fewer_than_two_answers_is_a_mistake(corpus_of, tmp_path):
    folder = corpus_of(tmp_path / "one", [{"id": "a", "questions": asked("ball", "ball")}])
    with pytest.raises(InputError, match="the training split has 1 different answers"):
        frequent_answers([folder], 10)


def test_validation_questions_are_of_the_first_corpus_that_has_some(corpus, lessons, clips):
    assert validation_questions({"lessons": lessons, "corpus": corpus, "clips": clips}, 500).ids == ["c"]
    with pytest.raises(InputError, match="no corpus has validation videos with questions"):
        validation_questions({"lessons": lessons}, 500)


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


def test_validation_is_the_accuracy_of_the_best_answer(tiny_model, tokenizer, clips):
    """A head that always gives one answer is right as often as that is the answer."""
    model = Alpro(tiny_model(tokenizer.get_vocab_size()), answers=3)
    with torch.no_grad():
        model.qa_head[-1].weight.zero_()
        model.qa_head[-1].bias.copy_(torch.tensor([0.0, 1.0, 0.0]))
    objective = QaObjective(model, [0.5] * 3, [0.25] * 3).eval()
    validate, select = validate_qa(objective, {"clips": clips}, tokenizer, ["left", "one", "red"], 24)
    questions = Questions.of(clips, "validation")
    found = validate()
    assert found[select] == pytest.approx(100 * questions.answers.count("one") / len(questions.answers))
    for kind in set(questions.types):
        answers = [a for a, t in zip(questions.answers, questions.types, strict=True) if t == kind]
        assert found[f"validation/qa/acc_{kind}"] == pytest.approx(100 * answers.count("one") / len(answers))
