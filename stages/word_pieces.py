"""Texts to word ids the way BERT takes them: [CLS] text [SEP], cut to a length."""

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from shards.schema import InputError


class WordPieces:
    """A tokenizer with its special tokens looked up once. Raises InputError where one is missing."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer = tokenizer
        self.size = tokenizer.get_vocab_size()
        self.pad_id, self.sep_id, self.mask_id = (self._special(name) for name in ("[PAD]", "[SEP]", "[MASK]"))

    def _special(self, name: str) -> int:
        number = self.tokenizer.token_to_id(name)
        if number is None:
            raise InputError(
                f"the tokenizer has no {name}; it must be a BERT's (WordPiece with [CLS], [SEP], [PAD], [MASK])"
            )
        return number

    def ids(self, texts: list[str], length: int) -> list[np.ndarray]:
        """Word ids of each text, at most `length`, the last always [SEP]."""
        rows = [np.array(encoded.ids[:length], np.int64) for encoded in self.tokenizer.encode_batch(texts)]
        for row in rows:
            row[-1] = self.sep_id
        return rows

    def batch(self, texts: list[str], length: int) -> tuple[Tensor, Tensor]:
        """Word ids and mask (N, L) of texts."""
        rows = self.ids(texts, length)
        return torch.from_numpy(pad(rows, self.pad_id)), torch.from_numpy(pad([np.ones_like(r) for r in rows], 0))


def pad(rows: list[np.ndarray], fill: int, multiple: int = 8) -> np.ndarray:
    """Rows of different lengths to one array, as long as the longest, rounded up so that shapes are few."""
    length = -(-max(len(row) for row in rows) // multiple) * multiple
    out = np.full((len(rows), length), fill, np.int64)
    for i, row in enumerate(rows):
        out[i, : len(row)] = row
    return out
