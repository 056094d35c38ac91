"""Which words of a text a model knows, and which part of it the model reads."""

import re
from typing import Any

import regex
from tokenizers import Tokenizer

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


def truncate(tokenizer: Any, text: str, length: int) -> str:
    """Return the part of a text that a model reads.

    Args:
        tokenizer: That of a BERT, or of a CLIP or SigLIP of transformers.
        text: A text.
        length: Maximum number of tokens, of which the last one marks the end.
    """
    if isinstance(tokenizer, Tokenizer):
        spans = tokenizer.encode(text).offsets
    else:
        spans = tokenizer(text, return_offsets_mapping=True, verbose=False)[
            "offset_mapping"
        ]
    if len(spans) <= length:
        return text
    end = spans[length - 2][1]
    # If a word is truncated, its rest would look like an unknown word.
    return (
        text[:end]
        if not text[end : end + 1].isalnum()
        else re.sub(r"\w+$", "", text[:end])
    )


def describe_unread(tokenizer: Any, text: str, length: int) -> str:
    """Return a line on the end of a text that is too long, and on unknown words; empty if all is
    read. Arguments are as of `truncate`."""
    read = truncate(tokenizer, text, length)
    notes = []
    if read != text:
        last_words = " ".join(read.split()[-4:])
        notes.append(
            f"the text is too long: the model reads only the first {length} tokens, up to "
            f"{last_words!r}"
        )
    words = ", ".join(unknown_words(tokenizer, read))
    if words:
        notes.append(f"the model does not know: {words}; the scores may mean nothing")
    return "; ".join(notes)
