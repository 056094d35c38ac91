"""Encodes texts as BERT does ([CLS] text [SEP], truncated), and trains and loads tokenizers."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from torch import Tensor

from alpro.errors import MAX_MESSAGE, InputError, one_line
from alpro.files import read_small_json

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


class BertTokenizer:
    """A tokenizer and the ids of its special tokens. Raises InputError if one is missing."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = without_padding(tokenizer)
        self.size = self.tokenizer.get_vocab_size()
        self.pad_id = self._special("[PAD]")
        self.sep_id = self._special("[SEP]")
        self.mask_id = self._special("[MASK]")

    def _special(self, name: str) -> int:
        token_id = self.tokenizer.token_to_id(name)
        if token_id is None:
            raise InputError(
                f"the tokenizer has no {name}; use a BERT tokenizer (WordPiece with [CLS], [SEP], "
                "[PAD], [MASK])"
            )
        return token_id

    def ids(self, texts: list[str], length: int) -> list[np.ndarray]:
        """Token ids of each text, at most `length`; the last is always [SEP]."""
        # A batch of one wakes the library's threads: 0.16 ms instead of 0.09.
        if len(texts) == 1:
            encodings = [self.tokenizer.encode(texts[0])]
        else:
            encodings = self.tokenizer.encode_batch(texts)

        rows = [np.array(encoding.ids[:length], np.int64) for encoding in encodings]
        for row in rows:
            row[-1] = self.sep_id  # also of a text that is cut
        return rows

    def batch(self, texts: list[str], length: int) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask (N, L) of texts."""
        rows = self.ids(texts, length)
        ids = pad(rows, self.pad_id)
        mask = pad([np.ones_like(row) for row in rows], 0)
        return torch.from_numpy(ids), torch.from_numpy(mask)


def padded(length: int) -> int:
    """Rounds a length up to a multiple of 8, so that there are few shapes."""
    return -(-length // 8) * 8


def pad(rows: list[np.ndarray], fill: int, length: int = 0) -> np.ndarray:
    """Pads rows to one array with the length of the longest row, or `length`, rounded up."""
    longest = length or max(len(row) for row in rows)
    array = np.full((len(rows), padded(longest)), fill, np.int64)
    for i, row in enumerate(rows):
        array[i, : len(row)] = row
    return array


def train_tokenizer(texts: Iterable[str] | Mapping[str, int], size: int) -> Tokenizer:
    """Trains a lower-casing WordPiece tokenizer in BERT's format, [CLS] text [SEP], from texts or
    their counts.

    Its pieces are the most frequent words, and single characters for the rest; ties in alphabetical
    order. (The library's trainer breaks ties by a random hash, which is not reproducible.)
    """
    untrained = bert_tokenizer(models.WordPiece(unk_token="[UNK]"))
    words: Counter[str] = Counter()
    for text, count in Counter(texts).items():
        normalized = untrained.normalizer.normalize_str(text)
        for word, _ in untrained.pre_tokenizer.pre_tokenize_str(normalized):
            words[word] += count

    letters: Counter[str] = Counter()
    for word, count in words.items():
        letters.update(dict.fromkeys(word, count))

    # A quarter of the pieces are letters, each of which has two: at the start of a word, and
    # inside.
    letter_pieces = max(1, (size - len(SPECIAL)) // 4)
    frequent_letters = by_frequency(letters)[: letter_pieces // 2]
    inner_letters = [f"##{letter}" for letter in frequent_letters]
    pieces = [*SPECIAL, *frequent_letters, *inner_letters, *by_frequency(words)]

    # A word of one letter comes twice.
    distinct = list(dict.fromkeys(pieces))[:size]
    vocabulary = {piece: index for index, piece in enumerate(distinct)}
    model = models.WordPiece(vocabulary, unk_token="[UNK]")
    return finish_tokenizer(bert_tokenizer(model))


def by_frequency(counts: Counter[str]) -> list[str]:
    """The keys from the most frequent on, ties in alphabetical order."""
    return sorted(counts, key=lambda key: (-counts[key], key))


def bert_tokenizer(model: models.WordPiece) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def finish_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.add_special_tokens(SPECIAL)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    return tokenizer


def load_tokenizer(name: str) -> Tokenizer:
    """Loads a tokenizer.json, a vocab.txt or the folder of either, or a BERT by its name on the hub
    or in its cache.

    Raises InputError if it does not exist or cannot be read.
    """
    path = Path(name)
    file = None
    try:
        candidates = (path, path / "tokenizer.json", path / "vocab.txt")
        files = [candidate for candidate in candidates if candidate.is_file()]
        file = files[0] if files else None
        if file is None:
            identifier, _, revision = name.partition("@")
            return without_padding(Tokenizer.from_pretrained(identifier, revision or "main"))

        if file.suffix == ".json":
            return without_padding(read_tokenizer(file))
        model = models.WordPiece.from_file(str(file), unk_token="[UNK]")
        return finish_tokenizer(bert_tokenizer(model))
    except Exception as error:  # the tokenizers library raises nothing narrower
        if file is not None:
            message = one_line(error, max_length=MAX_MESSAGE)
            reason = message.removeprefix(f"{file}: ").removeprefix("not readable: ")
            raise InputError(f"tokenizer {file}: not readable: {reason}") from error
        raise InputError(
            f"tokenizer {name!r}: no such file or folder, and no such model on the hub "
            f"({type(error).__name__}); use a folder with its tokenizer.json or vocab.txt"
        ) from error


MAX_TOKENIZER_BYTES = 32 << 20
MAX_COMPONENT = 10_000  # characters of JSON, without the vocabulary
# Characters: a longer word is [UNK]. Pieces of a word are tried from the longest on: quadratic
# time.
MAX_WORD = 1000
# Components whose time and memory grow with the text alone. A regular expression may need
# exponential time, and a chain of replacements doubles the text with each.
COMPONENTS = {
    "normalizer": {
        "BertNormalizer",
        "Lowercase",
        "NFC",
        "NFD",
        "NFKC",
        "NFKD",
        "Strip",
        "StripAccents",
        "Sequence",
    },
    "pre_tokenizer": {
        "BertPreTokenizer",
        "Whitespace",
        "WhitespaceSplit",
        "Punctuation",
        "Digits",
        "Sequence",
    },
    "model": {"WordPiece", "WordLevel"},
    "post_processor": {"TemplateProcessing", "BertProcessing", "Sequence"},
    "decoder": {"WordPiece"},
}


def read_tokenizer(file: Path) -> Tokenizer:
    """The tokenizer of an untrusted tokenizer.json: its components are checked before it is built.

    Raises ValueError with a one-line message if it is not readable, or has components that a BERT
    tokenizer has not.
    """
    try:
        values = read_small_json(file, MAX_TOKENIZER_BYTES)
        check_components(values)
    except (AttributeError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{file}: not a tokenizer") from error
    except ValueError as error:
        message = str(error)
        if str(file) not in message:
            message = f"{file}: {message}"
        raise ValueError(message) from error

    try:
        return Tokenizer.from_str(json.dumps(values))
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise ValueError(f"{file}: not readable: {one_line(error)}") from error


def check_components(values: Any) -> None:
    """Raises ValueError, AttributeError or TypeError if the JSON of a tokenizer is not that of a
    BERT tokenizer."""
    for name, allowed in COMPONENTS.items():
        for component in components(values.get(name)):
            # Old files of a WordPiece model do not say its type.
            kind = component.get("type", "WordPiece")
            if kind not in allowed:
                raise ValueError(f"its {name} is {kind}; use a BERT tokenizer (WordPiece)")

        if name == "model":
            continue  # its vocabulary is long
        length = len(json.dumps(values.get(name)))
        if length > MAX_COMPONENT:
            raise ValueError(
                f"its {name} has {length:,} characters; use a BERT tokenizer (WordPiece)"
            )

    max_word = values["model"].get("max_input_chars_per_word", 0)
    if max_word > MAX_WORD:
        raise ValueError(f"max_input_chars_per_word is {max_word}; at most {MAX_WORD}")

    if not all(token["content"] for token in values.get("added_tokens", [])):
        raise ValueError("an added token is empty")


def components(value: Any) -> Iterator[dict[str, Any]]:
    """A component of a tokenizer, and those in a sequence of them."""
    if isinstance(value, dict):
        yield value
        for key in ("normalizers", "pretokenizers", "processors"):
            for inner in value.get(key, ()):
                yield from components(inner)


def without_padding(tokenizer: Tokenizer) -> Tokenizer:
    """Returns the tokenizer without padding and truncation, which a file may enable: both are
    applied later, with an attention mask. The argument is not modified."""
    if tokenizer.padding or tokenizer.truncation:
        tokenizer = Tokenizer.from_str(tokenizer.to_str())
        tokenizer.no_padding()
        tokenizer.no_truncation()
    return tokenizer
