"""The scores of a model: of the texts and videos of a gallery, and of answers to questions."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self, cast

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor

from alpro.inference.encoding import (
    VIDEOS,
    Reorder,
    Texts,
    Videos,
    encode_texts,
    encode_videos,
    load_model,
    match_all,
    match_top_k,
    score,
    similarities,
)
from alpro.log import progress
from alpro.models.alpro import Alpro
from alpro.models.frames import NormalizedModel
from alpro.models.ranks import world_size
from alpro.stages.evaluation.gallery import Gallery, Questions
from alpro.stages.evaluation.protocol import EvaluationConfig

QUESTIONS = 256  # that are encoded together


@dataclass(frozen=True)
class Scorer:
    """A model with what its scores depend on.

    length: maximum tokens of a text. top_k: the matching head scores only this many most similar
    pairs of each query; 0: all. answers: those of its answer head.
    """

    encoder: NormalizedModel
    tokenizer: Tokenizer
    length: int
    top_k: int = 0
    answers: Sequence[str] = ()

    @classmethod
    def load(cls, config: EvaluationConfig, folder: Path, device: torch.device) -> Self:
        """The model of an artifact, with the configured number of frames."""
        loaded = load_model(folder, device)
        # This resizes the time embedding, as fine-tuning does.
        if config.frames:
            loaded.model.set_frames(config.frames)

        return cls(
            loaded.normalized(device),
            loaded.tokenizer,
            length=config.max_text_tokens or loaded.preprocessing.max_text_tokens,
            top_k=config.top_k,
            answers=loaded.answers,
        )

    @property
    def frames(self) -> int:
        """The number of frames of a clip."""
        return self.encoder.model.config.video.frames

    def protocol(self, by_similarity: bool = False) -> str:
        """What a score of retrieval is comparable with: the pairs that are scored, and the frames
        of a clip, such as "top 16, 4 frames". Similarity always scores all pairs."""
        pairs = "all pairs" if by_similarity or not self.top_k else f"top {self.top_k}"
        return f"{pairs}, {self.frames} frame{'' if self.frames == 1 else 's'}"

    def encode(self, gallery: Gallery, reorder: Reorder | None = None) -> tuple[Texts, Videos]:
        """The encoded texts and videos of a gallery. reorder: as of `encode_videos`."""
        texts = encode_texts(self.encoder.model, self.tokenizer, gallery.texts, self.length)
        videos = encode_videos(
            self.encoder, gallery.reader, gallery.sample_indices, reorder=reorder
        )
        return texts, videos

    def score(
        self, gallery: Gallery, reorder: Reorder | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """The scores of a gallery, as of `by_direction`: by matching (VTM), of all pairs (texts,
        videos) or for each direction (2, texts, videos); and by similarity (VTC)."""
        model = cast(Alpro, self.encoder.model)
        texts, videos = self.encode(gallery, reorder)
        if self.top_k:
            scores = match_top_k(model, texts, videos, self.top_k)
        else:
            scores = match_all(model, texts, videos)
        return scores, similarities(texts.features, videos.features).cpu().numpy()

    def similarity(self, gallery: Gallery, reorder: Reorder) -> np.ndarray:
        """The scores of all pairs (texts, videos) of a gallery by similarity alone."""
        texts, videos = self.encode(gallery, reorder)
        return similarities(texts.features, videos.features).cpu().numpy()

    @torch.no_grad()
    def answer(
        self, questions: Questions, reorder: Reorder | None = None, blank: bool = False
    ) -> Tensor:
        """Logits of the answer head (questions, answers), on the CPU.

        The device holds the tokens of VIDEOS videos and one batch of questions at a time. blank:
        instead of a video, a clip without content: all pixels have the mean color of the training
        frames, zero after normalization. It depends on no video of the split, and is closer to what
        the encoder knows than black.
        """
        model = cast(Alpro, self.encoder.model)
        assert model.qa_head is not None, "this model does not answer questions"
        # The processes share the videos of a batch: all are busy with VIDEOS of them.
        batch = max(1, 32 // world_size())

        logits = []
        with progress("answering", len(questions.texts), "questions") as advance:
            for start in range(0, len(questions.sample_indices), VIDEOS):
                subset = questions.between(start, start + VIDEOS)
                if blank:
                    videos = self._blank(len(subset.sample_indices))
                else:
                    videos = encode_videos(
                        self.encoder, subset.reader, subset.sample_indices, batch, reorder
                    )

                for first in range(0, len(subset.texts), QUESTIONS):
                    asked = subset.texts[first : first + QUESTIONS]
                    video_of_text = subset.video_of_text[first : first + QUESTIONS]
                    texts = encode_texts(model, self.tokenizer, asked, self.length)
                    pairs = np.stack([np.arange(len(asked)), video_of_text], axis=1)
                    logits.append(score(model, model.qa_head, texts, videos, pairs).cpu())
                    advance(len(asked))
        return torch.cat(logits)

    def _blank(self, videos: int) -> Videos:
        """Clips whose pixels are zero after normalization."""
        config = self.encoder.model.config.video
        size = config.image_size
        pixels = torch.zeros(1, config.frames, 3, size, size, device=self.encoder.mean.device)
        # One clip is encoded, and all share its memory.
        tokens = self.encoder.model.encode_video(pixels).expand(videos, -1, -1)
        return Videos(tokens, features=tokens[:, 0])
