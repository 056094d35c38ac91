"""A trained model in Python: encode and compare, match, ask, label a region (docs/python.md).

Videos are encoded a batch at a time and decoded a few ahead, so their number is not limited by
memory. A file that cannot be decoded is reported with the reason, and the others go on.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from alpro.errors import InputError
from alpro.inference.clips import (
    DEFAULT_LIMITS,
    Source,
    file_name,
    get_row,
    is_file,
    load_clip,
)
from alpro.inference.inputs import check_texts
from alpro.inference.loading import Found, PathLike, load_bundle, resolve
from alpro.inference.matching import Videos, match_all
from alpro.models.alpro import Alpro
from alpro.models.folder import ModelBundle, Texts
from alpro.models.frames import NormalizedModel
from alpro.models.precision import Device, autocast, compute_dtype, pick_device
from alpro.shards.clip import Clip, DecodeError, Limits
from alpro.threads import map_ahead

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
# Labels with their probabilities, in descending order.
RankedWords = list[tuple[str, float]]
S = TypeVar("S", bound=Source)
# A source, a row of scores or of NaN, and the clip or why it cannot be decoded.
Scored = tuple[S, np.ndarray, Clip | DecodeError]
# Left, top, width and height; also as a text, such as "0.5,0,0.5,1".
Box = Sequence[float] | str
WHOLE = (0.0, 0.0, 1.0, 1.0)
BATCH = 16  # videos that are encoded together
WORD = r"[^\s!-/:-@\[-`{-~]+"  # characters but spaces and ASCII punctuation


@dataclass(frozen=True)
class Embedded:
    """The result for one file of a stream.

    Attributes:
        file: The file as it was given.
        embedding: Its embedding (E,) float32.
        error: Why it has none.
        duration: Seconds of a video.
    """

    file: Any
    embedding: np.ndarray | None
    error: DecodeError | None = None
    duration: float = 0.0


@dataclass(eq=False, repr=False)
class Model:
    """A model with its preprocessing.

    Videos and images are files, whose frames are sampled as in evaluation.

    Attributes:
        folder: The model with its tokenizer, preprocessing, labels and prompts (`ModelBundle`).
        device: Device of the weights.
        dtype: Compute dtype of the encoders.
    """

    folder: ModelBundle
    device: torch.device
    dtype: torch.dtype

    @cached_property
    def encoder(self) -> NormalizedModel:
        """The model with its frame normalization."""
        return self.folder.normalized(self.device)

    @classmethod
    def load(
        cls,
        name: PathLike | Found,
        workspace: PathLike | None = None,
        device: Device = "auto",
        dtype: Dtype = "auto",
    ) -> "Model":
        """Load a model.

        Args:
            name: A model folder; an artifact, by its fingerprint or the first characters of it, by
                its stage (the last run's) or by CONFIG/STAGE; a CLIP or SigLIP of the hub. A
                prompter has the entities of the newest artifact of cache_prompts in the workspace
                that was embedded with it; the name of an older one chooses its entities.
            workspace: Folder in which artifacts are looked up; by default $ALPRO_WORKSPACE, or the
                folder `workspace`.
            device: Device; auto: the GPU if there is one.
            dtype: Compute dtype of the encoders; auto: as in training. Weights, embeddings and
                scores are float32.

        Raises:
            InputError: If there is no such model, device or dtype, or a file of it is missing.
        """
        for value, choices in ((device, Device), (dtype, Dtype)):
            if value not in get_args(choices):
                raise InputError(f"{value!r} is not one of {get_args(choices)}")
        found = name if isinstance(name, Found) else resolve(name, workspace)
        target = pick_device(device)
        loaded = load_bundle(found, target)
        torch_dtype = (
            compute_dtype(loaded.model.config.video.width, target)
            if dtype == "auto"
            else getattr(torch, dtype)
        )
        return cls(loaded, target, torch_dtype)

    # Texts

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Texts:
        """Encode texts: tokens (N, L, D), mask (N, L), features (N, E)."""
        return self.folder.encode_texts(check_texts(texts, InputError))

    def note(self, text: str) -> str:
        """Return a line that names the unknown words of a text, or says that it is too long; empty
        if there is nothing to say."""
        tokenizer = self.folder.tokenizer
        unknown = []
        # The tokenizer of a CLIP has all bytes, so it knows all words.
        words = re.findall(WORD, text) if isinstance(tokenizer, Tokenizer) else ()
        for word in dict.fromkeys(words):
            tokens = tokenizer.encode(word, add_special_tokens=False).tokens
            # Known words are one token, or a few long ones, such as a stem and its ending.
            is_in_letters = len(tokens) > 1 and len(word) < 3 * len(tokens)
            if is_in_letters or "[UNK]" in tokens:
                unknown.append(word)

        note = self._count_long([text])
        if unknown:
            note = (
                f"the model does not know: {', '.join(unknown)}; the scores may mean nothing. "
                f"{note}"
            )
        return note.strip()

    def _count_long(self, texts: list[str]) -> str:
        """Return a line that says how many texts are too long; empty if none is."""
        folder = self.folder
        length = folder.model.text_length(folder.preprocessing.max_text_tokens)
        rows = folder.words.ids(texts, length + 1)
        count = sum(len(ids) > length for ids in rows)
        if not count:
            return ""
        return (
            f"{count} of {len(texts)} texts too long: the model reads only the first {length} "
            "tokens"
        )

    def _check_texts(self, texts: Any, stacklevel: int = 3) -> list[str]:
        """Return one or more texts as a list, with a warning if some are too long."""
        checked = check_texts(texts, InputError)
        note = self._count_long(checked)
        if note:
            warnings.warn(note, stacklevel=stacklevel)
        return checked

    # Videos

    def frames(self, file: Source, limits: Limits = DEFAULT_LIMITS) -> np.ndarray:
        """Decode the frames of a file: (T, H, W, 3) uint8.

        Raises:
            DecodeError: If it cannot be decoded.
        """
        video = self.folder.model.config.video
        try:
            return load_clip(file, video.frames, video.image_size, limits).frames
        except DecodeError as error:
            detail = f"{file_name(file)}: {error.detail}".removesuffix(": ")
            raise DecodeError(error.reason, detail) from error

    @torch.inference_mode()
    def embed_frames(self, frames: np.ndarray) -> np.ndarray:
        """Embed a video of decoded frames (T, H, W, 3) uint8: (E,)."""
        return get_features(self._encode([frames], cls_only=True))[0]

    def _encode(self, clips: Sequence[np.ndarray], cls_only: bool = False) -> Videos:
        """Encode videos of frames (T, H, W, 3) uint8, of any sizes."""
        with self.autocast():
            pixels = self.encoder.clip_pixels(clips)
            tokens = self.folder.model.encode_video(pixels, cls_only)
        tokens = tokens.float()  # the projection computes in float32
        return Videos(tokens, self.folder.model.project_video(tokens).float())

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of matrix products in the compute dtype."""
        return autocast(self.dtype, self.device)

    def stream(self, files: Iterable[S]) -> Iterator[Embedded]:
        """Embed a stream of files, such as `Path("videos").rglob("*.mp4")`, and yield a result for
        each, in order."""
        for source, embedding, clip in self._score(files, get_features):
            if isinstance(clip, DecodeError):
                yield Embedded(source, None, clip)
            else:
                yield Embedded(source, embedding, duration=clip.duration)

    @torch.inference_mode()
    def _score(
        self,
        files: Iterable[S],
        score: Callable[[Videos], np.ndarray],
        cls_only: bool = True,
        batch_size: int = 0,
    ) -> Iterator[Scored[S]]:
        """Score a stream of files. Memory holds one batch.

        Args:
            files: The files.
            score: Returns a row of scores for each of the encoded videos.
            cls_only: Encode only the [CLS] token of a video, which is enough for its features.
            batch_size: Videos that are encoded together; 0: BATCH.
        """
        video = self.folder.model.config.video

        def decode(source: S) -> tuple[S, Clip | DecodeError]:
            try:
                return source, load_clip(source, video.frames, video.image_size)
            except DecodeError as error:
                return source, error

        # In place of a clip that cannot be decoded, so that a batch is never empty.
        black = np.zeros((video.frames, video.image_size, video.image_size, 3), "uint8")
        # A single name is no stream of characters.
        listed: Any = [files] if isinstance(files, PathLike) else files
        decoded = map_ahead(decode, listed)
        while batch := list(islice(decoded, batch_size or BATCH)):
            clips = [
                clip.frames if isinstance(clip, Clip) else black for _, clip in batch
            ]
            scores = score(self._encode(clips, cls_only))
            for (source, clip), row in zip(batch, scores, strict=True):
                if isinstance(clip, DecodeError):
                    row[:] = np.nan
                yield source, row, clip

    # Scores

    def encode(self, inputs: Any, batch_size: int = BATCH) -> np.ndarray:
        """Embed texts or files.

        Args:
            inputs: A list of texts or of files, or a single one. A `Path`, a URL and a name that
                ends like a video or an image are files; any other string is a text.
            batch_size: Videos that are encoded together.

        Returns:
            L2-normalized embeddings (N, E) float32; (E,) for a single input. The row of a file that
            cannot be decoded is NaN, and a warning names it.

        Raises:
            InputError: If texts and files are mixed.
        """
        rows = self._embed(inputs, batch_size)
        return rows[0] if isinstance(inputs, PathLike) else rows

    def similarity(self, a: Any, b: Any) -> np.ndarray:
        """Compute the VTC similarity (N, M) float32, -1 to 1, of N and M texts, files or
        embeddings. NaN for a file that cannot be decoded."""
        return self._embed(a) @ self._embed(b).T

    def _embed(self, inputs: Any, batch_size: int = BATCH) -> np.ndarray:
        """Embed one or more texts or files: (N, E). One embedding (E,) is a row."""
        if isinstance(inputs, np.ndarray):
            return np.atleast_2d(inputs)

        listed = as_list(inputs)
        are_files = {is_file(item) for item in listed}
        if len(are_files) > 1:
            raise InputError(
                "expected a list of texts or a list of files, not both in one"
            )
        if True in are_files:
            scored = self._score(listed, get_features, batch_size=batch_size)
            return collect_rows(scored, 4)
        return self.folder.embed_texts(self._check_texts(listed, 4)).cpu().numpy()

    @property
    def can_match(self) -> bool:
        """Whether the model has a multimodal encoder, which a prompter lacks."""
        return isinstance(self.folder.model, Alpro)

    def match(self, texts: Sequence[str], files: Iterable[Source]) -> np.ndarray:
        """Compute the VTM probabilities (texts, files) float32 that text and video match. NaN for a
        file that cannot be decoded."""
        encoded = self.texts(self._check_texts(texts))
        margins = self.match_margins(encoded, as_list(files))
        return torch.from_numpy(collect_rows(margins)).sigmoid().numpy().T

    def match_margins(self, texts: Texts, files: Iterable[S]) -> Iterator[Scored[S]]:
        """Compute the logit margins (texts,) of `match` for each file."""
        model = self._alpro("match")

        def score(videos: Videos) -> np.ndarray:
            with self.autocast():
                return match_all(model, texts, videos).T

        return self._score(files, score, cls_only=False)

    @torch.inference_mode()
    def ask(
        self,
        file: Source,
        question: str,
        top_k: int = 3,
        frames: np.ndarray | None = None,
    ) -> RankedWords:
        """Answer a question from the model's closed list.

        Args:
            file: A video or an image.
            question: The question. `note` says which part of it the model does not read.
            top_k: Number of answers.
            frames: Frames of the file, if it is decoded already.

        Returns:
            The most likely answers with their probabilities, in descending order.

        Raises:
            InputError: If the model does not answer questions.
            DecodeError: If the file is missing, or cannot be decoded.
        """
        if not self.folder.answers:
            raise InputError(
                f"this {self.folder.task} model does not answer questions; load a model of "
                "finetune_qa"
            )

        video = self._encode([self.frames(file) if frames is None else frames])
        text = self.texts([question])
        with self.autocast():
            logits = self._alpro("answer").answer(text.tokens, text.mask, video.tokens)
        return rank_words(logits.float().softmax(1)[0], self.folder.answers, top_k)

    @torch.inference_mode()
    def entities(
        self,
        file: Source,
        box: Box = WHOLE,
        top_k: int = 3,
        frames: np.ndarray | None = None,
    ) -> RankedWords:
        """Label a region by a prompter, which sees the region alone.

        Args:
            file: A video or an image.
            box: Left, top, width and height as fractions of the frame.
            top_k: Number of entities.
            frames: Frames of the file, if it is decoded already.

        Returns:
            The most likely entities with their probabilities, in descending order.

        Raises:
            InputError: If the model cannot label entities.
            DecodeError: If the file is missing, or cannot be decoded.
        """
        model = self.folder.model
        prompts = self.folder.prompts
        if not prompts:
            raise InputError(
                f"this {self.folder.task} model cannot label entities: use a prompter with "
                "prompts, by the name of its cache_prompts artifact"
            )
        patches = region_to_patches(box, model.config.video.grid)
        clip = self.frames(file) if frames is None else frames
        pixels = self.encoder.clip_pixels([clip])
        boxes = torch.tensor([patches], device=self.device)
        # Images have prompts of their own if cache_prompts was run for images.
        kind = get_row(file).kind if "image" in prompts else "video"
        with self.autocast():
            labels = model.pseudo_labels(
                pixels, boxes, prompts[kind], self.encoder.black
            )
        return rank_words(labels[0], self.folder.entities, top_k)

    @property
    def entities_note(self) -> str:
        """A line on what `entities` can return: an entry of a closed list, whatever is shown."""
        return f"one of {len(self.folder.entities):,} entities is always named"

    def _alpro(self, verb: str) -> Alpro:
        """Return the model. Raise InputError for a prompter."""
        if not isinstance(self.folder.model, Alpro):
            raise InputError(
                f"a prompter has no multimodal encoder to {verb} with; load a pre-trained or "
                "fine-tuned model"
            )
        return self.folder.model


def get_features(videos: Videos) -> np.ndarray:
    """Return the embeddings (N, E) of encoded videos."""
    return videos.features.cpu().numpy()


def collect_rows(scored: Iterable[Scored[Any]], stacklevel: int = 3) -> np.ndarray:
    """Return the scores of files as an array, and warn of each file that cannot be decoded.

    Args:
        stacklevel: Which caller the warning names: the user of the public method.
    """
    rows = []
    for source, row, clip in scored:
        rows.append(row)
        if isinstance(clip, DecodeError):
            warnings.warn(f"{file_name(source)}: {clip}", stacklevel=stacklevel)
    return np.stack(rows)


def region_to_patches(box: Box, grid: int) -> list[int]:
    """Return the patches of a region, at least one.

    Args:
        grid: Number of patches along each side of the frame.

    Returns:
        The left column, the top row, the number of columns and the number of rows.

    Raises:
        InputError: If it is not a region inside the frame.
    """
    refusal = InputError(
        f"box {box} is not a region of the frame: it takes left, top, width and height as "
        "fractions, such as 0.5, 0, 0.5, 1"
    )
    sides = box.split(",") if isinstance(box, str) else box
    try:
        left, top, width, height = map(float, sides)
    except (TypeError, ValueError):
        raise refusal from None
    start = np.array([left, top])
    size = np.array([width, height])
    # Decimals may be rounded. All comparisons with NaN are false, so it is refused.
    is_inside = (start >= 0) & (size > 0) & (start + size <= 1.001)
    if not is_inside.all():
        raise refusal

    first = np.minimum(grid - 1, np.round(start * grid))
    # Both ends are rounded, so the last patch may lie outside of the grid.
    count = np.minimum(grid - first, np.maximum(1, np.round(size * grid)))
    return [*map(int, (*first, *count))]


def rank_words(probabilities: Tensor, words: list[str], top_k: int) -> RankedWords:
    """Return the words with the highest probabilities (words,), in descending order."""
    best = probabilities.topk(min(top_k, len(words)))
    ranked = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [(words[i], probability) for i, probability in ranked]


def as_list(items: Any) -> list[Any]:
    """Return one or more texts or files as a list. Raise InputError if it is empty."""
    listed = [items] if isinstance(items, PathLike) else list(items)
    if not listed:
        raise InputError(f"expected one or more texts or files, not {items!r}")
    return listed
