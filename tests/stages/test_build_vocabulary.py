"""Captions to entities and to a tokenizer."""

import hashlib
import json
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from models.templates import VIDEO_TEMPLATES
from shards.reader import read_index
from shards.schema import InputError
from stages import build_vocabulary
from stages.build_vocabulary import Config, choose, count_nouns, tag_unit
from stages.word_pieces import WordPieces, load_tokenizer, train_tokenizer

ROOT = Path(__file__).parents[2]
TEXTS = ["a red ball moves to the left", "two shapes, a green box and a blue star", "a fish swims in the sea"] * 2


@pytest.mark.parametrize(
    ("sentence", "nouns"),
    [
        ("a red ball moves to the left", {"ball", "left"}),
        ("a dog and a cat sleep on the sofa", {"dog", "cat", "sofa"}),
        ("The Woman is cutting vegetables in her kitchen.", {"woman", "vegetables", "kitchen"}),
        ("he runs quickly", set()),
    ],
)
def test_the_embedded_tagger_finds_nouns(sentence, nouns):
    found = tag_unit([sentence], [1], "embedded")
    assert set(found) - {"left"} == nouns - {"left"}  # "the left" may be read either way


def test_nouns_count_as_often_as_their_captions_occur(resources):
    counts = count_nouns(
        ["a dog is sleeping", "a small dog and a cat", *["a dog is sleeping"] * 2], "embedded", resources
    )
    assert counts == {"dog": 4, "cat": 1}


def test_many_units_count_the_same_as_one(resources, inline_pool, monkeypatch):
    captions = ["a dog is sleeping", "a dog and a cat", "a woman in a kitchen", "a dog is sleeping", "a cat on a sofa"]
    whole = count_nouns(captions, "embedded", resources)
    monkeypatch.setattr(build_vocabulary, "CAPTIONS_PER_UNIT", 2)
    assert count_nouns(captions, "embedded", resources) == whole


def test_a_tagger_that_is_not_installed_is_a_mistake():
    with pytest.raises(InputError, match=r"tagger = 'en_core_web_none'.*'embedded'"):
        tag_unit(["a dog"], [1], "en_core_web_none")


def test_entities_are_the_most_frequent_with_ties_in_alphabetical_order():
    counts = Counter(tree=5, ball=7, star=5, box=5, moon=2)
    chosen, left_out = choose(counts, Config(entities=3))
    assert chosen == [("ball", 7), ("box", 5), ("star", 5)]
    assert left_out == [("tree", 5, "below the 3 most frequent"), ("moon", 2, "below the 3 most frequent")]


def test_what_is_left_out_is_left_out_with_the_reason():
    counts = Counter({"video": 90, "x2": 80, "thing": 70, "ball": 60, "box": 50, "rarity": 1})
    chosen, left_out = choose(counts, Config(entities=2, exclude=("thing",)))
    assert chosen == [("ball", 60), ("box", 50)]
    assert left_out == [
        ("video", 90, "a word of the prompt templates"),
        ("x2", 80, "not a word"),
        ("thing", 70, "excluded by the configuration"),
        ("rarity", 1, "fewer than 2 times"),
    ]


def test_fewer_nouns_than_asked_is_a_mistake_that_says_how_many_there_are():
    with pytest.raises(InputError, match=r"entities = 4, but the captions have 2 nouns that qualify; add --set "):
        choose(Counter(ball=3, box=2, star=1), Config(entities=4))


@pytest.fixture(scope="module")
def told(corpus_of, tmp_path_factory) -> Path:
    """A corpus whose training captions name dogs and cats, and whose other splits name other animals."""
    rows = [
        {"id": "one", "captions": ["a dog is sleeping", "a dog and a cat"]},
        {"id": "two", "captions": ["a cat is sleeping"]},
        {"id": "silent", "questions": [{"question": "which xylophone is it?", "answer": "none", "type": "which"}]},
        {"id": "validation", "split": "validation", "captions": ["a horse", "a horse runs", "a horse stands"]},
        {"id": "test", "split": "test", "captions": ["a cow", "a cow runs", "a cow stands"]},
    ]
    return corpus_of(tmp_path_factory.mktemp("told"), rows)


@pytest.fixture(scope="module")
def told_vocabulary(told, tmp_path_factory, resources):
    out = tmp_path_factory.mktemp("told-vocabulary")
    return build_vocabulary.run(Config(entities=2, word_pieces=100), {"told": told}, out, resources), out


def test_only_training_captions_are_read(told_vocabulary):
    outcome, out = told_vocabulary
    assert pq.read_table(out / "entities.parquet").to_pylist() == [
        {"entity": "cat", "count": 2},
        {"entity": "dog", "count": 2},
    ]
    assert outcome.counts["captions"] == 3
    assert pq.read_table(out / "left_out.parquet").num_rows == outcome.counts["nouns"] - 2


def test_training_samples_without_a_caption_are_counted_and_listed(told_vocabulary):
    outcome, out = told_vocabulary
    assert outcome.counts["samples_without_caption"] == 1
    assert pq.read_table(out / "rejects.parquet").to_pylist() == [
        {"id": "silent", "path": "silent", "reason": "no caption"}
    ]


def test_no_training_captions_at_all_is_a_mistake(corpus_of, tmp_path, resources):
    folder = corpus_of(tmp_path / "corpus", [{"id": "test", "split": "test", "captions": ["a cow"]}])
    with pytest.raises(InputError, match="no captions"):
        build_vocabulary.run(Config(entities=2), {"corpus": folder}, tmp_path, resources)


def test_every_noun_of_the_sample_is_an_entity_or_left_out(vocabulary, corpora):
    entities = pq.read_table(vocabulary / "entities.parquet").to_pylist()
    left_out = pq.read_table(vocabulary / "left_out.parquet").to_pylist()
    assert len(entities) == 8
    assert not {row["entity"] for row in entities} & {row["noun"] for row in left_out}
    assert [row["count"] for row in entities] == sorted((row["count"] for row in entities), reverse=True)
    captions = [c for folder in corpora.values() for row in read_index(folder).to_pylist() for c in row["captions"]]
    assert all(any(row["entity"] in caption for caption in captions) for row in entities)


def test_a_trained_tokenizer_speaks_berts_form():
    tokenizer = train_tokenizer(TEXTS, 120)
    encoded = tokenizer.encode("A RED ball")
    assert encoded.tokens == ["[CLS]", *tokenizer.encode("a red ball", add_special_tokens=False).tokens, "[SEP]"]
    assert tokenizer.decode(encoded.ids) == "a red ball"
    assert [tokenizer.token_to_id(t) for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [0, 1, 2, 3, 4]
    assert tokenizer.encode("☃").tokens == ["[CLS]", "[UNK]", "[SEP]"]
    assert tokenizer.get_vocab_size() <= 120


def test_the_tokenizer_knows_the_words_of_prompts_and_questions(told_vocabulary):
    tokenizer = Tokenizer.from_file(str(told_vocabulary[1] / "tokenizer.json"))
    for text in (VIDEO_TEMPLATES[0].format("dog"), "which xylophone is it?"):
        assert "[UNK]" not in tokenizer.encode(text).tokens


def test_a_tokenizer_follows_from_its_texts_alone():
    """Not from their order or number, nor from the process (hash seeds differ)."""
    program = textwrap.dedent("""
        import json, sys
        from stages.word_pieces import train_tokenizer
        print(train_tokenizer(json.load(sys.stdin), 120).to_str(), end="")
    """)
    said = subprocess.run(
        [sys.executable, "-c", program], input=json.dumps(TEXTS[::-1]), capture_output=True, text=True, cwd=ROOT
    )
    here = train_tokenizer(TEXTS, 120).to_str()
    assert hashlib.sha256(said.stdout.encode()).hexdigest() == hashlib.sha256(here.encode()).hexdigest(), said.stderr


def test_a_tokenizer_is_loaded_from_a_file_or_a_folder_of_either_form(tmp_path):
    trained = train_tokenizer(TEXTS, 120)
    words = sorted(trained.get_vocab(), key=trained.get_vocab().get)
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    by_words = load_tokenizer(str(tmp_path))
    trained.save(str(tmp_path / "tokenizer.json"))
    by_json = load_tokenizer(str(tmp_path))
    by_file = load_tokenizer(str(tmp_path / "tokenizer.json"))
    text = "A red FISH, unknowable"
    assert by_words.encode(text).ids == by_json.encode(text).ids == by_file.encode(text).ids == trained.encode(text).ids


def test_special_tokens_of_a_vocab_txt_are_not_shown(tmp_path):
    trained = train_tokenizer(TEXTS, 120)
    (tmp_path / "vocab.txt").write_text("\n".join(sorted(trained.get_vocab(), key=trained.get_vocab().get)) + "\n")
    tokenizer = load_tokenizer(str(tmp_path / "vocab.txt"))
    assert tokenizer.decode(tokenizer.encode("a red ball").ids) == "a red ball"


def test_a_tokenizer_that_is_nowhere_is_a_mistake(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        load_tokenizer(str(tmp_path / "nothing" / "here"))


def test_padding_and_truncation_of_a_tokenizer_file_are_left_out(tmp_path):
    tokenizer = train_tokenizer(TEXTS, 120)
    expected = WordPieces(tokenizer).batch(TEXTS, 9)
    tokenizer.enable_padding(length=12)
    tokenizer.enable_truncation(4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert (loaded.padding, loaded.truncation) == (None, None)
    for found, wanted in zip(WordPieces(tokenizer).batch(TEXTS, 9), expected, strict=True):
        assert found.tolist() == wanted.tolist()
    assert tokenizer.truncation["max_length"] == 4  # the one given stays as it was


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
def test_a_broken_tokenizer_file_is_a_mistake(name, tmp_path):
    (tmp_path / name).write_bytes(b"\xff\xfe{")
    for given in (tmp_path / name, tmp_path):
        with pytest.raises(InputError, match=f"{name}: not readable") as told:
            load_tokenizer(str(given))
        assert "\n" not in str(told.value)
