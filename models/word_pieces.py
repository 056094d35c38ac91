"""Tokenizers as of BERT ([CLS] text [SEP], truncated): training, loading, encoding."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import BertWordPieceTokenizer, Tokenizer, processors
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from torch import Tensor

from alpro.errors import InputError, one_line
from alpro.files import read_small_json
from alpro.models.pretrained import HubName

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
MAX_TOKENIZER_BYTES = 32 << 20


class BertTokenizer:
    """A tokenizer with the ids of its special tokens.

    Raises:
        InputError: If it lacks a special token.
    """

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        ids = tokenizer.get_vocab()
        self.size = len(ids)
        try:
            self.pad_id = ids["[PAD]"]
            self.sep_id = ids["[SEP]"]
            self.mask_id = ids["[MASK]"]
        except KeyError as error:
            raise InputError(
                f"the tokenizer has no {error}; use a BERT tokenizer (WordPiece)"
            ) from error

    def ids(self, texts: list[str], length: int) -> list[np.ndarray]:
        """Return the token ids of each text, truncated to `length`. The last one is [SEP]."""
        rows = []
        for encoding in self.tokenizer.encode_batch(texts):
            row = np.array(encoding.ids[:length], np.int64)
            row[-1] = self.sep_id  # also of a truncated text
            rows.append(row)
        return rows

    def batch(self, texts: list[str], length: int) -> tuple[Tensor, Tensor]:
        """Return the token ids and the attention mask (N, L) of texts."""
        rows = self.ids(texts, length)
        ids = pad(rows, self.pad_id)
        mask = pad([np.ones_like(row) for row in rows], 0)
        return torch.from_numpy(ids), torch.from_numpy(mask)


class ClipTokenizer(BertTokenizer):
    """The tokenizer of a CLIP or SigLIP, which has no [MASK].

    All of these models were trained on lowercased text; some versions of their tokenizers do not
    lowercase.
    """

    tokenizer: Any

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        pad_id = tokenizer.pad_token_id
        if pad_id is None:
            pad_id = tokenizer.eos_token_id
        self.pad_id = int(pad_id)

    def ids(self, texts: list[str], length: int) -> list[np.ndarray]:
        lower = [text.lower() for text in texts]
        encoded = self.tokenizer(lower, max_length=length, truncation=True)
        return [np.array(row, np.int64) for row in encoded["input_ids"]]


def pad_length(length: int) -> int:
    """Round a length up to a multiple of 8, which limits the number of shapes."""
    return -(-length // 8) * 8


def pad(rows: list[np.ndarray], fill: int, length: int = 0) -> np.ndarray:
    """Pad rows to one array with the length of the longest row, or `length`, rounded up."""
    longest = length or max(len(row) for row in rows)
    array = np.full((len(rows), pad_length(longest)), fill, np.int64)
    for i, row in enumerate(rows):
        array[i, : len(row)] = row
    return array


def train_tokenizer(texts: Iterable[str] | Mapping[str, int], size: int) -> Tokenizer:
    """Train a lower-casing WordPiece tokenizer in BERT's format, [CLS] text [SEP].

    Its tokens are the most frequent words, and single characters for other words. Ties are broken
    alphabetically. (The library's trainer breaks them by a random hash, which is not reproducible.)

    Args:
        texts: Texts, or their counts.
        size: Maximum number of tokens.
    """
    normalizer = BertNormalizer(lowercase=True)
    splitter = BertPreTokenizer()
    words = Counter[str]()
    for text, count in Counter(texts).items():
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(text)):
            words[word] += count

    letters = Counter[str]()
    for word, count in words.items():
        letters.update(dict.fromkeys(word, count))

    # A quarter of the tokens are letters. Each has two: at the start of a word, and inside.
    letter_tokens = max(1, (size - len(SPECIAL)) // 4)
    frequent_letters = sort_by_frequency(letters)[: letter_tokens // 2]
    inner_letters = [f"##{letter}" for letter in frequent_letters]
    tokens = [*SPECIAL, *frequent_letters, *inner_letters, *sort_by_frequency(words)]

    # A word of one letter is in the list twice.
    distinct = [*dict.fromkeys(tokens)][:size]
    return build_bert_tokenizer({token: i for i, token in enumerate(distinct)})


def sort_by_frequency(counts: Counter[str]) -> list[str]:
    """Return the keys, the most frequent first, ties in alphabetical order."""
    return sorted(counts, key=lambda key: (-counts[key], key))


def build_bert_tokenizer(vocabulary: dict[str, int]) -> Tokenizer:
    for token in SPECIAL:
        if token not in vocabulary:
            raise ValueError(f"it has no {token}")
    built = BertWordPieceTokenizer(vocabulary, lowercase=True)
    tokenizer = Tokenizer.from_str(built.to_str())
    ends = [(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=ends
    )
    return tokenizer


def load_tokenizer(name: str) -> Tokenizer:
    """Load a tokenizer.

    Args:
        name: A tokenizer.json, a vocab.txt or the folder of either; or a BERT by its name on the
            hub, which is downloaded if it is not cached.

    Raises:
        InputError: If it does not exist or cannot be read.
    """
    path = Path(name)
    hub_name = HubName.parse(name, needs_owner=False)
    try:
        if hub_name and not path.is_file():
            path = hub_name.snapshot("tokenizer.json", "vocab.txt")
        files = [path, path / "tokenizer.json", path / "vocab.txt"]
        file = next((file for file in files if file.is_file()), files[1])
        if file.suffix == ".json":
            return read_tokenizer(file)
        return build_bert_tokenizer(WordPiece.read_file(str(file)))
    except Exception as error:  # the libraries raise nothing narrower
        raise InputError(
            f"tokenizer {name!r}: not readable, and no model on the hub ({one_line(error)}); use a "
            "folder with its tokenizer.json or vocab.txt"
        ) from error


def read_tokenizer(file: Path) -> Tokenizer:
    """Read a tokenizer.json, of at most MAX_TOKENIZER_BYTES, without padding and truncation.

    Raises:
        ValueError: One line, if it is not readable.
    """
    values = read_small_json(file, MAX_TOKENIZER_BYTES)
    try:
        tokenizer = Tokenizer.from_str(json.dumps(values))
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise ValueError(f"{file}: not readable: {one_line(error)}") from error
    # Both are applied later, with an attention mask.
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def check_tokens(tokenizer: Any, embeddings: int, source: Path) -> None:
    """Raise ValueError if a token has no embedding: on a GPU, that is a failed assertion, which ends
    the process."""
    last_id = max(tokenizer.get_vocab().values(), default=0)
    if last_id >= embeddings:
        raise ValueError(f"{source}: token {last_id}, but {embeddings} embeddings")
