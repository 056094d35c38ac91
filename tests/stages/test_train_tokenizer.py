"""The stage that trains a tokenizer, and tokenizers in files."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from alpro.errors import InputError
from alpro.models.word_pieces import WordPieces, load_tokenizer
from alpro.models.word_pieces import train_tokenizer as train
from alpro.models.words import Templates, fill
from alpro.stages import train_tokenizer
from alpro.stages.train_tokenizer import Config
from tests.conftest import one_line

ROOT = Path(__file__).parents[2]
TEXTS = ["a red ball moves to the left", "two shapes, a green box and a blue star", "a fish swims in the sea"] * 2


def test_texts_of_other_splits_are_not_read(corpus_of, tmp_path, resources):
    """Neither captions nor questions of validation and test: their letters would be in the vocabulary."""
    train = [
        {"id": "a", "captions": ["a dog is sleeping", "a dog and a cat"]},
        {"id": "b", "captions": ["a cat"], "questions": [{"question": "what is it?", "answer": "cat", "type": "what"}]},
    ]
    texts = ["ζεβρα", "wyvern wyvern wyvern"]
    asked = [{"question": f"which {text} is it?", "answer": text, "type": "which"} for text in texts]
    more = [{"id": s, "split": s, "captions": texts, "questions": asked} for s in ("validation", "test")]
    outputs = []
    for number, rows in enumerate((train, train + more)):
        out = tmp_path / f"out {number}"
        out.mkdir()
        corpus = corpus_of(tmp_path / f"corpus {number}", rows)
        train_tokenizer.run(Config(word_pieces=200), {"corpus": corpus}, out, resources)
        outputs.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert outputs[0] == outputs[1]
    tokenizer = Tokenizer.from_file(str(tmp_path / "out 1" / "tokenizer.json"))
    assert "[UNK]" in tokenizer.encode("ζεβρα").tokens
    assert "[UNK]" not in tokenizer.encode("what is it?").tokens


def test_a_trained_tokenizer_uses_berts_format():
    tokenizer = train(TEXTS, 120)
    encoded = tokenizer.encode("A RED ball")
    assert encoded.tokens == ["[CLS]", *tokenizer.encode("a red ball", add_special_tokens=False).tokens, "[SEP]"]
    assert tokenizer.decode(encoded.ids) == "a red ball"
    assert [tokenizer.token_to_id(t) for t in ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")] == [0, 1, 2, 3, 4]
    assert tokenizer.encode("☃").tokens == ["[CLS]", "[UNK]", "[SEP]"]
    assert tokenizer.get_vocab_size() <= 120


def test_the_tokenizer_contains_the_words_of_prompts_and_questions(corpus_of, tmp_path, resources):
    """Of all corpora."""
    asked = [{"question": "which xylophone is it?", "answer": "none", "type": "which"}]
    rows = {"a": [{"id": "a", "captions": ["a dog"]}], "b": [{"id": "b", "questions": asked}]}
    corpora = {name: corpus_of(tmp_path / name, corpus) for name, corpus in rows.items()}
    counts = train_tokenizer.run(Config(), corpora, tmp_path, resources).counts
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert counts == {"captions": 1, "word_pieces": tokenizer.get_vocab_size()}
    for text in (fill(Templates().video[0], "dog"), fill(Templates().image[0], "dog"), "which xylophone is it?"):
        assert "[UNK]" not in tokenizer.encode(text).tokens


def test_a_given_tokenizer_is_taken_as_it_is(tmp_path, resources):
    given = train(TEXTS, 120)
    given.save(str(tmp_path / "given.json"))
    train_tokenizer.run(Config(tokenizer=str(tmp_path / "given.json")), {}, tmp_path, resources)
    assert Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab() == given.get_vocab()


def test_tokenizer_training_is_deterministic():
    """It depends neither on their order or number, nor on the process (hash seeds differ)."""
    program = (
        "import json, sys; from alpro.models.word_pieces import train_tokenizer; "
        "print(train_tokenizer(json.load(sys.stdin), 120).to_str(), end='')"
    )
    command = [sys.executable, "-c", program]
    process = subprocess.run(command, input=json.dumps(TEXTS[::-1]), capture_output=True, text=True, cwd=ROOT)
    assert process.stdout == train(Counter(TEXTS), 120).to_str(), process.stderr


def test_a_tokenizer_is_loaded_from_a_file_or_folder_in_both_formats(tmp_path):
    trained = train(TEXTS, 120)
    words = sorted(trained.get_vocab(), key=trained.get_vocab().get)
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    by_words = load_tokenizer(str(tmp_path))
    trained.save(str(tmp_path / "tokenizer.json"))
    by_json = load_tokenizer(str(tmp_path))
    by_file = load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert by_words.decode(by_words.encode("a red ball").ids) == "a red ball"  # special tokens are not decoded
    with pytest.raises(InputError, match="no such file or folder"):
        load_tokenizer(str(tmp_path / "nothing" / "here"))
    text = "A red FISH, unknowable"
    assert by_words.encode(text).ids == by_json.encode(text).ids == by_file.encode(text).ids == trained.encode(text).ids


def test_padding_and_truncation_of_a_tokenizer_file_are_disabled(tmp_path):
    tokenizer = train(TEXTS, 120)
    expected = WordPieces(tokenizer).batch(TEXTS, 9)
    tokenizer.enable_padding(length=12)
    tokenizer.enable_truncation(4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert (loaded.padding, loaded.truncation) == (None, None)
    for actual, wanted in zip(WordPieces(tokenizer).batch(TEXTS, 9), expected, strict=True):
        assert actual.tolist() == wanted.tolist()
    assert tokenizer.truncation["max_length"] == 4  # the argument is not modified


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
def test_a_broken_tokenizer_file_raises_an_input_error(name, tmp_path):
    (tmp_path / name).write_bytes(b"\xff\xfe{")
    for place in (tmp_path / name, tmp_path):
        with one_line(f"{name}: not readable"):
            load_tokenizer(str(place))
