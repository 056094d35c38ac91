"""The pre-training objective: VTC + VTM + MLM + PEM (paper, section 3.2, equation 6).

CONTRIBUTING.md says how to add a loss.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import NonNegativeFloat
from torch import Tensor

from alpro.models.alpro import Alpro, crop
from alpro.models.frames import NormalizedModel, scale_frames
from alpro.models.losses import box_mask, find_confident, mlm_loss, pem_loss
from alpro.models.ranks import world_size
from alpro.models.text import Pairs
from alpro.stages.execution.interface import Share, StageConfig
from alpro.stages.training.batch import Batch
from alpro.stages.training.dataset import Granularity
from alpro.stages.training.objective import (
    Counts,
    MatchingObjective,
    Metrics,
    Negatives,
    StepFeatures,
    Term,
    concatenate,
)


class LossWeights(StageConfig, frozen=True):
    """Weights of the losses (equation 6: 1). A loss of weight 0 is not computed. If all are 0, nothing
    is trained."""

    vtc: NonNegativeFloat = 1.0
    """video-text contrast"""
    vtm: NonNegativeFloat = 1.0
    """video-text matching"""
    mlm: NonNegativeFloat = 1.0
    """masked language modeling"""
    pem: NonNegativeFloat = 1.0
    """prompting entity modeling"""


class PretrainSettings(StageConfig, frozen=True):
    """Settings of `PretrainObjective`."""

    weights: LossWeights = LossWeights()
    mlm_probability: Share = 0.15
    """fraction of the tokens that MLM masks"""
    threshold: Share = 0.2
    """PEM ignores crops whose most likely entity is less probable"""
    negatives: Literal["hard", "uniform"] = "hard"
    """negatives of VTM: by similarity, or uniform"""


class PretrainObjective(MatchingObjective):
    """Weighted sum of VTC, VTM, MLM and PEM. A loss of weight 0 is not computed.

    Args:
        prompter: The frozen teacher, which only PEM needs.
        prompts: Embeddings (M, E) of the entities by kind of sample, "video" and "image".
    """

    granularity: Granularity = "sample"
    video_prompts: Tensor
    image_prompts: Tensor

    def __init__(
        self,
        model: Alpro,
        mean: Sequence[float],
        std: Sequence[float],
        prompter: NormalizedModel | None,
        prompts: dict[str, Tensor],
        settings: PretrainSettings,
        negative_pool_size: int = 0,
    ):
        super().__init__(
            model,
            mean,
            std,
            negative_pool_size,
            mlm_probability=settings.mlm_probability,
        )
        self.prompter = prompter.requires_grad_(False).eval() if prompter else None
        for kind, embeddings in prompts.items():
            self.register_buffer(f"{kind}_prompts", embeddings, persistent=False)

        self.settings = settings
        self.threshold = settings.threshold
        self.weights = settings.weights.model_dump()
        self.losses = tuple(name for name, weight in self.weights.items() if weight > 0)

    def train(self, mode: bool = True) -> "PretrainObjective":
        super().train(mode)
        if self.prompter:
            self.prompter.eval()  # pseudo-labels are computed without dropout
        return self

    def forward(
        self,
        batch: Batch,
        counts: Counts,
        features: StepFeatures | None = None,
    ) -> Term:
        terms: dict[str, Term] = {}
        video = self.encode_video(batch)
        text, masked = self.encode_texts(batch)

        # Without VTC, all pairs are equally similar, so the negatives of VTM are uniform.
        v2t = t2v = torch.zeros(
            len(video), len(video) * world_size(), device=video.device
        )
        if "vtc" in self.losses:
            loss, v2t, t2v, metrics = self.contrast(batch, video, text, features)
            terms["vtc"] = loss, metrics
        if self.settings.negatives == "uniform":
            v2t = torch.zeros_like(v2t)
            t2v = torch.zeros_like(t2v)

        negatives = None
        if "vtm" in self.losses:
            negatives = self.sample_negatives(batch, v2t, t2v)
        pairs = self.pairs(batch, video, text, masked, negatives)
        fused = self.model.fuse_groups(pairs)

        if negatives is not None:
            cls = torch.cat([fused["positive"][:, 0], fused["negative"][:, 0]])
            terms["vtm"] = self.vtm_term(cls, negatives.valid, counts)
        if "mlm" in self.losses:
            terms["mlm"] = self.mlm_term(batch, fused["masked"], counts)
        if "pem" in self.losses:
            # Patches follow the text tokens and the video's [CLS].
            patches = fused["positive"][:, batch.text.shape[1] + 1 :]
            terms["pem"] = self.pem_term(batch, patches, counts)

        # Equation 6.
        total = torch.stack(
            [self.weights[name] * loss for name, (loss, _) in terms.items()]
        ).sum()
        all_metrics: Metrics = {}
        for _, metrics in terms.values():
            all_metrics |= metrics
        return total, all_metrics

    def pairs(
        self,
        batch: Batch,
        video: Tensor,
        text: Tensor,
        masked: Tensor,
        negatives: Negatives | None,
    ) -> Iterator[tuple[str, Pairs]]:
        """Yield the pairs that the losses fuse, by name.

        Args:
            text: Tokens (B, L, D) of the texts.
            masked: Tokens (B, L, D) of the masked texts.
        """
        # Positives are fused once: VTM reads [CLS] and PEM the patches.
        if {"pem", "vtm"}.intersection(self.losses):
            outputs = None if "pem" in self.losses else 1
            yield "positive", Pairs(text, batch.mask, video, outputs)
        if negatives is not None:
            groups = self.negative_pairs(batch, video, text, negatives)
            yield "negative", concatenate(groups, outputs=1)
        if "mlm" in self.losses:
            yield (
                "masked",
                Pairs(masked, batch.mask, video, outputs=batch.text.shape[1]),
            )

    def with_pseudo_labels(self, batch: Batch) -> Batch:
        """Return the batch with the prompter's pseudo-labels of its crops, if PEM needs them and the
        batch lacks them."""
        if "pem" not in self.losses or batch.pseudo_labels is not None:
            return batch
        assert batch.boxes is not None
        labels = self.pseudo_labels(batch.frames, batch.boxes, batch.kind)
        return replace(batch, pseudo_labels=labels)

    def pseudo_labels(self, frames: Tensor, boxes: Tensor, kind: str) -> Tensor:
        """Compute the prompter's probabilities of the entities in crops (equation 4). Frames are
        black outside of the crop, and have the prompter's own size and normalization.

        Args:
            frames: (B, T, 3, H, W) uint8.
            boxes: (B, 4) in patches of this model.

        Returns:
            Probabilities (B, M).
        """
        assert self.prompter is not None
        prompts = self.image_prompts if kind == "image" else self.video_prompts
        video = self.model.config.video
        black = torch.zeros(3, 1, 1, device=boxes.device)  # before normalization

        scaled = scale_frames(frames, video.image_size)
        crops = crop(scaled, boxes, video.patch_size, black)
        return self.prompter.model.probabilities(self.prompter.pixels(crops), prompts)

    def counts(self, batch: Batch) -> Counts:
        """Count the pairs of VTM, the masked tokens of MLM, and the confident pseudo-labels of PEM."""
        counts = super().counts(batch) if "vtm" in self.losses else {}
        if "mlm" in self.losses:
            assert batch.labels is not None
            counts["mlm"] = (batch.labels != -100).sum()
        if "pem" in self.losses:
            assert batch.pseudo_labels is not None
            counts["pem"] = find_confident(batch.pseudo_labels, self.threshold).sum()
        return counts

    def encode_texts(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Encode the texts and the masked texts in one pass -> tokens (B, L, D) of both. Without MLM,
        the tokens of the texts are returned twice."""
        if "mlm" not in self.losses:
            text = self.model.encode_text(batch.text, batch.mask)
            return text, text

        assert batch.masked is not None
        ids = torch.cat([batch.text, batch.masked])
        both = self.model.encode_text(ids, batch.mask.repeat(2, 1))
        return both[: len(batch.text)], both[len(batch.text) :]

    def mlm_term(self, batch: Batch, words: Tensor, counts: Counts) -> Term:
        """Compute MLM, averaged over the masked tokens.

        Args:
            words: Fused tokens (B, L, D) of the masked texts.
        """
        assert batch.labels is not None
        # Only masked positions are scored, because the vocabulary is large.
        positions, labels = find_masked_positions(batch.labels, batch.max_masked)
        indices = positions[..., None].expand(-1, -1, words.shape[2])
        scores = self.model.mlm_scores(words.gather(1, indices))
        loss = mlm_loss(scores.flatten(0, 1), labels.flatten()) / counts["mlm"]
        return loss, {"loss_mlm": loss.detach()}

    def pem_term(self, batch: Batch, patches: Tensor, counts: Counts) -> Term:
        """Compute PEM (equation 5), averaged over the confident pseudo-labels.

        Args:
            patches: Fused patch tokens (B, P, D) of the positive pairs, which are averaged inside
                the crop.
        """
        assert batch.boxes is not None
        assert batch.pseudo_labels is not None
        labels = batch.pseudo_labels
        inside = box_mask(batch.boxes, self.model.config.video.grid)
        logits = self.model.pem_logits(patches, inside)

        loss_sum, confident = pem_loss(logits, labels, self.threshold)
        loss = loss_sum / counts["pem"]

        # The loss cannot fall below the entropy of the labels.
        correct = (logits.argmax(1) == labels.argmax(1)) & confident
        entropy = torch.special.entr(labels.float()).sum(1) * confident
        weight = 1 / counts["pem"]
        return loss, {
            "loss_pem": loss.detach(),
            "pseudo_labels_kept": confident.float().mean(),
            "pem_accuracy": correct.sum() * weight,
            "pseudo_label_entropy": entropy.sum() * weight,
        }


def find_masked_positions(labels: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Find the positions (B, P) where labels (B, L) are not -100, and the labels there, padded with
    -100, without a host-device sync.

    Args:
        limit: P, an upper bound of the masked tokens per text that the host knows. 0: P = L.
    """
    masked = (labels != -100).int()
    # A stable sort puts the masked positions first in order. Their number stays on the device.
    order = masked.argsort(dim=1, descending=True, stable=True)
    positions = order[:, : limit or labels.shape[1]]
    return positions, labels.gather(1, positions)
