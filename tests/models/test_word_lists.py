"""Word lists of the user: entities and answers, in the order of a head."""

import json

import pyarrow.parquet as pq
import pytest
from safetensors import safe_open

from alpro.errors import InputError
from alpro.models.alpro import Alpro
from alpro.models.folder import ModelFolder
from alpro.models.word_lists import read_word_list
from alpro.models.word_pieces import train_tokenizer
from alpro.pipeline.config.load import load_config
from alpro.pipeline.plan.dag import check_files, plan
from alpro.pipeline.plan.digests import Digests
from alpro.pipeline.store.artifacts import Store
from alpro.stages import build_vocabulary, finetune_qa

FORMS = {
    "list.json": '["dog", "hot dog", "3"]',
    "ans2label.json": '{"hot dog": 1, "3": 2, "dog": 0}',
    "lines.txt": "dog\nhot dog\n\n3\n",
    "unigrams.txt": "dog 120\nhot dog\t80\n3 7\n",
}


@pytest.mark.parametrize("name", FORMS)
def test_every_format_gives_the_words_in_order(name, tmp_path):
    (tmp_path / name).write_text(FORMS[name])
    assert read_word_list(tmp_path / name, "key") == ["dog", "hot dog", "3"]


def test_numbers_are_removed_only_if_every_line_has_one(tmp_path):
    (tmp_path / "words.txt").write_text("formula 1\ndog\n")
    assert read_word_list(tmp_path / "words.txt", "key") == ["formula 1", "dog"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", "null", "neither a list of words"),
        ("a.json", '{"a": 0, "b": 0}', "not 0 to 1, each once"),
        ("a.json", '{"a": 1, "b": 2}', "not 0 to 1, each once"),
        ("a.json", '["a", 6]', "neither a list of words"),
        ("a.json", "[1, 2]", "neither a list of words nor an object of word to number"),
        ("a.json", '"dog"', "neither a list of words"),
        ("a.json", '["dog", " "]', "neither a list of words"),
        ("a.json", '{"dog": 0, "cat": 2}', "the numbers of its words are not 0 to 1, each once"),
        ("a.json", '{"dog": true}', "the numbers of its words"),
        ("a.json", "[", "cannot be read"),
        ("a.txt", "dog\ncat\ndog\n", "duplicate word 'dog'"),
    ],
)
def test_other_formats_raise_a_one_line_error(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_word_list(tmp_path / name, "finetune_qa.answers_file")
    assert str(error.value).startswith("finetune_qa.answers_file = ")
    assert "\n" not in str(error.value)


def test_a_list_of_entities_replaces_counting(corpora, tmp_path, resources, monkeypatch):
    """Its first M words, even if they are in no caption, excluded, or in a template."""
    (tmp_path / "unigrams.txt").write_text("video 90\nzebra 80\nthing 70\nball 60\n")
    monkeypatch.setattr(build_vocabulary, "count_words", None)  # no noun is counted
    config = build_vocabulary.Config(entities=3, entities_file=str(tmp_path / "unigrams.txt"))
    (tmp_path / "out").mkdir()
    counts = build_vocabulary.run(config, corpora, tmp_path / "out", resources).counts
    assert pq.read_table(tmp_path / "out" / "entities.parquet")["entity"].to_pylist() == ["video", "zebra", "thing"]
    assert pq.read_table(tmp_path / "out" / "left_out.parquet").to_pylist() == [
        {"noun": "ball", "count": None, "reason": "below the first 3"}
    ]
    assert (counts["entities"], counts["left_out"]) == (3, 1)
    with pytest.raises(InputError, match=r"entities = 5, but .*unigrams.txt has 4 words"):
        build_vocabulary.run(config.model_copy(update={"entities": 5}), corpora, tmp_path / "out", resources)


def test_a_list_of_answers_replaces_the_most_frequent_answers(clips, tmp_path, tiny_model, tokenizer, resources):
    """In the order of the head; all words are used, independent of `answers`."""
    start = Alpro(tiny_model(tokenizer.get_vocab_size()), entities=2)
    ModelFolder("pretrain", start, tokenizer, entities=["a", "b"]).save_pretrained(tmp_path / "start")
    (tmp_path / "ans2label.json").write_text(json.dumps({"zebra": 2, "left": 0, "one": 1}))
    values = {"phases": [{"corpora": ["clips"], "steps": 1}], "batch_size": 4, "frames": 2, "answers": 2}
    config = finetune_qa.Config.model_validate(values | {"answers_file": str(tmp_path / "ans2label.json")})
    (tmp_path / "out").mkdir()
    counts = finetune_qa.run(config, {"model": tmp_path / "start", "clips": clips}, tmp_path / "out", resources).counts
    assert counts["answers"] == 3
    model = tmp_path / "out" / "model"
    assert json.loads((model / "answers.json").read_text()) == ["left", "one", "zebra"]
    with safe_open(model / "model.safetensors", "pt") as weights:
        assert weights.get_slice("qa_head.2.bias").get_shape() == [3]


def test_the_contents_of_a_list_are_in_the_fingerprint_and_it_must_exist(tmp_path):
    (tmp_path / "a.mp4").write_bytes(b"one")
    (tmp_path / "a.jsonl").write_text('{"path": "a.mp4", "caption": "x"}\n')

    def fingerprint(name: str) -> str:
        config = load_config(
            "own_videos", str(tmp_path / "a.jsonl"), [f"build_vocabulary.entities_file={tmp_path / name}"]
        )
        steps = plan(config, Digests(tmp_path / "digests.sqlite"))
        return next(step.fingerprint for step in steps if step.stage == "build_vocabulary")

    fingerprints = []
    for content in ("dog", "cat", "dog"):
        (tmp_path / "list.txt").write_text(content)
        fingerprints.append(fingerprint("list.txt"))
    assert fingerprints[0] == fingerprints[2] != fingerprints[1]
    config = load_config("own_videos", str(tmp_path / "a.jsonl"), ["build_vocabulary.entities_file=/none.txt"])
    steps = plan(config, Digests(tmp_path / "digests.sqlite"))
    with pytest.raises(InputError, match=r"build_vocabulary.entities_file = '/none.txt': no such file"):
        check_files(steps, Store(tmp_path / "artifacts"))


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
