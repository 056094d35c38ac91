"""A model that is evaluated: how it encodes texts and videos, and answers questions."""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from alpro.inference.clips import load_clip, read_frames
from alpro.inference.matching import Videos, score
from alpro.log import progress
from alpro.models.alpro import Alpro
from alpro.models.folder import ModelBundle, Texts
from alpro.models.frames import NormalizedModel
from alpro.models.ranks import all_reduce_, belongs_to_this_rank
from alpro.shards.clip import DecodeError
from alpro.shards.reader import Sample, ShardReader
from alpro.shards.sampling import segment_starts
from alpro.stages.evaluation.gallery import Gallery
from alpro.threads import map_ahead

QUESTION_BATCH = 256
VIDEO_BATCH = 32
Reorder = Callable[[list[int]], list[int]]  # a control's permutation of frame indices


@dataclass(frozen=True)
class LoadedModel:
    """A model with what its scores depend on.

    Attributes:
        name: What results call it.
        bundle: Its tokenizer, labels and prompts.
        encoder: The model with its normalization.
        length: Maximum tokens of a text; 0: as in training.
    """

    name: str
    bundle: ModelBundle
    encoder: NormalizedModel
    length: int = 0

    @property
    def frames(self) -> int:
        """Number of frames of a clip."""
        return self.encoder.model.config.video.frames

    @property
    def alpro(self) -> Alpro | None:
        """The model if it has a multimodal encoder; None for a prompter and a CLIP."""
        return self.encoder.model if isinstance(self.encoder.model, Alpro) else None

    def describe_protocol(self, top_k: int = 0) -> str:
        """Return what a score of retrieval is comparable with: the scored pairs, and the frames of
        a clip, such as "top 16, 4 frames".

        Args:
            top_k: Pairs of each query that are scored; 0: all.
        """
        pairs = f"top {top_k}" if top_k else "all pairs"
        return f"{pairs}, {self.frames} frame{'' if self.frames == 1 else 's'}"

    def encode_texts(self, texts: list[str]) -> Texts:
        """Encode texts."""
        return self.bundle.encode_texts(texts, self.length)

    def encode_videos(
        self,
        gallery: Gallery,
        reorder: Reorder | None = None,
    ) -> tuple[list[int], Videos]:
        """Encode the videos of a gallery, resized to the encoder's size without a crop.

        Ranks share the batches, and all of them return the result.

        Args:
            gallery: The gallery.
            reorder: Permutation of the frames of a decoded clip, for the controls.

        Returns:
            Indices of the videos that could be decoded, and these videos. A sample of a corpus that
            cannot be read is an error instead.
        """
        config = self.encoder.model.config.video
        device = self.encoder.mean.device
        count = len(gallery.videos)
        batches = [
            range(count)[start : start + VIDEO_BATCH]
            for i, start in enumerate(range(0, count, VIDEO_BATCH))
            if belongs_to_this_rank(i)
        ]
        orders: list[list[int] | None] = [None] * count
        if reorder:
            reader = gallery.videos
            assert isinstance(reader, ShardReader)
            # All ranks order all samples, because an order may be the next random one.
            for index in range(count):
                starts = segment_starts(reader.frame_count(index), config.frames)
                orders[index] = reorder(starts)

        def decode(index: int) -> np.ndarray | None:
            video = gallery.videos[index]
            if isinstance(video, Sample):
                return read_frames(
                    video, config.frames, config.image_size, orders[index]
                )
            try:
                return load_clip(video, config.frames, config.image_size).frames
            except DecodeError:
                return None

        # Filled in place to avoid a second copy.
        tokens = torch.zeros(count, *self.encode_blank().shape[1:], device=device)
        is_decoded = torch.zeros(count, device=device)
        decoded = map_ahead(decode, chain.from_iterable(batches))
        with progress("encoding", count, "videos") as advance:
            for rows in batches:
                frames = zip(rows, decoded, strict=False)
                clips = {row: clip for row, clip in frames if clip is not None}
                advance(len(rows))
                if not clips:
                    continue
                pixels = self.encoder.clip_pixels(clips.values())
                tokens[list(clips)] = self.encode_pixels(pixels)
                is_decoded[list(clips)] = 1

        all_reduce_(tokens)
        indices = all_reduce_(is_decoded).nonzero().flatten()
        if len(indices) < count:
            tokens = tokens[indices]
        with torch.autocast(device.type, enabled=False):
            features = self.encoder.model.project_video(tokens).float()
        return indices.tolist(), Videos(tokens, features)

    def encode_blank(self) -> Tensor:
        """Encode a clip whose pixels are zero after normalization: tokens (1, 1 + patches, D)."""
        config = self.encoder.model.config.video
        shape = (1, config.frames, 3, config.image_size, config.image_size)
        return self.encode_pixels(torch.zeros(shape, device=self.encoder.mean.device))

    def encode_pixels(self, pixels: Tensor) -> Tensor:
        """Encode normalized frames to tokens in float32: of a model without fusion, which needs no
        patches, only [CLS]."""
        cls_only = self.alpro is None
        return self.encoder.model.encode_video(pixels, cls_only).float()

    def answer(
        self,
        gallery: Gallery,
        reorder: Reorder | None = None,
        blank: bool = False,
    ) -> tuple[Gallery, Tensor]:
        """Answer the questions of a gallery.

        The device holds the tokens of all videos, as for retrieval, and one batch of questions.

        Args:
            gallery: Videos with questions.
            reorder: Permutation of the frames of a clip, for the controls.
            blank: Show a clip without content in place of each video: all pixels have the mean
                color of the training frames, zero after normalization. It depends on no video of
                the split, and is closer to what the encoder knows than black.

        Returns:
            The gallery without videos that cannot be decoded, and the logits (questions, answers),
            on the CPU.
        """
        model = self.alpro
        assert model is not None
        assert model.qa_head is not None, "this model does not answer questions"
        if blank:
            # One clip is encoded, and all share its memory.
            tokens = self.encode_blank().expand(len(gallery.ids), -1, -1)
            videos = Videos(tokens, features=tokens[:, 0])
        else:
            decoded, videos = self.encode_videos(gallery, reorder)
            gallery = gallery.select(decoded)

        logits = [torch.empty(0, len(self.bundle.answers))]
        with progress("answering", len(gallery.texts), "questions") as advance:
            for first in range(0, len(gallery.texts), QUESTION_BATCH):
                questions = gallery.texts[first : first + QUESTION_BATCH]
                video_of_text = gallery.video_of_text[first : first + QUESTION_BATCH]
                pairs = np.stack([np.arange(len(questions)), video_of_text], axis=1)
                texts = self.encode_texts(questions)
                logits.append(score(model, model.qa_head, texts, videos, pairs).cpu())
                advance(len(questions))
        return gallery, torch.cat(logits)


def similarities(texts: Tensor, videos: Tensor) -> Tensor:
    """Compute the dot products (N, M) of features (N, E) and (M, E) in float32, also under
    autocast."""
    with torch.autocast(texts.device.type, enabled=False):
        return texts @ videos.T
