"""Questions and their answers, as records have them: one answer, several, or options and which of
them is right."""

import re
from collections import Counter
from collections.abc import Iterable
from typing import Any

from alpro.shards.sources.cells import folded, json_list

# a0 to a4 (NExT-QA), a1 to a5 (TGIF-QA), option_1, mc_option_0, "option 0" (EgoSchema).
OPTION_WORD = (
    r"(?:mc[ _-]?|multiple[ _-]choice[ _-]?)?(?:answer[ _-]?)?(?:op|opt|option|choice|candidate)"
)
OPTION = re.compile(rf"(?i)(?:a|ans|answer|{OPTION_WORD})[ _-]?(\d)")
# option_a, answerB, A.
LETTERED_OPTION = re.compile(rf"(?:(?i:ans|answer|{OPTION_WORD})[ _-]?([A-Ja-j])|([A-J]))")
OPTION_LISTS = (
    *("options", "choices", "candidates", "answer_choices", "answer_options", "multi_choice"),
    *("multiple_choice", "multiple_choices", "mc_options", "candidate_answers"),
)
# What separates the options in a text: the letter before each, or a sign that no option has.
BEFORE_OPTION = re.compile(r"(?:^|[\s;,|])\(?([A-J])[).:]\s*(?=\S)")
SEPARATORS = ("\n", "|", ";")
NUMBER = re.compile(r"\d{1,2}(?:\.0)?")
MAX_LOOKED_AT = 20  # records without options, after which a file has none
LETTERS = "ABCDEFGHIJ"
SEVERAL_LETTERS = re.compile(r"[A-J](?:\s*[,;/&+]\s*[A-J])+")
WHOLE_NUMBER = re.compile(r"^(-?\d+)\.0$")
LETTER = re.compile(r"\(?([A-Ja-j])[).:]?")


def question_of(record: dict[str, Any], kind: str, first: int | None = None) -> dict[str, str]:
    """The question of a record, its answer, and its type: the column `kind`, or its first word.

    first: the number of the first option, see `first_option`. Raises ValueError.
    """
    if isinstance(record.get("question"), list | dict):
        raise ValueError("the question is not a text; write a record for each question")
    question = " ".join(text_of(record.get("question")).split())
    answer = answer_of(record, first)
    if not question or not answer:
        raise ValueError("empty question or answer")

    first_word = question.split()[0]
    type_name = str(record.get(kind) or first_word)
    return {
        "question": question,
        "answer": answer,
        "type": question_type(type_name),
    }


def text_of(value: Any) -> str:
    """A cell as a text: 0 is "0", 2.0 is "2", as a column of whole numbers with gaps becomes, and
    False is "false"."""
    if value is None or value != value:  # NaN
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return str(value)


def answer_of(record: dict[str, Any], first: int | None) -> str:
    """The answer of a record: of several, the most frequent, of equally frequent ones the first; of
    options, the text of the right one. Raises ValueError if it is not clear which."""
    value = record.get("answer")
    several = json_list(value) if isinstance(value, str) else value
    if isinstance(several, list):
        counts: Counter[str] = Counter()
        for each in several:
            # VQA's annotations have objects with the key `answer`.
            cell = each.get("answer") if isinstance(each, dict) else each
            counts[" ".join(text_of(cell).split())] += 1
        del counts[""]
        value = ""
        if counts:
            value, _ = counts.most_common(1)[0]
    elif isinstance(value, dict) and value and all(map(is_count, value.values())):
        value = max(value, key=value.__getitem__)  # of equally frequent ones the first
    if isinstance(value, dict | list):
        raise ValueError("the answer is neither a text nor a number")

    answer = " ".join(text_of(value).split())
    answer = WHOLE_NUMBER.sub(r"\1", answer)  # 2.0 of a column with gaps
    options, numbered_from = options_of(record)
    if not options and (LETTER.fullmatch(answer) or NUMBER.fullmatch(answer)):
        unread = next((name for name in OPTION_LISTS if record.get(name)), "")
        if unread:
            # A letter or a number alone would become a class of its own.
            raise ValueError(
                f"the answer {answer} names one of the `{unread}`, which are not a list; write "
                "them as a JSON list"
            )
    if not options or not answer:
        return answer
    # `option2` or `Option B` is the name of the right column.
    for name, option in record.items():
        is_option = OPTION.fullmatch(name) or LETTERED_OPTION.fullmatch(name)
        is_long = len(name) > 1  # A is a letter
        if is_option and is_long and folded(name) == folded(answer):
            return option_text(option)
    if isinstance(value, bool) and answer not in map(str.casefold, options):
        answer = "yes" if value else "no"
    # Names that count from 0 settle it: the answers do, too.
    if numbered_from == 0:
        first = 0
    return right_option(answer, options, first)


def options_of(record: dict[str, Any]) -> tuple[list[str], int | None]:
    """The options of a record, in order, and the number in the name of the first (a list: None)."""
    for name in OPTION_LISTS:
        value = record.get(name)
        value = options_in(value) if isinstance(value, str) else value
        # {"A": ..., "B": ...}: options by their letters or numbers.
        if isinstance(value, dict):
            keys = sorted(value)
            digits = "".join(map(str, range(len(keys))))
            if "".join(keys).upper() in (LETTERS[: len(keys)], digits):
                value = [value[key] for key in keys]
        if isinstance(value, list) and len(value) > 1:
            return [option_text(each) for each in value], None

    numbered = {}
    lettered = {}
    for name, value in record.items():
        match = OPTION.fullmatch(name)
        letter = LETTERED_OPTION.fullmatch(name)
        if match and value is not None:
            numbered[int(match[1])] = option_text(value)
        elif letter and value is not None:
            lettered[(letter[1] or letter[2]).upper()] = option_text(value)

    letters = sorted(lettered)
    if len(letters) > 1 and "".join(letters) == LETTERS[: len(letters)]:
        return [lettered[letter] for letter in letters], None
    if len(numbered) < 2:
        return [], None

    numbers = sorted(numbered)
    first = numbers[0]
    consecutive = list(range(first, first + len(numbers)))
    # With a gap, or from 2 on, these columns are something else.
    if first > 1 or numbers != consecutive:
        return [], None
    return [numbered[number] for number in numbers], first


def options_in(text: str) -> list[Any]:
    """The options in a text; empty if it is not clear where each begins.

    >>> options_in("A. a dog B. a cat"), options_in("a dog|a cat"), options_in("a dog, a cat")
    (['a dog', 'a cat'], ['a dog', 'a cat'], [])
    """
    listed = json_list(text)
    if listed is not None:
        return listed

    before, *parts = BEFORE_OPTION.split(text)
    letters = "".join(parts[::2])
    if not before.strip() and len(letters) > 1 and letters == LETTERS[: len(letters)]:
        return [part.strip(" ;,|\n") for part in parts[1::2]]
    for separator in SEPARATORS:
        options = [part.strip() for part in text.split(separator) if part.strip()]
        if len(options) > 1:
            return options
    return []


def is_count(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def option_text(value: Any) -> str:
    """The text of an option without a letter before it, such as `B. a dog`; of STAR's objects,
    their `choice`."""
    if isinstance(value, dict):
        value = value.get("choice", value.get("text", ""))
    text = " ".join(text_of(value).split())
    return re.sub(r"^\(?[A-J][).:]\s+", "", text)


def right_option(answer: str, options: list[str], first: int | None) -> str:
    """The text of the right option, which an answer has as its text, its number or its letter."""
    folded_options = [option.casefold().rstrip(".") for option in options]
    folded_answer = option_text(answer).casefold().rstrip(".")
    letter = LETTER.fullmatch(answer)
    are_numbers = all(map(NUMBER.fullmatch, options))
    if first is None and are_numbers and folded_answer in folded_options:
        return answer  # a count, among counts
    if NUMBER.fullmatch(answer):
        if first is None:
            raise ValueError(
                f"the answer {answer} is the number of an option, and whether they count from 0 "
                "or 1 is not clear; write the option's text"
            )
        index = int(float(answer)) - first
    # Before the letter: an option may be the text `A`.
    elif folded_answer in folded_options:
        index = folded_options.index(folded_answer)
    elif letter:
        index = LETTERS.index(letter[1].upper())
    elif SEVERAL_LETTERS.fullmatch(answer) or re.fullmatch(r"-\d+", answer):
        raise ValueError(f"the answer {answer} is not one of the {len(options)} options")
    else:
        return answer

    if not 0 <= index < len(options):
        raise ValueError(f"the answer {answer} is none of the {len(options)} options")
    return options[index]


def first_option(records: Iterable[Any]) -> int | None:
    """The number of the first option in the records of a file: 0 if an answer is 0, 1 if one is the
    number of options; None if the answers do not tell, or if the first records have no options."""
    has_options = False
    for record_index, record in enumerate(records):
        if not isinstance(record, dict):
            continue

        options, _ = options_of(record)
        has_options = has_options or bool(options)
        if record_index > MAX_LOOKED_AT and not has_options:
            return None

        # A count among counts may be the text of an option as well as its number.
        if all(map(NUMBER.fullmatch, options)):
            continue
        answer = text_of(record.get("answer")).strip()
        if NUMBER.fullmatch(answer):
            number = int(float(answer))
            if number in (0, len(options)):
                return int(number > 0)
    return None


def question_type(text: str) -> str:
    """Normalises a question type for the name of a metric: [a-z0-9_-]+.

    >>> [question_type(text) for text in ("What's", "(what", "Yes/No", "?")]
    ['what', 'what', 'yes_no', 'other']
    """
    word = re.sub(r"(?<=\w)['’]\w*", "", text.lower())
    return re.sub(r"[^a-z0-9_-]+", "_", word).strip("_") or "other"
