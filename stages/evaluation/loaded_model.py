"""A model that is evaluated: how it encodes texts and videos, and answers questions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from alpro.inference.encoding import (
    Videos,
    encode_blank,
    encode_videos,
    score,
)
from alpro.log import progress
from alpro.models.alpro import Alpro
from alpro.models.folder import ModelBundle, Texts
from alpro.models.frames import NormalizedModel
from alpro.shards.reader import ShardReader
from alpro.shards.sampling import segment_starts
from alpro.stages.evaluation.gallery import Gallery

QUESTION_BATCH = 256
VIDEO_BATCH = 32
Reorder = Callable[[list[int]], list[int]]  # a control's permutation of frame indices


@dataclass(frozen=True)
class LoadedModel:
    """A model with what its scores depend on.

    Attributes:
        name: What results call it.
        bundle: Its tokenizer and labels.
        encoder: The model with its normalization.
        prompts: (M, E) embeddings of the prompts of its entities, by the kind of a sample.
        length: Maximum tokens of a text; 0: as in training.
    """

    name: str
    bundle: ModelBundle
    encoder: NormalizedModel
    prompts: Mapping[str, Tensor] = field(default_factory=dict)
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

    @torch.no_grad()
    def encode_videos(
        self,
        gallery: Gallery,
        reorder: Reorder | None = None,
    ) -> tuple[list[int], Videos]:
        """Encode the videos of a gallery.

        Args:
            gallery: The gallery.
            reorder: Permutation of the frames of a decoded clip, for the controls.

        Returns:
            Indices of the videos that could be decoded, and these videos.
        """
        orders = []
        if reorder:
            samples = gallery.videos
            assert isinstance(samples, ShardReader)
            for index in range(len(samples)):
                starts = segment_starts(samples.frame_count(index), self.frames)
                orders.append(reorder(starts))
        return encode_videos(self.encoder, gallery.videos, VIDEO_BATCH, orders)

    @torch.no_grad()
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
            tokens = encode_blank(self.encoder).expand(len(gallery.ids), -1, -1)
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
