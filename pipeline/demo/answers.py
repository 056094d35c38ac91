"""What the page answers: clips for a text, answers to a question, entities of a region."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alpro.errors import InputError
from alpro.inputs import WHOLE, parse_box
from alpro.pipeline.demo.media import CLIPS, Media, Unknown
from alpro.shards.decoding.decode import DecodeError
from alpro.stages.inference.index import Index
from alpro.stages.inference.model import Model
from alpro.stages.inference.search import Found, search

MAX_TEXT = 500  # characters of a text or a question
Ranked = dict[str, float]


class Mistake(Exception):
    """A message for the person at the page."""


@dataclass
class Models:
    """The models of the page; None if it cannot search, answer or name entities."""

    index: Index | None = None
    search: Model | None = None
    ask: Model | None = None
    entities: Model | None = None  # a prompter
    pretrained: Model | None = None  # it names entities, too

    def any(self) -> Model:
        """One of the models: they read the frames of decoded corpora alike."""
        return next(model for model in (self.search, self.ask, *self.naming.values()) if model)

    @property
    def naming(self) -> dict[str, Model]:
        """The models that name entities, by what the page calls them."""
        models = {"Prompter": self.entities, "Pre-trained model": self.pretrained}
        return {name: model for name, model in models.items() if model}


@dataclass
class Demo:
    """The functions behind the page. One request uses the models at a time."""

    models: Models
    media: Media
    results: int = 8
    rerank: int = 20
    lock: threading.Lock = field(default_factory=threading.Lock)

    def search(self, text: str) -> Found:
        """The clips that fit a text best. Raises Mistake."""
        assert self.models.index
        assert self.models.search
        wanted = checked(text, "Write what the videos should show.")
        with self.lock, mistakes():
            return search(self.models.index, self.models.search, wanted, self.results, self.rerank)

    def pick(self, number: Any) -> str:
        """The key of a clip of the index, by its number. Raises Mistake."""
        key = f"{CLIPS}/{number}"
        with mistakes():
            self.media.source(key)
        return key

    def upload(self, file: str) -> str:
        """The key of an uploaded video or image. Raises Mistake if it cannot be decoded."""
        with mistakes():
            key = self.media.add_upload(Path(file))
            self.models.any().frames(self.media.source(key))
        return key

    def ask(self, key: str, question: str, top_k: int = 5) -> Ranked:
        """Answers with probabilities, best first. Raises Mistake."""
        assert self.models.ask
        wanted = checked(question, "Write a question.")
        with self.lock, mistakes():
            return dict(self.models.ask.ask(self.media.source(chosen(key)), wanted, top_k))

    def entities(self, key: str, box: str, text: str | None = "", top_k: int = 5) -> list[Ranked]:
        """Entities of a region with probabilities, best first, of each of `Models.naming`; `text` is a caption for the
        pre-trained model. Raises Mistake."""
        caption = checked(text, "") if text and str(text).strip() else ""  # None: the page has no field for it
        with self.lock, mistakes():
            region, source = parse_box(box) if box.strip() else WHOLE, self.media.source(chosen(key))
            return [
                dict(model.entities(source, region, top_k, caption if model is self.models.pretrained else ""))
                for model in self.models.naming.values()
            ]


@contextmanager
def mistakes() -> Iterator[None]:
    """Turns the errors of a person's input into messages."""
    try:
        yield
    except DecodeError as error:
        detail = error.detail.rpartition(": ")[2] if "/" in error.detail else error.detail
        raise Mistake(f"This file cannot be decoded: {error.reason}{f' ({detail})' if detail else ''}.") from error
    except Unknown:
        raise Mistake("This clip is no longer available: choose or upload it again.") from None
    except (InputError, ValueError) as error:
        raise Mistake(f"{error}") from error


def checked(text: Any, if_empty: str) -> str:
    """A text that a person wrote. Raises Mistake if it is empty or too long."""
    if not isinstance(text, str) or not text.strip():
        raise Mistake(if_empty)
    if len(text) > MAX_TEXT:
        raise Mistake(f"This text has {len(text):,} characters; at most {MAX_TEXT} are allowed.")
    return text


def chosen(key: str) -> str:
    if not key:
        raise Mistake("Upload a video, or choose a clip of the search results.")
    return key
