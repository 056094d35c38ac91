"""Captions to entities, by an embedded tagger of nouns, and to word pieces; words and templates of
the user."""

import json
import random
import subprocess
import sys
from collections import Counter
from itertools import product

import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from tokenizers import Tokenizer

from alpro.errors import InputError
from alpro.models.folder import ModelBundle
from alpro.models.word_pieces import BertTokenizer, load_tokenizer
from alpro.models.word_pieces import train_tokenizer as train
from alpro.models.words import Templates, read_word_list
from alpro.stages import build_vocabulary, finetune_qa, train_tokenizer
from alpro.stages.build_vocabulary import (
    Config,
    list_nouns,
    select_words,
)
from alpro.stages.execution.interface import Resources
from alpro.stages.vocabulary import nouns
from alpro.stages.vocabulary.nouns import (
    CaptionUnit,
    count_words,
    load_tagger,
    tag_unit,
)
from tests.conftest import ROOT, one_line
from tests.models.conftest import near
from tests.stages.conftest import run_stage

GERMAN = Templates(video=("Ein Film: {}.",), image=("Ein Foto: {}.",))
THINGS = "camera hand kitchen man screen square street"
PICTURE = "background clip corner frame left right scene scenes shot start view"


def words_of(**counts):
    """Nouns that occur only as nouns, with their counts."""
    return list_nouns(Counter({(name, True): count for name, count in counts.items()}))


@pytest.mark.parametrize(
    ("counts", "config", "chosen"),
    [
        # Words of equal counts are in alphabetical order.
        ({"tree": 5, "ball": 7, "star": 5, "box": 5}, {"entities": 3}, "ball box star"),
        ({"hügel": 3, "улица": 2, "3d": 9}, {}, "hügel улица"),
        # Combining marks, a joiner, and words of one character; not one letter, nor a mark alone.
        (
            {"कुत्ता": 5, "خانه\u200cها": 4, "狗": 3, "개": 2},
            {},
            "कुत्ता خانه\u200cها 狗 개",
        ),
        ({"dog": 2, "x": 9, "я": 9, "\u0301a": 9, "狗2": 9}, {}, "dog"),
        # Words of the configuration are compared as captions are read.
        ({"café": 3, "ball": 2}, {"exclude": ("Cafe\u0301",)}, "ball"),
        (
            {"film": 4, "video": 3, "foto": 2, "ball": 2},
            {"templates": GERMAN},
            "video ball",
        ),
        # The most frequent nouns of real captions, of MSR-VTT and WebVid, with words for the image
        # among them.
        (dict.fromkeys(f"{THINGS} {PICTURE}".split(), 9), {}, THINGS),
    ],
)
def test_entities_are_the_most_frequent_nouns_for_things(counts, config, chosen):
    entities = select_words(words_of(**counts), Config(**config))
    assert " ".join(entity.name for entity in entities) == chosen
    assert all(counts[entity.name] == entity.count for entity in entities)


@pytest.mark.parametrize(
    ("config", "chosen"),
    [({"entities": 2}, "ball box"), ({"min_noun_share": 0.0}, "ball box fish talks")],
)
def test_an_entity_is_a_noun_of_several_captions(config, chosen):
    words = words_of(video=90, ball=60, box=50, fish=2, rarity=1)
    words += list_nouns(Counter({("talks", True): 39, ("talks", False): 61}))
    entities = select_words(words, Config(**config))
    assert " ".join(entity.name for entity in entities) == chosen


@pytest.fixture
def build(corpus_of, tmp_path, resources):
    """build(rows, **config): the outcome of the stage; its tables are in tmp_path."""

    def run(rows, **config):
        inputs = {"corpus": corpus_of(tmp_path / "corpus", rows)}
        return run_stage(build_vocabulary, inputs, tmp_path, resources, **config)

    return run


def test_only_training_captions_are_read_and_samples_without_are_counted(
    build, tmp_path
):
    asked = [{"question": "which xylophone is it?", "answer": "none", "type": "which"}]
    rows = [
        {"id": "one", "captions": ["a dog is sleeping", "a dog and a cat"]},
        {"id": "two", "captions": ["a cat is sleeping", "a cat is sleeping"]},
        {"id": "silent", "questions": asked},
    ]
    for split, animal in (("validation", "horse"), ("test", "cow")):
        captions = [f"a {animal}", f"a {animal} runs", f"a {animal} stands"]
        rows.append({"id": split, "split": split, "captions": captions})

    outcome = build(rows, entities=2)
    counts = outcome.counts

    assert not outcome.warnings
    table = pq.read_table(tmp_path / "entities.parquet").to_pylist()
    assert table == [{"entity": "cat", "count": 3}, {"entity": "dog", "count": 2}]
    assert build(rows, entities=9).warnings == [
        f"{counts['nouns']} entities: no more qualify, of 9 that are asked for"
    ]
    assert counts["captions"] == 4
    assert counts["distinct_captions"] == 3
    assert counts["samples_without_caption"] == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"split": "test", "captions": ["a cow", "a cow"]}, "no captions"),
        ({"captions": ["a dog and a cat"]}, "occur 2 times.*entities_file"),
    ],
)
def test_captions_without_entities_are_a_mistake(row, message, build):
    with pytest.raises(InputError, match=message):
        build([{"id": "a"} | row])


def tagged_nouns(*captions):
    """The nouns of captions by the embedded tagger, with their counts."""
    words = tag_unit(CaptionUnit("", list(captions), [1] * len(captions)), "embedded")
    return Counter({noun.name: noun.count for noun in list_nouns(words)})


CAPTIONS = [  # constructions that are frequent in captions and rare in treebanks
    ("a dog and a cat sleep on the sofa", "dog cat sofa"),
    ("The Woman is cutting vegetables in her kitchen.", "woman vegetables kitchen"),
    ("he runs quickly", ""),
    ("a man talks about a car", "man car"),
    ("a chef mixes dough in a bowl", "chef dough bowl"),
    ("a group of people dance", "group people"),
    ("a man wears a striped shirt", "man shirt"),
    ("women talking and laughing", "women"),
    ("he s standing by the window", "window"),
    ("a reporter narrates and explains the weather", "reporter weather"),
    ("two kids are jumping up and down", "kids"),
    ("a cat drinks milk from a bottle", "cat milk bottle"),
]


def test_the_embedded_tagger_tags_the_nouns_of_captions():
    wrong = {}
    missed = []
    for caption, nouns_of_caption in CAPTIONS:
        actual = set(tagged_nouns(caption))
        expected = set(nouns_of_caption.split())
        missed += expected - actual
        if actual - expected:
            wrong[caption] = actual - expected

    assert wrong == {}
    assert len(missed) <= 1, missed  # from 23


def test_a_decomposed_word_is_the_composed_one():
    caption = "a woman opens a caf\u00e9"
    assert tagged_nouns(caption, caption.replace("\u00e9", "e\u0301"))["caf\u00e9"] == 2


def captions_of(number):
    """Captions of words that a tagger is not sure of, in lengths of 1 to 14 words, some of them
    more than once."""
    rng = random.Random(3)
    words = [
        "a",
        "the",
        "man",
        "dog",
        "cooks",
        "talks",
        "dance",
        "plays",
        "striped",
        "hits",
        "up",
        "s",
        "show",
        "cut",
    ]
    captions = Counter()
    for _ in range(number):
        text = " ".join(rng.choices(words, k=rng.randint(1, 14)))
        captions[text] = rng.randint(1, 3)
    return captions


def test_counts_do_not_depend_on_the_units(
    tmp_path, resources, monkeypatch, inline_pool
):
    """Nor on whether they go to a pool."""
    captions = captions_of(150)
    whole = count_words(captions, "embedded", tmp_path, resources)
    assert whole.total() == sum(text.count(" ") + 1 for text in captions.elements())

    for unit, batch, workers in ((40, 1, 2), (7, 3, 1), (100, 256, 1)):
        monkeypatch.setattr(nouns, "CAPTIONS_PER_UNIT", unit)
        monkeypatch.setattr(nouns, "CAPTIONS_PER_BATCH", batch)
        some = Resources(workers=workers, device="cpu")
        assert count_words(captions, "embedded", tmp_path, some) == whole, unit

    backwards = Counter(dict(reversed(captions.items())))
    assert count_words(backwards, "embedded", tmp_path, resources) == whole


def test_a_tagger_that_is_not_installed_raises_an_input_error():
    with pytest.raises(InputError, match=r"tagger = 'en_core_web_none'.*'embedded'"):
        load_tagger("en_core_web_none")


@pytest.fixture(scope="module")
def other_tagger(tmp_path_factory):
    """A spaCy pipeline with components as many models have them, most of no use for tags."""
    import spacy
    from spacy.training import Example

    folder = tmp_path_factory.mktemp("taggers") / "other"
    nlp = spacy.load(nouns.EMBEDDED)
    nlp.add_pipe("sentencizer", first=True)
    nlp.add_pipe("attribute_ruler").add([[{"LOWER": "gizmo"}]], {"POS": "NOUN"})
    known = {"heads": [1, 1], "deps": ["A", "ROOT"], "entities": ["O", "U-A"]}
    example = Example.from_dict(nlp.make_doc("a gizmo"), known)
    for name in ("parser", "ner"):
        nlp.add_pipe(name).initialize(lambda: [example], nlp=nlp)
    nlp.to_disk(folder)
    return str(folder)


def test_another_pipeline_tags_without_its_other_components(other_tagger):
    words = tag_unit(CaptionUnit("", ["the gizmo shines"], [1]), other_tagger)
    assert words["gizmo", True] == 1
    assert "parser" not in load_tagger(other_tagger).pipe_names


TEXTS = [
    "a red ball moves to the left",
    "two shapes, a green box and a blue star",
    "a fish swims in the sea",
] * 2


def test_the_tokenizer_has_the_letters_of_all_training_texts_and_prompts_and_of_no_others(
    corpus_of, tmp_path, resources
):
    """Captions and questions of all corpora, and not those of validation and test."""
    asked = [{"question": "which xylophone is it?", "answer": "none", "type": "which"}]
    held_out = [{"question": "which ζεβρα is it?", "answer": "ζεβρα", "type": "which"}]
    more = {"captions": ["a ζεβρα"], "questions": held_out}
    others = [{"id": split, "split": split, **more} for split in ("validation", "test")]
    captioned = {"id": "a", "captions": ["a dog is sleeping", "a cat"]}
    corpora = {
        "a": corpus_of(tmp_path / "a", [captioned, *others]),
        "b": corpus_of(tmp_path / "b", [{"id": "b", "questions": asked}, *others]),
    }

    counts = run_stage(
        train_tokenizer, corpora, tmp_path, resources, word_pieces=200
    ).counts

    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    assert counts == {"captions": 2, "word_pieces": tokenizer.get_vocab_size()}
    assert "[UNK]" in tokenizer.encode("ζεβρα").tokens
    prompts = [
        templates[0].replace("{}", "dog")
        for templates in Templates().model_dump().values()
    ]
    for text in (*prompts, "which xylophone is it?"):
        assert "[UNK]" not in tokenizer.encode(text).tokens


def test_a_trained_tokenizer_uses_berts_format():
    tokenizer = train(TEXTS, 120)
    encoded = tokenizer.encode("A RED ball")
    words = tokenizer.encode("a red ball", add_special_tokens=False)
    assert encoded.tokens == ["[CLS]", *words.tokens, "[SEP]"]
    assert tokenizer.decode(encoded.ids) == "a red ball"
    special = [tokenizer.id_to_token(number) for number in range(5)]
    assert special == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert tokenizer.encode("☃").tokens == ["[CLS]", "[UNK]", "[SEP]"]
    assert tokenizer.get_vocab_size() <= 120


def test_a_given_tokenizer_is_taken_as_it_is(tmp_path, resources):
    given = train(TEXTS, 120)
    given.save(str(tmp_path / "given.json"))

    file = str(tmp_path / "given.json")
    run_stage(train_tokenizer, {}, tmp_path, resources, tokenizer=file)

    assert (
        Tokenizer.from_file(str(tmp_path / "tokenizer.json")).get_vocab()
        == given.get_vocab()
    )


def test_tokenizer_training_is_deterministic():
    """It depends neither on the order of texts, nor on the process (hash seeds differ), but on
    their counts."""
    program = (
        "import json, sys; from alpro.models.word_pieces import train_tokenizer; "
        "print(train_tokenizer(json.load(sys.stdin), 30).to_str(), end='')"
    )
    # "zebras" is a piece of such a small tokenizer by its count alone.
    texts = [*TEXTS, *5 * ["zebras swim"]]
    command = [sys.executable, "-c", program]
    process = subprocess.run(
        command, input=json.dumps(texts[::-1]), capture_output=True, text=True, cwd=ROOT
    )
    assert process.stdout == train(Counter(texts), 30).to_str(), process.stderr
    assert "zebras" in train(texts, 30).get_vocab()
    assert "zebras" not in train(dict.fromkeys(texts, 1), 30).get_vocab()


def test_a_tokenizer_is_loaded_from_a_file_or_folder_in_both_formats(tmp_path):
    trained = train(TEXTS, 120)
    words = sorted(trained.get_vocab(), key=trained.get_vocab().get)
    (tmp_path / "vocab.txt").write_text("\n".join(words) + "\n")
    by_words = load_tokenizer(str(tmp_path))
    trained.save(str(tmp_path / "tokenizer.json"))
    by_json = load_tokenizer(str(tmp_path))
    by_file = load_tokenizer(str(tmp_path / "tokenizer.json"))

    with pytest.raises(InputError, match="missing, no regular file"):
        load_tokenizer(str(tmp_path / "nothing" / "here"))
    (tmp_path / "cut.txt").write_text("\n".join(words[2:]))
    with one_line("it has no [PAD]"):
        load_tokenizer(str(tmp_path / "cut.txt"))
    ids = trained.encode("A red FISH, unknowable").ids
    for tokenizer in (by_words, by_json, by_file):
        assert tokenizer.encode("A red FISH, unknowable").ids == ids
        assert tokenizer.decode(ids) == trained.decode(ids)  # without special tokens


def test_padding_and_truncation_of_a_tokenizer_are_disabled(tmp_path):
    tokenizer = train(TEXTS, 120)
    expected = BertTokenizer(tokenizer).batch(TEXTS, 9)
    tokenizer.enable_padding(length=12)
    tokenizer.enable_truncation(4)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    loaded = load_tokenizer(str(tmp_path / "tokenizer.json"))
    assert loaded.padding is None
    assert loaded.truncation is None
    near(BertTokenizer(loaded).batch(TEXTS, 9), expected, atol=0)


def test_every_format_gives_the_words_in_order(tmp_path):
    lists = {
        "list.json": '[" dog", "hot dog ", "3"]',
        "ans2label.json": '{"hot dog": 1, "3": 2, "dog": 0}',
        "lines.txt": "dog\nhot dog\n\n3\n",
        "unigrams.txt": "dog 120\nhot dog\t80\n3 7\n",
    }
    for name, text in lists.items():
        (tmp_path / name).write_text(text)
        assert read_word_list(tmp_path / name, "key") == ["dog", "hot dog", "3"]
        # As editors on Windows save it; the case of an extension does not count.
        other = tmp_path / name.upper()
        other.write_text(text, "utf-8-sig", newline="\r\n")
        assert read_word_list(other, "key") == ["dog", "hot dog", "3"]
    # Numbers are removed if every line has one.
    (tmp_path / "a.txt").write_text("formula 1\ndog\n")
    assert read_word_list(tmp_path / "a.txt", "key") == ["formula 1", "dog"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('["a", 6]', "neither a list of words"),
        ('["dog", " "]', "neither a list of words"),
        ('{"a": 0, "b": 0}', "each once"),
        ('{"a": 0, "b": 2}', "each once"),
        ('{"dog": true}', "with the numbers 0, 1, 2"),
        ("[", "cannot be read"),
        ('["dog", "cat", "dog"]', "duplicate word 'dog'"),
    ],
)
def test_other_formats_raise_a_one_line_error(text, message, tmp_path):
    (tmp_path / "a.json").write_text(text)

    with one_line("finetune_qa.answers_file = ", message):
        read_word_list(tmp_path / "a.json", "finetune_qa.answers_file")


def test_a_list_of_entities_replaces_counting(build, tmp_path):
    """Its first M words, even if they are in no caption, excluded, or in a template."""
    words = tmp_path / "unigrams.txt"
    words.write_text("video 90\nzebra 80\nthing 70\nball 60\n")
    rows = [{"id": "a", "captions": ["a dog"]}]

    counts = build(rows, entities=3, entities_file=str(words)).counts

    entities = pq.read_table(tmp_path / "entities.parquet")["entity"].to_pylist()
    assert entities == ["video", "zebra", "thing"]
    assert counts["entities"] == 3
    words.write_text("zebra 80\n")
    with one_line(f"{words}: 1 entities, and at least 2 are needed"):
        build(rows, entities=3, entities_file=str(words))


def test_a_list_of_answers_replaces_the_most_frequent_answers(
    clips, folders, tmp_path, resources
):
    """In the order of the head; all words are used, independent of `answers`."""
    answers = tmp_path / "ans2label.json"
    answers.write_text(json.dumps({"zebra": 2, "left": 0, "one": 1}))
    config = {
        "phases": [{"corpora": ["clips"], "steps": 1}],
        "batch_size": 4,
        "frames": 2,
        "answers": 2,
        "answers_file": str(answers),
    }
    inputs = {"model": folders["pretrain"], "clips": clips}

    run_stage(finetune_qa, inputs, tmp_path / "out", resources, **config)

    folder = ModelBundle.from_pretrained(tmp_path / "out" / "model")
    assert folder.answers == ["left", "one", "zebra"]
    assert folder.model.qa_head[2].bias.shape == (3,)


def test_the_default_templates_are_the_official_ones():
    names = {
        "video": ("footage", "video", "portrait", "video footage"),
        "image": ("photo", "picture", "good photo", "good picture"),
    }
    for kind, templates in Templates().model_dump().items():
        pairs = product(names[kind], ("a", "the", "one"))
        assert templates == tuple(
            f"A {name} of {article} {{}}." for name, article in pairs
        )


def test_a_template_has_exactly_one_placeholder():
    templates = Templates(video=("Ein Film: {}!",), image=("{} (2x Foto)",))
    assert templates.words() == {"ein", "film", "x", "foto"}
    for wrong in ("A dog.", "{} and {}", ""):
        with pytest.raises(ValidationError, match="the place of the entity"):
            Templates(video=(wrong,))
