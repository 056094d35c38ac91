"""A trained model for its users: encode and compare, match, ask, name the entities of a region (docs/python.md).

Videos are encoded a batch at a time and decoded a few ahead, so their number is not limited by memory. A file that
cannot be decoded is reported with the reason, and the others go on.
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from alpro.artifact import require
from alpro.errors import InputError
from alpro.inference.clips import Source, decode_ahead, file_name, is_file, is_image, load_frames
from alpro.inference.encoding import (
    Texts,
    Videos,
    embed_texts,
    encode_texts,
    load_prompter,
    match,
    match_all,
)
from alpro.inference.find import PROMPTS, find_model, find_prompter
from alpro.inference.prompts import read_prompts
from alpro.inputs import WHOLE, Box, check_text, patches_of
from alpro.log import progress
from alpro.models.alpro import Alpro
from alpro.models.folder import ModelFolder, load_labels
from alpro.models.losses import box_mask
from alpro.models.precision import autocast, precision
from alpro.models.ranks import pick_device
from alpro.shards.clip import DecodeError

PathLike = str | Path
Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
T = TypeVar("T")
S = TypeVar("S", bound=Source)
BATCH = 16  # videos that are encoded together
MIN_PIECE = 3  # letters of a word piece, on average, of a word that the model knows
FUNCTION_WORD = re.compile(  # a word without contents, which captions may lack
    "a|an|the|and|or|but|not|of|in|on|at|to|from|by|for|with|as|is|are|was|were|be|been|do|does|did|has|have|had|it|its|"
    "he|she|they|his|her|their|this|that|these|those|who|what|which|where|when|how|i|you|we|my|your|our|s|t",
    re.IGNORECASE,
)


def several(items: Iterable[T]) -> list[T]:
    """The items as a list. Raises InputError for a string or None instead of a list, and for an empty list."""
    if (
        isinstance(items, str | Path)
        or not isinstance(items, Iterable)
        or not (listed := list(items))
    ):
        raise InputError(f"expected a list of one or more items, not {items!r}")
    return listed


def checked_texts(texts: Iterable[str]) -> list[str]:
    """The texts as a list. Raises InputError for a string or None instead of a list, an empty list, and an empty text
    or what is no str."""
    listed = several(texts)
    try:
        return [check_text(text) for text in listed]
    except ValueError as error:
        raise InputError(str(error)) from error


@dataclass(frozen=True)
class Embedded:
    """The embedding (E,) of a file, or why it has none."""

    file: Any  # as it was given: a path, a URL, a row of a manifest or a sample of a decoded corpus
    embedding: Tensor | None
    error: DecodeError | None = None


@dataclass(frozen=True)
class Encoded:
    """A batch of a stream of sources by their places in the stream: the sources, the encoded videos of those that could
    be decoded, and the errors of the others."""

    sources: dict[int, Any]
    decoded: list[int]
    videos: Videos
    errors: dict[int, DecodeError]


class Model:
    """A model with its preprocessing. Videos and images are files; frames are sampled as in evaluation."""

    def __init__(
        self,
        folder: ModelFolder,
        prompts: dict[str, Tensor],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ):
        self.folder, self.prompts, self.device, self.dtype = folder, prompts, device, dtype
        self.encoder = folder.normalized(device)

    @classmethod
    def load(
        cls,
        name: PathLike,
        workspace: PathLike = "workspace",
        prompts: PathLike | None = None,
        device: Device = "auto",
        dtype: Dtype = "auto",
    ) -> "Model":
        """Loads a model folder; or the model of an artifact, by its fingerprint or the first characters of it, by its
        stage (that of the last command) or by CONFIG/STAGE; or a CLIP or SigLIP by its name on the hub.

        prompts: the artifact of cache_prompts with the entities of a prompter; by default the newest in the workspace
        that was embedded with it, if there is any. dtype: of the encoders' matrix products, auto: as in training;
        weights, embeddings and scores are float32. Raises InputError if there is no such model, or a file is missing.
        """
        if dtype not in Dtype.__args__:  # type: ignore[attr-defined]
            raise InputError(f"dtype {dtype!r} is not one of {', '.join(Dtype.__args__)}")  # type: ignore[attr-defined]
        folder = find_model(name, Path(workspace))
        folder, source = (folder, Path(prompts)) if prompts else find_prompter(folder)
        target = pick_device(device)
        loaded = load_prompter(folder, target)
        kind = (
            precision(loaded.model.config.video.width, target)
            if dtype == "auto"
            else getattr(torch, dtype)
        )
        if source is None:
            return cls(loaded, {}, target, kind)
        embeddings = {
            kind: value.to(target)
            for kind, value in read_prompts(require(source, PROMPTS).parent).items()
        }
        try:
            loaded.entities = load_labels(require(source, "entities.json"))
        except ValueError as error:
            raise InputError(str(error)) from error
        if len(loaded.entities) != len(embeddings["video"]):
            names, rows = len(loaded.entities), len(embeddings["video"])
            raise InputError(
                f"{source}: entities.json has {names} names, and {PROMPTS} {rows} embeddings"
            )
        return cls(loaded, embeddings, target, kind)

    def frames(self, file: Source) -> Tensor:
        """The frames of a file (1, T, 3, H, W) uint8. Raises DecodeError if it cannot be decoded."""
        try:
            frames = load_frames(file, self.folder.model.config.video)
        except DecodeError as error:
            raise DecodeError(
                error.reason, f"{file_name(file)}: {error.detail}".removesuffix(": ")
            ) from error
        return torch.from_numpy(frames)[None].to(self.device)

    @torch.inference_mode()
    def batches(
        self,
        files: Iterable[S],
        batch_size: int = BATCH,
        cls_only: bool = False,
        total: int | None = None,
    ) -> Iterator[Encoded]:
        """Encodes a stream of sources batch by batch, with progress after a few seconds. Memory holds one batch.

        cls_only: the tokens of a video are [CLS] alone, which is enough for its features. total: the number of sources,
        for the progress, if it is known.
        """
        decoded = enumerate(decode_ahead(files, self.folder.model.config.video))
        with progress("encoding", total, "videos") as advance:
            while part := list(islice(decoded, max(1, batch_size))):
                frames = {i: clip for i, (_, clip) in part if isinstance(clip, np.ndarray)}
                errors = {i: error for i, (_, error) in part if isinstance(error, DecodeError)}
                videos = self._encode(list(frames.values()), cls_only)
                yield Encoded({i: source for i, (source, _) in part}, list(frames), videos, errors)
                advance(len(part))

    def _encode(self, clips: Sequence[np.ndarray], cls_only: bool = False) -> Videos:
        """Videos of frames (T, 3, H, W) uint8, of any sizes."""
        config = self.folder.model.config
        if not clips:
            return Videos(torch.empty(0, 1, config.video.width), torch.empty(0, self.embed_dim))
        with self.precision():
            tokens = self.folder.model.encode_video(self.encoder.pixels_of(clips), cls_only)
        tokens = tokens.float()
        return Videos(tokens, self.folder.model.project_video(tokens).float())

    def precision(self) -> AbstractContextManager[Any]:
        """The context of matrix products in `dtype`."""
        return autocast(self.dtype, self.device)

    def stream(self, files: Iterable[S], batch_size: int = BATCH) -> Iterator[Embedded]:
        """Embeds a stream of files, such as `Path("videos").rglob("*.mp4")`: one `Embedded` for each, in order."""
        for batch in self.batches(files, batch_size, cls_only=True):
            features = dict(zip(batch.decoded, batch.videos.features, strict=True))
            for i, source in batch.sources.items():
                yield Embedded(source, features.get(i), batch.errors.get(i))

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Texts:
        """Encoded texts: tokens (N, L, D), mask (N, L), features (N, E)."""
        folder, length = self.folder, self.folder.preprocessing.max_text_tokens
        return encode_texts(folder.model, folder.tokenizer, checked_texts(texts), length)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """L2-normalized embeddings (N, E)."""
        folder, length = self.folder, self.folder.preprocessing.max_text_tokens
        return embed_texts(folder.model, folder.tokenizer, checked_texts(texts), length)

    def unknown_words(self, text: str) -> list[str]:
        """The content words of a text that are not in the tokenizer, or only in pieces of fewer than MIN_PIECE letters
        on average, such as words that no training caption has. Scores of such a text mean little."""
        tokenizer = self.folder.tokenizer
        if not isinstance(tokenizer, Tokenizer):  # that of a CLIP, which has all bytes
            return []
        unknown = []
        for word in dict.fromkeys(re.findall(r"\w+|[^\w\s.,;:!?'\"()-]+", text)):
            pieces = tokenizer.encode(word, add_special_tokens=False).tokens
            split = not pieces or (len(pieces) > 1 and len(word) < MIN_PIECE * len(pieces))
            if ("[UNK]" in pieces or split) and not FUNCTION_WORD.fullmatch(word):
                unknown.append(word)
        return unknown

    def note(self, text: str) -> str:
        """A line on the words of a text that the model does not know; empty if there are none."""
        words = ", ".join(self.unknown_words(text))
        return f"the model does not know: {words}; the scores may mean nothing" if words else ""

    @cached_property
    def embed_dim(self) -> int:
        """E, the length of an embedding."""
        return self.embed_texts(["a"]).shape[1]  # that of a CLIP is in no configuration of ours

    def _warned(self, files: Iterable[S], *options: Any) -> Iterator[Encoded]:
        """`batches`, with a warning for each file that cannot be decoded."""
        for batch in self.batches(files, *options):
            for i, error in batch.errors.items():
                warnings.warn(f"{file_name(batch.sources[i])}: {error}", stacklevel=3)
            yield batch

    def encode(self, inputs: Any, batch_size: int = BATCH) -> np.ndarray:
        """The embeddings (N, E) of a list of texts or of files, float32 and of length 1; (E,) of a single one.

        A `Path`, a URL, and a str that ends like a video or an image is a file, any other str a text. The row of a file
        that cannot be decoded is NaN, and a warning names it.
        """
        if isinstance(inputs, str | Path):
            return self.encode([inputs], batch_size)[0]
        listed = several(inputs)
        if len(kinds := {is_file(one) for one in listed}) > 1:
            raise InputError("expected a list of texts or a list of files, not both in one")
        if not kinds.pop():
            return self.embed_texts(listed).cpu().numpy()
        embedded = torch.full((len(listed), self.embed_dim), torch.nan)
        for batch in self._warned(listed, batch_size, True, len(listed)):
            embedded[batch.decoded] = batch.videos.features.cpu()
        return embedded.numpy()

    def similarity(self, a: Any, b: Any, batch_size: int = BATCH) -> Tensor:
        """VTC similarity (N, M), -1 to 1, of the N texts or files of `a` and the M of `b`, as `encode` takes or returns
        them. NaN for a file that cannot be decoded."""
        arrays = (
            x if isinstance(x, np.ndarray | Tensor) else self.encode(x, batch_size) for x in (a, b)
        )
        first, second = (torch.atleast_2d(torch.as_tensor(array)) for array in arrays)
        return first @ second.T

    @torch.inference_mode()
    def match(
        self, texts: Sequence[str], files: Iterable[Source], batch_size: int = BATCH
    ) -> Tensor:
        """VTM probabilities (texts, files) that text and video match. NaN for a file that cannot be decoded."""
        model, texts, files = self._alpro("match"), several(texts), several(files)
        if any(map(is_file, texts)):
            raise InputError(f"match takes texts, then files; {texts[0]!r} is no text")
        encoded = self.texts(texts)
        out = torch.full((len(texts), len(files)), torch.nan)
        for batch in self._warned(files, batch_size, False, len(files)):
            with self.precision():
                scores = match_all(model, encoded, batch.videos)
            out[:, batch.decoded] = torch.from_numpy(scores).sigmoid()
        return out

    @torch.inference_mode()
    def pairs(
        self, pairs: Iterable[tuple[Source, str]], batch_size: int = BATCH
    ) -> Iterator[dict[str, Any]]:
        """For a stream of a video and its text each: `answer` and `probability` to a question if the model answers
        questions, else `similarity` and, except for a prompter, `match`. None if the file cannot be decoded."""
        texts: dict[int, str] = {}

        def files() -> Iterator[Source]:
            for place, (file, text) in enumerate(pairs):
                texts[place] = text
                yield file

        for batch in self._warned(files(), batch_size):
            rows = self._score_pairs(batch.videos, [texts[i] for i in batch.decoded])
            by_place = dict(zip(batch.decoded, rows, strict=True))
            for place in batch.sources:
                del texts[place]
                yield by_place.get(place) or dict.fromkeys(self.pair_columns)

    @property
    def pair_columns(self) -> tuple[str, ...]:
        """The names of the results of `pairs`."""
        if self.folder.answers:
            return "answer", "probability"
        return ("similarity", "match") if isinstance(self.folder.model, Alpro) else ("similarity",)

    def _score_pairs(self, videos: Videos, texts: list[str]) -> list[dict[str, Any]]:
        if not texts:
            return []
        encoded = self.texts(texts)
        if self.folder.answers:
            best = (
                self._best(p, self.folder.answers, 1)[0] for p in self._answers(videos, encoded)
            )
            return [dict(zip(self.pair_columns, pair, strict=True)) for pair in best]
        columns = [(videos.features * encoded.features).sum(1).tolist()]
        if isinstance(self.folder.model, Alpro):
            with self.precision():
                margins = match(
                    self.folder.model,
                    encoded,
                    videos,
                    np.arange(len(texts))[:, None].repeat(2, axis=1),
                )
            columns.append(margins.sigmoid().tolist())
        return [
            dict(zip(self.pair_columns, row, strict=True)) for row in zip(*columns, strict=True)
        ]

    @torch.inference_mode()
    def ask(
        self, file: Source, question: str, top_k: int = 3, frames: Tensor | None = None
    ) -> list[tuple[str, float]]:
        """The `top_k` most likely answers of the model's closed list with their probabilities, in descending order.

        frames: those of the file, if it is decoded already. Raises DecodeError if it cannot be decoded.
        """
        if not self.folder.answers:
            raise InputError(
                f"this {self.folder.task} model does not answer questions; load a model of finetune_qa"
            )
        clips = self.frames(file) if frames is None else frames
        videos = self._encode(list(clips.cpu().numpy()))
        return self._best(
            self._answers(videos, self.texts([question]))[0], self.folder.answers, top_k
        )

    def _answers(self, videos: Videos, questions: Texts) -> Tensor:
        """The probabilities (N, answers) of the answers to a question about each video."""
        with self.precision():
            logits = self._alpro("answer").answer(questions.tokens, questions.mask, videos.tokens)
        return logits.float().softmax(1)

    @property
    def names_entities(self) -> bool:
        """Whether the model names entities: a prompter with its prompts, or a pre-trained model."""
        if isinstance(self.folder.model, Alpro):
            return self.folder.model.pem_head is not None
        return bool(self.prompts)

    @torch.inference_mode()
    def entities(
        self,
        file: Source,
        box: Box = WHOLE,
        top_k: int = 3,
        text: str = "",
        frames: Tensor | None = None,
    ) -> list[tuple[str, float]]:
        """The `top_k` most likely entities of a region: left, top, width, height, as fractions of the frame.

        A prompter sees the region alone. A pre-trained model sees all of the video and, as in pre-training, its
        caption `text`, which may be empty; its PEM head then names the region, if it was trained with PEM. frames: as
        of `ask`.
        """
        model, grid = self.folder.model, self.folder.model.config.video.grid
        if not self.names_entities:
            raise InputError(
                f"this {self.folder.task} model names no entities: use a pre-trained model, or a prompter with its "
                "prompts, Model.load(PROMPTER, prompts=PROMPTS)"
            )
        if text and not isinstance(model, Alpro):
            raise InputError(
                "a prompter names a region without a text; only a pre-trained model reads one"
            )
        try:
            boxes = torch.tensor([patches_of(box, grid)], device=self.device)
        except ValueError as error:
            raise InputError(str(error)) from error
        pixels = self.encoder.pixels(self.frames(file) if frames is None else frames)
        with self.precision():
            if isinstance(model, Alpro):
                caption = encode_texts(
                    model, self.folder.tokenizer, [text], self.folder.preprocessing.max_text_tokens
                )
                fused = model.fused_patches(
                    caption.tokens, caption.mask, model.encode_video(pixels)
                )
                labels = model.pem_logits(fused, box_mask(boxes, grid)).float().softmax(1)
            else:
                labels = model.pseudo_labels(
                    pixels, boxes, self.prompts[self.kind_of(file)], self.encoder.black
                )
        return self._best(labels[0], self.folder.entities, top_k)

    def kind_of(self, file: Source) -> str:
        """The key of `prompts` for a file: image, if there are any of images, or video."""
        return "image" if is_image(file) and "image" in self.prompts else "video"

    def _alpro(self, what: str) -> Alpro:
        if not isinstance(self.folder.model, Alpro):
            raise InputError(
                f"a prompter has no multimodal encoder to {what} with; load a pre-trained or fine-tuned model"
            )
        return self.folder.model

    @staticmethod
    def _best(probabilities: Tensor, words: list[str], top_k: int) -> list[tuple[str, float]]:
        best = probabilities.topk(min(top_k, len(words)))
        return [
            (words[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)
        ]
