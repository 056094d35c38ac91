"""What the page and the API answer: clips for a text, answers to a question, entities of a region."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from alpro.errors import InputError
from alpro.inference.clips import Source
from alpro.inference.index import Index
from alpro.inference.model import Model
from alpro.inference.search import Found, search, similar
from alpro.inputs import WHOLE, parse_box
from alpro.pipeline.serving.media import CLIPS, Media, Unknown
from alpro.pipeline.serving.mistakes import Missing, Mistake
from alpro.pipeline.serving.turns import Turns
from alpro.shards.decoding import DecodeError

MAX_TEXT = 500  # characters of a text or a question
Ranked = dict[str, float]
Clip = str | Path  # a key of `Media`, or a file


@dataclass
class Models:
    """The models; None where the server cannot search, answer or name entities. digests: SHA-256 of each, by field."""

    index: Index | None = None
    search: Model | None = None
    ask: Model | None = None
    entities: Model | None = None  # a prompter
    pretrained: Model | None = None  # it names entities, too
    digests: dict[str, str] = field(default_factory=dict)

    def any(self) -> Model:
        """One of the models: they read the frames of decoded corpora alike."""
        return next(model for model in (self.search, self.ask, *self.naming.values()) if model)

    @property
    def naming(self) -> dict[str, Model]:
        """The models that name entities, by what the page calls them."""
        models = {"Prompter": self.entities, "Pre-trained model": self.pretrained}
        return {name: model for name, model in models.items() if model}


@dataclass
class Answers:
    """The functions behind the page and the API. Those that use the models are called in `turns`.

    rerank: clips that a search ranks by matching. nothing_below: see `search`.
    """

    models: Models
    media: Media
    rerank: int = 20
    nothing_below: float | None = None
    turns: Turns = field(default_factory=Turns)

    @property
    def clips(self) -> int:
        """Clips of the index."""
        return len(self.models.index) if self.models.index else 0

    def search(
        self, text: str, k: int = 8, offset: int = 0, filters: Sequence[str] = (), rerank: int | None = None
    ) -> Found:
        """The clips that fit a text best. Raises Mistake."""
        assert self.models.index
        assert self.models.search
        wanted = checked(text, "Write what the videos should show.")
        matched = self.rerank if rerank is None else rerank
        index, model = self.models.index, self.models.search
        with mistakes():
            return search(index, model, wanted, k, matched, offset, filters, self.nothing_below)

    def similar(self, clip: Clip, k: int = 8, offset: int = 0, filters: Sequence[str] = ()) -> Found:
        """The clips that are most similar to a clip of the index or to a file. Raises Mistake."""
        index, model = self.models.index, self.models.search
        assert index
        assert model
        with mistakes():
            kind, _, name = str(clip).partition("/")
            if kind == CLIPS:
                self.source(clip)  # raises Unknown
                return similar(index, index.embedding(int(name)), k, offset, filters, without=int(name))
            (embedded,) = model.stream([self.source(clip)])
            if embedded.embedding is None:
                assert embedded.error
                raise embedded.error
            return similar(index, embedded.embedding.cpu().numpy(), k, offset, filters)

    def pick(self, number: Any) -> str:
        """The key of a clip of the index, by its number. Raises Mistake."""
        key = f"{CLIPS}/{number}"
        with mistakes():
            self.media.source(key)
        return key

    def find(self, number: int | None, id: str) -> str:
        """The key of a clip of the index, by its number or its id. Raises Mistake."""
        if (number is None) == (not id):
            raise Mistake("Name a clip by its number or its id.")
        if number is None and (not self.models.index or (number := self.models.index.number(id)) is None):
            raise Missing("There is no such clip.")
        return self.pick(number)

    def source(self, clip: Clip) -> Source:
        return clip if isinstance(clip, Path) else self.media.source(chosen(clip))

    def upload(self, file: str) -> str:
        """The key of an uploaded video or image. Raises Mistake if it cannot be decoded."""
        with mistakes():
            key = self.media.add_upload(Path(file))
            self.models.any().frames(self.media.source(key))
        return key

    def ask(self, clip: Clip, question: str, top_k: int = 5) -> Ranked:
        """Answers with probabilities, best first. Raises Mistake."""
        assert self.models.ask
        wanted = checked(question, "Write a question.")
        with mistakes():
            return dict(self.models.ask.ask(self.source(clip), wanted, top_k))

    def entities(self, clip: Clip, box: str, text: str | None = "", top_k: int = 5) -> list[Ranked]:
        """Entities of a region with probabilities, best first, of each of `Models.naming`; `text` is a caption for the
        pre-trained model. Raises Mistake."""
        caption = checked(text, "") if text and str(text).strip() else ""  # None: the page has no field for it
        with mistakes():
            region, source = parse_box(box) if box.strip() else WHOLE, self.source(clip)
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
        raise Missing("This clip is no longer available: choose or upload it again.") from None
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
