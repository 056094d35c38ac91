"""A trained model for its users: encode and compare, match, ask, name the entities of a region
(docs/python.md).

Videos are encoded a batch at a time and decoded a few ahead, so their number is not limited by
memory. A file that cannot be decoded is reported with the reason, and the others go on.
"""

import os
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
from torch import Tensor

from alpro.artifact import require
from alpro.errors import InputError
from alpro.inference.clips import (
    DEFAULT_LIMITS,
    Source,
    decode_ahead,
    file_name,
    is_file,
    is_image,
    load_frames,
)
from alpro.inference.encoding import (
    Texts,
    Videos,
    embed_texts,
    encode_texts,
    load_prompter,
    match,
    match_all,
)
from alpro.inference.find import PROMPTS, FoundModel, find_prompter, verified_model
from alpro.inference.prompts import read_prompts
from alpro.inference.unknown_words import unknown_words
from alpro.inputs import WHOLE, Box, check_text, patches_of
from alpro.log import progress
from alpro.models.alpro import Alpro
from alpro.models.folder import ModelBundle, load_labels
from alpro.models.losses import box_mask
from alpro.models.precision import autocast, precision
from alpro.models.ranks import pick_device
from alpro.shards.clip import Clip, DecodeError, Limits

PathLike = str | Path
Device = Literal["auto", "cpu", "cuda"]
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
InputKind = Literal["auto", "text", "file"]
T = TypeVar("T")
S = TypeVar("S", bound=Source)
BATCH = 16  # videos that are encoded together
SHOWN_ENTITIES = 8  # of the list that a note names


def non_empty_list(items: Iterable[T]) -> list[T]:
    """The items as a list. Raises InputError for a string or None instead of a list, and for an
    empty list."""
    listed: list[T] = []
    # A str is iterable, too: its letters are no texts.
    if isinstance(items, Iterable) and not isinstance(items, str | Path):
        listed = list(items)
    if not listed:
        raise InputError(f"expected a list of one or more items, not {items!r}")
    return listed


def checked_texts(texts: Iterable[str]) -> list[str]:
    """The texts as a list. Raises InputError for a string or None instead of a list, an empty list,
    and an empty text or what is no str."""
    listed = non_empty_list(texts)
    try:
        return [check_text(text) for text in listed]
    except ValueError as error:
        raise InputError(str(error)) from error


def find_in_workspace(name: PathLike | FoundModel, workspace: PathLike | None) -> Path:
    """The folder of a model that Python names. Raises InputError, which names `workspace=` if there
    is no workspace."""
    root = Path(workspace or os.environ.get("ALPRO_WORKSPACE") or "workspace")
    try:
        return verified_model(name, root).path
    except InputError as error:
        if (root / "artifacts").is_dir():
            raise
        raise InputError(
            f"{error}; there is no workspace {root.absolute()}: name another with workspace="
        ) from error


@dataclass(frozen=True)
class Embedded:
    """The embedding (E,) float32 of a file, or why it has none."""

    file: Any  # as it was given: a path, a URL, a row of a manifest or a sample of a decoded corpus
    embedding: np.ndarray | None
    error: DecodeError | None = None


@dataclass(frozen=True)
class Encoded:
    """A batch of a stream of sources by their positions in the stream: the sources, the encoded
    videos of those that could be decoded, their durations in seconds, and the errors of the
    others."""

    sources: dict[int, Any]
    decoded: list[int]
    videos: Videos
    errors: dict[int, DecodeError]
    durations: dict[int, float]


class Model:
    """A model with its preprocessing. Videos and images are files; frames are sampled as in
    evaluation."""

    def __init__(
        self,
        folder: ModelBundle,
        prompts: dict[str, Tensor],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ):
        self.folder = folder
        self.prompts = prompts
        self.device = device
        self.dtype = dtype
        self.encoder = folder.normalized(device)

    def __repr__(self) -> str:
        video = self.folder.model.config.video
        parameters = sum(p.numel() for p in self.folder.model.parameters())
        return (
            f"<Model {self.folder.task}: {video.frames} frames of {video.image_size} x "
            f"{video.image_size} pixels, {parameters / 1e6:.1f} M parameters, "
            f"{str(self.dtype).removeprefix('torch.')} on {self.device}>"
        )

    @classmethod
    def load(
        cls,
        name: PathLike | FoundModel,
        workspace: PathLike | None = None,
        prompts: PathLike | None = None,
        device: Device = "auto",
        dtype: Dtype = "auto",
    ) -> "Model":
        """Loads a model folder; or the model of an artifact, by its fingerprint or the first
        characters of it, by its stage (that of the last command) or by CONFIG/STAGE; or a CLIP or
        SigLIP by its name on the hub.

        workspace: where artifacts are looked up; by default $ALPRO_WORKSPACE, or the folder
        `workspace`. prompts: the artifact of cache_prompts with the entities of a prompter; by
        default the newest in the workspace that was embedded with it, if there is any. dtype: of
        the encoders' matrix products, auto: as in training; weights, embeddings and scores are
        float32. Raises InputError if there is no such model, or a file is missing.
        """
        if dtype not in Dtype.__args__:  # type: ignore[attr-defined]
            raise InputError(f"dtype {dtype!r} is not one of {', '.join(Dtype.__args__)}")  # type: ignore[attr-defined]
        folder = find_in_workspace(name, workspace)
        source = Path(prompts) if prompts else None
        if source is None:
            folder, source = find_prompter(folder)  # `folder` may be that of the prompts

        target = pick_device(device)
        loaded = load_prompter(folder, target)
        if dtype == "auto":
            torch_dtype = precision(loaded.model.config.video.width, target)
        else:
            torch_dtype = getattr(torch, dtype)
        if source is None:
            return cls(loaded, prompts={}, device=target, dtype=torch_dtype)

        embedded = read_prompts(require(source, PROMPTS).parent)
        embeddings = {name: value.to(target) for name, value in embedded.items()}
        try:
            loaded.entities = load_labels(require(source, "entities.json"))
        except ValueError as error:
            raise InputError(str(error)) from error

        names = len(loaded.entities)
        rows = len(embeddings["video"])
        if names != rows:
            raise InputError(
                f"{source}: entities.json has {names} names, and {PROMPTS} {rows} embeddings"
            )
        return cls(loaded, prompts=embeddings, device=target, dtype=torch_dtype)

    def frames(self, file: Source, limits: Limits = DEFAULT_LIMITS) -> Tensor:
        """The frames of a file (1, T, 3, H, W) uint8. Raises DecodeError if it cannot be
        decoded."""
        try:
            frames = load_frames(file, self.folder.model.config.video, limits)
        except DecodeError as error:
            raise DecodeError(
                error.reason, f"{file_name(file)}: {error.detail}".removesuffix(": ")
            ) from error
        return torch.from_numpy(frames)[None].to(self.device)

    @torch.inference_mode()
    def embed_frames(self, frames: Tensor) -> np.ndarray:
        """The embeddings (N, E) of videos of decoded frames (N, T, 3, H, W) uint8, as of
        `frames`."""
        videos = self._encode(list(frames.cpu().numpy()), cls_only=True)
        return videos.features.cpu().numpy()

    @torch.inference_mode()
    def batches(
        self,
        files: Iterable[S],
        batch_size: int = BATCH,
        cls_only: bool = False,
        total: int | None = None,
    ) -> Iterator[Encoded]:
        """Encodes a stream of sources batch by batch, with progress after a few seconds. Memory
        holds one batch.

        cls_only: the tokens of a video are [CLS] alone, which is enough for its features. total:
        the number of sources, for the progress, if it is known.
        """
        decoded = enumerate(decode_ahead(files, self.folder.model.config.video))
        with progress("encoding", total, "videos", steady=True) as advance:
            while True:
                batch = list(islice(decoded, max(1, batch_size)))
                if not batch:
                    break

                sources: dict[int, Any] = {}
                clips: dict[int, Clip] = {}
                errors: dict[int, DecodeError] = {}
                for position, (source, clip) in batch:
                    sources[position] = source
                    if isinstance(clip, DecodeError):
                        errors[position] = clip
                    else:
                        clips[position] = clip

                frames = [clip.frames.transpose(0, 3, 1, 2) for clip in clips.values()]
                videos = self._encode(frames, cls_only)
                durations = {position: clip.duration for position, clip in clips.items()}
                yield Encoded(
                    sources,
                    decoded=list(clips),
                    videos=videos,
                    errors=errors,
                    durations=durations,
                )
                advance(len(batch))

    def _encode(self, clips: Sequence[np.ndarray], cls_only: bool = False) -> Videos:
        """Videos of frames (T, 3, H, W) uint8, of any sizes."""
        config = self.folder.model.config
        if not clips:  # `torch.cat` takes no empty list
            return Videos(torch.empty(0, 1, config.video.width), torch.empty(0, self.embed_dim))
        with self.precision():
            tokens = self.folder.model.encode_video(self.encoder.pixels_of(clips), cls_only)
        tokens = tokens.float()  # the projection computes in float32
        return Videos(tokens, self.folder.model.project_video(tokens).float())

    def precision(self) -> AbstractContextManager[Any]:
        """The context of matrix products in `dtype`."""
        return autocast(self.dtype, self.device)

    def stream(self, files: Iterable[S], batch_size: int = BATCH) -> Iterator[Embedded]:
        """Embeds a stream of files, such as `Path("videos").rglob("*.mp4")`: one `Embedded` for
        each, in order."""
        for batch in self.batches(files, batch_size, cls_only=True):
            embeddings = batch.videos.features.cpu().numpy()
            by_position = dict(zip(batch.decoded, embeddings, strict=True))
            for i, source in batch.sources.items():
                yield Embedded(source, by_position.get(i), batch.errors.get(i))

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Texts:
        """Encoded texts: tokens (N, L, D), mask (N, L), features (N, E)."""
        folder = self.folder
        length = folder.preprocessing.max_text_tokens
        return encode_texts(folder.model, folder.tokenizer, checked_texts(texts), length)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """L2-normalized embeddings (N, E)."""
        folder = self.folder
        length = folder.preprocessing.max_text_tokens
        return embed_texts(folder.model, folder.tokenizer, checked_texts(texts), length)

    def unknown_words(self, text: str) -> list[str]:
        """The content words of a text that the model does not know; see `unknown_words`."""
        return unknown_words(self.folder.tokenizer, text)

    def note(self, text: str) -> str:
        """A line on the words of a text that the model does not know; empty if there are none."""
        words = ", ".join(self.unknown_words(text))
        if not words:
            return ""
        return f"the model does not know: {words}; the scores may mean nothing"

    @cached_property
    def embed_dim(self) -> int:
        """E, the length of an embedding."""
        return self.embed_texts(["a"]).shape[1]  # that of a CLIP is in no configuration of ours

    def _warned(self, files: Iterable[S], batch_size: int, **options: Any) -> Iterator[Encoded]:
        """`batches`, with a warning for each file that cannot be decoded."""
        for batch in self.batches(files, batch_size, **options):
            for i, error in batch.errors.items():
                warnings.warn(f"{file_name(batch.sources[i])}: {error}", stacklevel=3)
            yield batch

    def encode(self, inputs: Any, batch_size: int = BATCH, kind: InputKind = "auto") -> np.ndarray:
        """The embeddings (N, E) of a list of texts or of files, float32 and of length 1; (E,) of a
        single one.

        kind: "text" or "file" says what the strings are. "auto": a `Path`, a URL, the path of a
        file that exists, and a name that ends like a video or an image is a file; any other string
        is a text. The row of a file that cannot be decoded is NaN, and a warning names it.
        """
        if isinstance(inputs, str | Path):
            return self.encode([inputs], batch_size, kind)[0]
        listed = non_empty_list(inputs)
        if kind not in InputKind.__args__:  # type: ignore[attr-defined]
            raise InputError(f"kind {kind!r} is not one of {', '.join(InputKind.__args__)}")  # type: ignore[attr-defined]

        are_files = {kind == "file"}
        if kind == "auto":
            are_files = {is_file(item) for item in listed}
        if len(are_files) > 1:
            raise InputError("expected a list of texts or a list of files, not both in one")
        if are_files == {False}:
            return self.embed_texts(listed).cpu().numpy()

        embedded = np.full((len(listed), self.embed_dim), np.nan, np.float32)
        for batch in self._warned(listed, batch_size, cls_only=True, total=len(listed)):
            embedded[batch.decoded] = batch.videos.features.cpu().numpy()
        return embedded

    def similarity(self, a: Any, b: Any, batch_size: int = BATCH) -> np.ndarray:
        """VTC similarity (N, M) float32, -1 to 1, of the N texts or files of `a` and the M of `b`,
        as `encode` takes or returns them. NaN for a file that cannot be decoded."""
        embeddings_a = self._embeddings(a, batch_size)
        embeddings_b = self._embeddings(b, batch_size)
        return embeddings_a @ embeddings_b.T

    def _embeddings(self, inputs: Any, batch_size: int) -> np.ndarray:
        """The embeddings (N, E) of texts or files, or of what is embedded already."""
        if isinstance(inputs, Tensor):
            inputs = inputs.cpu().numpy()
        if not isinstance(inputs, np.ndarray):
            inputs = self.encode(inputs, batch_size)
        return np.atleast_2d(inputs)  # one embedding (E,) is a row

    @torch.inference_mode()
    def match(
        self,
        texts: Sequence[str],
        files: Iterable[Source],
        batch_size: int = BATCH,
    ) -> np.ndarray:
        """VTM probabilities (texts, files) float32 that text and video match. NaN for a file that
        cannot be decoded."""
        model = self._alpro("match")
        texts = non_empty_list(texts)
        files = non_empty_list(files)
        wrong = [text for text in texts if is_file(text)]
        if wrong:
            raise InputError(f"match takes texts, then files; {wrong[0]!r} is no text")

        encoded = self.texts(texts)
        out = np.full((len(texts), len(files)), np.nan, np.float32)
        for batch in self._warned(files, batch_size, cls_only=False, total=len(files)):
            with self.precision():
                scores = match_all(model, encoded, batch.videos)
            out[:, batch.decoded] = torch.from_numpy(scores).sigmoid().numpy()
        return out

    @torch.inference_mode()
    def pairs(
        self,
        pairs: Iterable[tuple[Source, str]],
        batch_size: int = BATCH,
    ) -> Iterator[dict[str, Any]]:
        """For a stream of a video and its text each: `answer` and `probability` to a question if
        the model answers questions, else `similarity` and, except for a prompter, `match`. None if
        the file cannot be decoded."""
        texts: dict[int, str] = {}

        def files() -> Iterator[Source]:
            for position, (file, text) in enumerate(pairs):
                texts[position] = text
                yield file

        for batch in self._warned(files(), batch_size):
            rows = self._score_pairs(batch.videos, [texts[i] for i in batch.decoded])
            by_position = dict(zip(batch.decoded, rows, strict=True))
            for position in batch.sources:
                del texts[position]  # a stream has no end: memory holds a few batches
                yield by_position.get(position) or dict.fromkeys(self.pair_columns)

    @property
    def pair_columns(self) -> tuple[str, ...]:
        """The names of the results of `pairs`."""
        if self.folder.answers:
            return ("answer", "probability")
        if isinstance(self.folder.model, Alpro):
            return ("similarity", "match")
        return ("similarity",)

    def _score_pairs(self, videos: Videos, texts: list[str]) -> list[dict[str, Any]]:
        """The rows of `pairs` of videos with a text each."""
        if not texts:
            return []
        encoded = self.texts(texts)

        rows: list[dict[str, Any]] = []
        if self.folder.answers:
            for probabilities in self._answers(videos, encoded):
                ((answer, probability),) = self._best(probabilities, self.folder.answers, top_k=1)
                rows.append({"answer": answer, "probability": probability})
            return rows

        similarity = (videos.features * encoded.features).sum(1).tolist()
        rows = [{"similarity": value} for value in similarity]
        if isinstance(self.folder.model, Alpro):
            pairs = np.arange(len(texts))[:, None].repeat(2, axis=1)  # each text with its video
            with self.precision():
                margins = match(self.folder.model, encoded, videos, pairs)
            for row, probability in zip(rows, margins.sigmoid().tolist(), strict=True):
                row["match"] = probability
        return rows

    @torch.inference_mode()
    def ask(
        self,
        file: Source,
        question: str,
        top_k: int = 3,
        frames: Tensor | None = None,
    ) -> list[tuple[str, float]]:
        """The `top_k` most likely answers of the model's closed list with their probabilities, in
        descending order.

        frames: those of the file, if it is decoded already. Raises DecodeError if it cannot be
        decoded.
        """
        if not self.folder.answers:
            raise InputError(
                f"this {self.folder.task} model does not answer questions; load a model of "
                "finetune_qa"
            )

        clips = self.frames(file) if frames is None else frames
        videos = self._encode(list(clips.cpu().numpy()))
        probabilities = self._answers(videos, self.texts([question]))
        return self._best(probabilities[0], self.folder.answers, top_k)

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
        """The `top_k` most likely entities of a region: left, top, width, height, as fractions of
        the frame.

        A prompter sees the region alone. A pre-trained model sees all of the video and, as in
        pre-training, its caption `text`, which may be empty; its PEM head then names the region, if
        it was trained with PEM. frames: as of `ask`.
        """
        model = self.folder.model
        grid = model.config.video.grid
        if not self.names_entities:
            raise InputError(
                f"this {self.folder.task} model names no entities: use a pre-trained model, or a "
                "prompter with its prompts, Model.load(PROMPTER, prompts=PROMPTS)"
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
                length = self.folder.preprocessing.max_text_tokens
                # Not `self.texts`, which refuses an empty text.
                caption = encode_texts(model, self.folder.tokenizer, [text], length)
                video = model.encode_video(pixels)
                fused = model.fused_patches(caption.tokens, caption.mask, video)
                labels = model.pem_logits(fused, box_mask(boxes, grid)).float().softmax(1)
            else:
                prompts = self.prompts[self.kind_of(file)]
                labels = model.pseudo_labels(pixels, boxes, prompts, self.encoder.black)
        return self._best(labels[0], self.folder.entities, top_k)

    @property
    def entities_note(self) -> str:
        """A line on what `entities` can name: it chooses from a closed list, whatever is shown."""
        entities = self.folder.entities
        shown = ", ".join(entities[:SHOWN_ENTITIES])
        if len(entities) > SHOWN_ENTITIES:
            shown = f"{shown}, ..."
        return f"{len(entities):,} entities: {shown}; one of these is always named"

    def kind_of(self, file: Source) -> str:
        """The key of `prompts` for a file: image, if there are any of images, or video."""
        return "image" if is_image(file) and "image" in self.prompts else "video"

    def _alpro(self, verb: str) -> Alpro:
        """The model, if it is no prompter. Raises InputError with what it cannot do."""
        if not isinstance(self.folder.model, Alpro):
            raise InputError(
                f"a prompter has no multimodal encoder to {verb} with; load a pre-trained or "
                "fine-tuned model"
            )
        return self.folder.model

    @staticmethod
    def _best(probabilities: Tensor, words: list[str], top_k: int) -> list[tuple[str, float]]:
        """The words with the highest probabilities (words,), in descending order."""
        best = probabilities.topk(min(top_k, len(words)))
        ranked = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [(words[i], probability) for i, probability in ranked]
