"""Which words of a text a model knows, and whether it reads all of them."""

import re
from collections.abc import Sequence
from typing import Any

import regex
from tokenizers import Tokenizer

from alpro.models.clip_prompter import wrap_tokenizer

MIN_PIECE = 3  # letters of a token, on average, of a word that the model knows
# A word with its combining marks, as in models/words.py, or symbols, such as emoji.
WORD = regex.compile(r"[\w\p{M}\u200c\u200d]+|[^\w\s.,;:!?'\"()-]+")
# Words without contents, which captions may lack.
FUNCTION_WORD = re.compile(
    "a|an|the|and|or|but|not|of|in|on|at|to|from|by|for|with|as|is|are|was|were|be|been|do|does"
    "|did|has|have|had|it|its|he|she|they|his|her|their|this|that|these|those|who|what|which"
    "|where|when|how|i|you|we|my|your|our|s|t",
    re.IGNORECASE,
)


def unknown_words(tokenizer: Any, text: str) -> list[str]:
    """Return the content words of a text that are not in the tokenizer, or only in tokens of fewer
    than MIN_PIECE letters on average, such as words that no training caption has.

    Scores of such a text mean little. The tokenizer of a CLIP has all bytes, so it knows all words.
    """
    if not isinstance(tokenizer, Tokenizer):
        return []

    unknown = []
    for word in dict.fromkeys(WORD.findall(text)):
        if FUNCTION_WORD.fullmatch(word):
            continue
        pieces = tokenizer.encode(word, add_special_tokens=False).tokens
        # Known words are one piece, or a few long ones, such as a stem and its ending.
        is_in_short_pieces = len(pieces) > 1 and len(word) < MIN_PIECE * len(pieces)
        if not pieces or "[UNK]" in pieces or is_in_short_pieces:
            unknown.append(word)
    return unknown


def too_long_texts(tokenizer: Any, texts: Sequence[str], length: int) -> list[str]:
    """Return the texts with more than `length` tokens, of which the last one marks the end.

    Args:
        tokenizer: That of a BERT, or of a CLIP or SigLIP of transformers.
    """
    rows = wrap_tokenizer(tokenizer).ids([*texts], length + 1)
    return [text for text, ids in zip(texts, rows, strict=True) if len(ids) > length]
