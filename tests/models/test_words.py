"""Words of the user: prompt templates, and lists of entities and answers in the order of a head."""

import json

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from safetensors import safe_open

from alpro.errors import InputError
from alpro.models.alpro import Alpro
from alpro.models.folder import ModelFolder
from alpro.models.word_pieces import train_tokenizer
from alpro.models.words import Templates, fill, read_word_list
from alpro.stages import build_vocabulary, finetune_qa
from tests.conftest import one_line


def test_every_format_gives_the_words_in_order(tmp_path):
    lists = {"list.json": '[" dog", "hot dog ", "3"]', "ans2label.json": '{"hot dog": 1, "3": 2, "dog": 0}'}
    lists |= {"lines.txt": "dog\nhot dog\n\n3\n", "unigrams.txt": "dog 120\nhot dog\t80\n3 7\n"}
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        assert read_word_list(tmp_path / name, "key") == ["dog", "hot dog", "3"]
    (tmp_path / "a.txt").write_text("formula 1\ndog\n")  # numbers are removed if every line has one
    assert read_word_list(tmp_path / "a.txt", "key") == ["formula 1", "dog"]


def test_other_formats_raise_a_one_line_error(tmp_path):
    for name, text, message in (
        *(("a.json", text, "neither a list of words") for text in ("null", '["a", 6]', '"dog"', '["dog", " "]')),
        *(("a.json", f'{{"a": {one}, "b": {two}}}', "not 0 to 1, each once") for one, two in ((0, 0), (1, 2), (0, 2))),
        ("a.json", '{"dog": true}', "the numbers of its words"),
        ("a.json", "[", "cannot be read"),
        ("a.txt", "dog\ncat\ndog\n", "duplicate word 'dog'"),
    ):
        (tmp_path / name).write_text(text)
        with one_line("finetune_qa.answers_file = ", message):
            read_word_list(tmp_path / name, "finetune_qa.answers_file")


def test_a_list_of_entities_replaces_counting(corpora, tmp_path, resources, monkeypatch):
    """Its first M words, even if they are in no caption, excluded, or in a template."""
    (tmp_path / "unigrams.txt").write_text("video 90\nzebra 80\nthing 70\nball 60\n")
    monkeypatch.setattr(build_vocabulary, "count_words", None)  # no noun is counted
    config = build_vocabulary.Config(entities=3, entities_file=str(tmp_path / "unigrams.txt"))
    (tmp_path / "out").mkdir()
    counts = build_vocabulary.run(config, corpora, tmp_path / "out", resources).counts
    assert pq.read_table(tmp_path / "out" / "entities.parquet")["entity"].to_pylist() == ["video", "zebra", "thing"]
    (left_out,) = pq.read_table(tmp_path / "out" / "left_out.parquet").to_pylist()
    assert left_out == {"noun": "ball", "count": None, "reason": "below the first 3"}
    assert (counts["entities"], counts["left_out"]) == (3, 1)
    with pytest.raises(InputError, match=r"entities = 5, but .*unigrams.txt has 4 words"):
        build_vocabulary.run(config.model_copy(update={"entities": 5}), corpora, tmp_path / "out", resources)


def test_a_list_of_answers_replaces_the_most_frequent_answers(
    clips, corpus_of, tmp_path, tiny_model, tokenizer, resources
):
    """In the order of the head; all words are used, independent of `answers`. Ties are in alphabetical order."""
    asked = [{"question": "what?", "answer": answer, "type": "what"} for answer in ("b", "c", "a", "c")]
    corpus = corpus_of(tmp_path / "asked", [{"id": "x", "questions": asked}])
    assert finetune_qa.frequent_answers([corpus], 3) == ["c", "a", "b"]
    start = Alpro(tiny_model(tokenizer.get_vocab_size()), entities=2)
    ModelFolder("pretrain", start, tokenizer, entities=["a", "b"]).save_pretrained(tmp_path / "start")
    (tmp_path / "ans2label.json").write_text(json.dumps({"zebra": 2, "left": 0, "one": 1}))
    values = {"phases": [{"corpora": ["clips"], "steps": 1}], "batch_size": 4, "frames": 2, "answers": 2}
    config = finetune_qa.Config.model_validate(values | {"answers_file": str(tmp_path / "ans2label.json")})
    (tmp_path / "out").mkdir()
    finetune_qa.run(config, {"model": tmp_path / "start", "clips": clips}, tmp_path / "out", resources)
    model = tmp_path / "out" / "model"
    assert json.loads((model / "answers.json").read_text()) == ["left", "one", "zebra"]
    with safe_open(model / "model.safetensors", "pt") as weights:
        assert weights.get_slice("qa_head.2.bias").get_shape() == [3]


def test_a_tokenizer_counts_repeated_texts():
    """Its pieces are the most frequent words, by the counts."""

    def pieces(counts: dict[str, int], size: int) -> dict[str, int]:
        vocabulary = train_tokenizer(counts, size).get_vocab()
        repeated = [text for text, count in counts.items() for _ in range(count)]
        assert vocabulary == train_tokenizer(repeated, size).get_vocab()
        return vocabulary

    sizes = range(6, 12)
    once, often = ([pieces({"ab": 1, "ba": count}, size) for size in sizes] for count in (1, 5))
    assert once != often
    assert all("ba" in vocabulary for vocabulary in often if "ab" in vocabulary)
    assert any("ba" not in vocabulary for vocabulary in once if "ab" in vocabulary)


def test_the_default_templates_are_the_official_ones():
    def official(*names):
        return tuple(f"A {name} of {article} {{}}." for name in names for article in ("a", "the", "one"))

    videos = official("footage", "video", "portrait", "video footage")
    images = official("photo", "picture", "good photo", "good picture")
    assert (Templates().video, Templates().image) == (videos, images)
    assert Templates().kinds == {"video": videos, "image": images}


def test_a_template_has_exactly_one_placeholder_that_is_replaced_literally():
    assert Templates(video=("Ein Film: {}!",), image=("{} (2x Foto)",)).words() == {"ein", "film", "x", "foto"}
    assert fill("A {} in {curly} 100 %.", "{0}%s") == "A {0}%s in {curly} 100 %."
    for wrong in ("A dog.", "{} and {}", ""):
        for kind in ("video", "image"):
            with pytest.raises(ValidationError, match="the place of the entity"):
                Templates.model_validate({kind: (wrong,)})
