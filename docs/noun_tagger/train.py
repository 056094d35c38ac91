"""Trains the embedded noun tagger: python docs/noun_tagger/train.py TREEBANK OUT

TREEBANK contains en_ewt-ud-{train,dev,test}.conllu of Universal Dependencies English EWT. The model
is written to OUT. The treebank is prose, and captions are not. The tagger therefore learns from
three texts: the treebank as written; the treebank in the style of captions (lower case, no full
stop, no apostrophes); and composed captions ("a dog chases two cats"), a form that prose rarely
has. Their words come from the treebank, and from the words that WordNet lists only as nouns or only
as verbs, because the treebank has no trampoline. Requires spacy-lookups-data, which has WordNet's
words. Its noun tables become the lemmatizer.
"""

import argparse
import math
import random
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import spacy
from spacy.cli.train import train
from spacy.lookups import Lookups, load_lookups
from spacy.tokens import Doc, DocBin
from thinc.api import NumpyOps, set_current_ops

COMPOSED = 20_000  # captions; the treebank has 12,544 sentences


class Word(NamedTuple):
    """A word of the treebank. Only nouns have a number: the lemmatizer needs to know which are
    singular."""

    text: str
    tag: str
    number: str = ""
    space: bool = True


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "treebank", type=Path, help="a folder with en_ewt-ud-{train,dev,test}.conllu"
    )
    parser.add_argument(
        "out", type=Path, help="folder for the model; replaced if it exists"
    )
    arguments = parser.parse_args()
    set_current_ops(NumpyOps(use_blis=False))  # numpy halves the training time
    rng = random.Random(0)
    sentences = {
        part: read(arguments.treebank / f"en_ewt-ud-{part}.conllu")
        for part in ("train", "dev", "test")
    }
    composer = Composer(arguments.treebank / "en_ewt-ud-train.conllu", rng)
    plain = [as_caption(sentence, rng) for sentence in sentences["train"]]
    composed = [composer.caption() for _ in range(COMPOSED)]
    with tempfile.TemporaryDirectory() as folder:
        files = {
            "paths.train": f"{folder}/train.spacy",
            "paths.dev": f"{folder}/dev.spacy",
        }
        save(sentences["train"] + plain + composed, Path(files["paths.train"]))
        save(
            sentences["dev"]
            + [as_caption(sentence, rng) for sentence in sentences["dev"]],
            Path(files["paths.dev"]),
        )
        train(
            Path(__file__).with_name("train.cfg"), Path(folder) / "out", overrides=files
        )
        nlp = spacy.load(f"{folder}/out/model-last")
    add_lemmatizer(nlp, arguments.treebank / "en_ewt-ud-train.conllu")
    nlp.meta |= {
        "name": "nouns",
        "license": "CC BY-SA 4.0",
        "sources": ["UD English EWT", "WordNet 3.0"],
    }
    nlp.to_disk(arguments.out)
    score(nlp, sentences["test"])


def read(file: Path) -> list[list[Word]]:
    """Return the sentences of a CoNLL-U file."""
    return [[word for word, _, _ in sentence] for sentence in _read(file)]


def _read(file: Path) -> Iterator[list[tuple[Word, str, str]]]:
    """Sentences of words, each with its lemma and its Penn tag."""
    sentence: list[tuple[Word, str, str]] = []
    for line in file.read_text("utf-8").split("\n"):
        cells = line.split("\t")
        if not line and sentence:
            yield sentence
            sentence = []
        elif (
            len(cells) == 10 and cells[0].isdigit()
        ):  # skips ranges such as "1-2"; their words follow
            features = dict(
                pair.split("=") for pair in cells[5].split("|") if "=" in pair
            )
            number = features.get("Number", "") if cells[3] == "NOUN" else ""
            sentence.append(
                (
                    Word(cells[1], cells[3], number, "SpaceAfter=No" not in cells[9]),
                    cells[2],
                    cells[4],
                )
            )


def as_caption(sentence: list[Word], rng: random.Random) -> list[Word]:
    """Return a sentence in lower case, usually without its full stop, and half the time without
    apostrophes: captions often have "he s" for "he's", and "isn t" for "isn't"."""
    if len(sentence) > 1 and sentence[-1].tag == "PUNCT" and rng.random() < 0.8:
        sentence = sentence[:-1]
    words = [word._replace(text=word.text.lower()) for word in sentence]
    if rng.random() < 0.5:
        for i, word in enumerate(words):
            text = word.text.replace("’", "'")
            if i and text == "n't":
                words[i - 1] = words[i - 1]._replace(text=words[i - 1].text + "n")
                text = "t"
            words[i] = word._replace(text=text.replace("'", ""), space=True)
    return [word for word in words if word.text]


class Composer:
    """Composes captions from a treebank's words, sampled by the square root of their counts. A
    third of the nouns, and of the verbs except those in -ing and -ed, are WordNet's."""

    def __init__(self, file: Path, rng: random.Random):
        self.rng = rng
        words_of: defaultdict[str, Counter[Word]] = defaultdict(Counter)
        tags: defaultdict[str, set[str]] = defaultdict(set)
        for sentence in _read(file):
            for word, lemma, penn in sentence:
                text = word.text.lower()
                tags[text].add(word.tag)
                if not text.isalpha() or len(text) < 2:
                    continue
                if (penn, word.tag) in KINDS:
                    words_of[penn][Word(text, word.tag, word.number)] += 1
                if word.tag == "VERB" and lemma.isalpha():
                    words_of["VBZ"][Word(with_s(lemma.lower()), "VERB")] += 1
        self.kinds: defaultdict[str, list[tuple[list[Word], list[float]]]] = (
            defaultdict(list)
        )
        for kind, counts in words_of.items():
            self.kinds[kind].append((list(counts), [n**0.5 for n in counts.values()]))
        for tag, plain, in_s in (
            ("NOUN", ("NN", "Sing"), ("NNS", "Plur")),
            ("VERB", ("VB", ""), ("VBZ", "")),
        ):
            words, weights = wordnet(
                tag, {text for text in tags if tags[text] - {tag, "PROPN"}}
            )
            self.kinds[plain[0]].append(
                ([Word(word, tag, plain[1]) for word in words], weights)
            )
            self.kinds[in_s[0]].append(
                ([Word(with_s(word), tag, in_s[1]) for word in words], weights)
            )

    def draw(self, kind: str) -> Word:
        own, *wordnets = self.kinds[kind]
        words, weights = wordnets[0] if wordnets and self.rng.random() < 0.35 else own
        return self.rng.choices(words, weights)[0]

    def caption(self) -> list[Word]:
        """One caption, as a list of words."""
        return list(self.expand("caption"))

    def expand(self, symbol: str) -> Iterator[Word]:
        """Expand a symbol of GRAMMAR to words. A Penn tag becomes a word of the treebank."""
        if symbol in GRAMMAR:
            rules, weights = GRAMMAR[symbol]
            for part in self.rng.choices(rules, weights)[0].split():
                yield from self.expand(part)
        elif symbol in self.kinds:
            yield self.draw(symbol)
        else:
            text, tag = symbol.split("/")
            yield Word(text, tag)


KINDS = {
    ("NN", "NOUN"),
    ("NNS", "NOUN"),
    ("JJ", "ADJ"),
    ("VBG", "VERB"),
    ("VBN", "VERB"),
    ("VB", "VERB"),
}
KINDS |= {("RB", "ADV"), ("RP", "ADP"), ("NNP", "PROPN"), ("CD", "NUM")}


def rules(**choices: dict[str, float]) -> dict[str, tuple[list[str], list[float]]]:
    return {
        symbol: (list(weights), list(weights.values()))
        for symbol, weights in choices.items()
    }


def words(tag: str, text: str) -> dict[str, float]:
    return {f"{word}/{tag}": 1.0 for word in text.split()}


PREPOSITIONS = (
    "in on with of at from for to into through over around behind beside near by down along across "
    "inside outside "
    "under about during"
)

# The forms of a caption and their weights. WORD/TAG is a literal word, a Penn tag a word of the
# treebank.
GRAMMAR = rules(
    caption={
        "one acts_one": 5,
        "many act_many": 3,
        # "a women sings": such errors are common in captions.
        "article NNS acts_one": 0.3,
        "one act_many": 0.3,
        "NNS VBZ object": 0.2,
        "one VBG object": 2,
        "NN acts_one": 1,
        "NN VBG object": 1,
        "NNS VBG object": 0.7,
        "there/PRON is/VERB one doing": 0.5,
        "there/PRON are/VERB many doing": 0.5,
        "one place": 1,
        "NNP acts_one": 0.5,
        "pronoun acts_one": 0.7,
        "VBG object": 0.3,
        "one being shown": 0.5,
        "one and/CCONJ one act_many": 0.7,
    },
    acts_one={
        "VBZ object": 4,
        "VBZ place": 2,
        "VBZ RP object": 0.7,
        "VBZ to/ADP object": 0.7,
        "VBZ about/ADP object": 0.7,
        "VBZ and/CCONJ VBZ": 0.5,
        "VBZ": 0.7,
        "VBZ how/ADV to/PART VB object": 0.5,
        "is/AUX doing": 5,
        "is/AUX JJ": 0.5,
        "VBZ object and/CCONJ VBZ object": 1,
        "VBZ while/SCONJ VBG object": 0.5,
        "RB VBZ object": 0.3,
        "VBZ object while/SCONJ one VBZ": 0.3,
        "VBZ place while/SCONJ pronoun VBZ place": 0.3,
        "VBZ to/PART VB object": 0.3,
        "being shown": 0.5,
        "s/AUX doing": 0.3,
    },
    act_many={
        "VB object": 2,
        "VB place": 1,
        "VB": 0.5,
        "are/AUX doing": 5,
        "VB and/CCONJ VB object": 0.5,
    },
    doing={
        "VBG object": 4,
        "VBG place": 3,
        "VBG place VBG place": 0.5,
        "VBG object VBG place": 0.3,
        "VBG": 1,
        "VBG RP": 0.3,
        "VBG RP object": 0.7,
        "VBG about/ADP object": 1,
        "VBG and/CCONJ VBG object": 1,
        "VBG object and/CCONJ VBG": 0.5,
        "VBG object while/SCONJ VBG": 0.7,
        "VBG RB": 0.4,
        "VBG to/PART VB object": 0.3,
        "VBG how/ADV to/PART VB object": 0.7,
    },
    being={"is/AUX": 1, "is/AUX being/AUX": 1},
    shown={"VBN place": 1, "VBN by/ADP object": 1, "VBN": 0.7, "VBN VBG object": 0.7},
    object={
        "one": 4,
        "many": 2,
        "one place": 2,
        "many place": 1,
        "NN": 1.5,
        "NNP": 0.2,
        "thing JJ color": 0.1,
    },
    place={
        "preposition one": 4,
        "preposition many": 1,
        "preposition NN": 0.7,
        "preposition one place": 0.5,
    },
    one={
        "article thing": 6,
        "article JJ thing": 3,
        "article JJ and/CCONJ JJ thing": 0.3,
        "article JJ JJ thing": 0.3,
        "article thing possessive thing": 0.3,
        "article NN of/ADP many": 0.5,
        "article NN of/ADP NN": 0.5,
        "owner thing": 1,
        "article NN dressed/VERB in/ADP JJ": 0.1,
    },
    many={
        "NNS": 2,
        "JJ NNS": 1,
        "CD NNS": 1,
        "some/DET NNS": 0.5,
        "the/DET NN NNS": 0.2,
        "owner NNS": 0.5,
        "NN NNS": 0.2,
    },
    thing={"NN": 5, "NN NN": 1.2, "VBG NN": 0.2, "NNP NN": 0.2},
    color={"in/ADP JJ": 1},
    possessive={"'s/PART": 1, "s/PART": 1},
    article={
        "a/DET": 5,
        "the/DET": 2,
        "another/DET": 0.2,
        "this/DET": 0.2,
        "one/NUM": 0.3,
    },
    owner=words("PRON", "his her their its"),
    pronoun=words("PRON", "he she someone it"),
    preposition=words("ADP", PREPOSITIONS),
)


def with_s(word: str) -> str:
    """Return the third person of a verb, or the plural of a noun: plays, carries, watches.

    >>> [with_s(word) for word in ("play", "carry", "watch", "go")]
    ['plays', 'carries', 'watches', 'goes']
    """
    if word in ("be", "have"):
        return {"be": "is", "have": "has"}[word]
    if word[-1:] == "y" and word[-2:-1] not in "aeiou":
        return word[:-1] + "ies"
    return word + ("es" if word.endswith(("s", "x", "z", "ch", "sh", "o")) else "s")


def wordnet(tag: str, excluded: set[str]) -> tuple[list[str], list[float]]:
    """Return the 8,000 most probable words that are only nouns, or only verbs, and the square roots
    of their probabilities.

    Names, which are usually capitalized, are left out.

    Args:
        tag: The tag of nouns, or of verbs.
        excluded: Words with other tags.
    """
    tables = load_lookups("en", ["lemma_index", "lexeme_prob"])
    index = tables.get_table("lemma_index")
    probability = tables.get_table("lexeme_prob")
    elsewhere = excluded.union(
        *(index[kind] for kind in ("noun", "verb", "adj", "adv") if kind != tag.lower())
    )
    log_probabilities = {}
    for word in set(index[tag.lower()]) - elsewhere:
        formed = len(word) < 4 or word.endswith(("s", "ing", "ed"))
        if (
            word.isalpha()
            and not formed
            and probability.get(word, -99) > probability.get(word.capitalize(), -99)
        ):
            log_probabilities[word] = probability[word]
    words = sorted(
        log_probabilities, key=lambda word: (-log_probabilities[word], word)
    )[:8000]
    return words, [math.exp(log_probabilities[word] / 2) for word in words]


def to_doc(vocab: spacy.Vocab, sentence: list[Word]) -> Doc:
    morphs = [f"Number={word.number}" if word.number else "" for word in sentence]
    texts, tags, spaces = (
        [getattr(word, key) for word in sentence] for key in ("text", "tag", "space")
    )
    return Doc(vocab, texts, spaces, pos=tags, morphs=morphs)


def save(sentences: list[list[Word]], file: Path) -> None:
    vocab = spacy.blank("en").vocab
    DocBin(
        ["POS", "MORPH"], docs=(to_doc(vocab, sentence) for sentence in sentences)
    ).to_disk(file)


def add_lemmatizer(nlp: spacy.Language, file: Path) -> None:
    """Add spaCy's rules for English with the tables of nouns only: other words are not lemmatized.
    Words that the treebank marks as plural only, such as clothes, stay unchanged."""
    lookups = load_lookups("en", ["lemma_rules", "lemma_exc", "lemma_index"])
    tables = {name: lookups.get_table(name)["noun"] for name in lookups.tables}
    for sentence in _read(file):
        for word, lemma, _ in sentence:
            if word.number == "Ptan" and lemma == word.text.lower():
                tables["lemma_exc"][lemma] = [lemma]
    nouns = Lookups()
    for name, table in tables.items():
        nouns.add_table(name, {"noun": table})
    lemmatizer = nlp.add_pipe("lemmatizer", config={"mode": "rule"})
    lemmatizer.initialize(lookups=nouns)  # type: ignore[attr-defined]


def score(nlp: spacy.Language, test: list[list[Word]]) -> None:
    """Print precision, recall and F1 of nouns, and the accuracy over all tags, on the test split
    with gold tokens."""
    rng = random.Random(1)
    lower = [
        [word._replace(text=word.text.lower()) for word in sentence]
        for sentence in test
    ]
    texts = {
        "as written": test,
        "lower-cased": lower,
        "as captions": [as_caption(sentence, rng) for sentence in test],
    }
    for name, sentences in texts.items():
        right: Counter[str] = Counter()
        for sentence in sentences:
            doc = nlp(Doc(nlp.vocab, [word.text for word in sentence]))
            for token, word in zip(doc, sentence, strict=True):
                right["all"] += 1
                right["same"] += token.pos_ == word.tag
                right["predicted"] += token.pos_ == "NOUN"
                right["actual"] += word.tag == "NOUN"
                right["both"] += token.pos_ == word.tag == "NOUN"
        precision = right["both"] / right["predicted"]
        recall = right["both"] / right["actual"]
        f1 = 2 * precision * recall / (precision + recall)
        print(
            f"{name:12} {precision:.3f} {recall:.3f} {f1:.3f} {right['same'] / right['all']:.3f}"
        )


if __name__ == "__main__":
    main()
