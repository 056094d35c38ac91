"""The pre-training objective: VTC + VTM + MLM + PEM (paper, section 3.2, equation 6).

To add a loss, add its weight to `LossWeights`, its parts of the model to `TRAINED_BY` (objective.py), and a term to
`PretrainObjective.forward` (and to `counts`, if it is a mean over what differs between ranks). Report, MLflow,
checkpoints and FLOPs follow from these.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from pydantic import Field
from torch import Tensor

from alpro.models.alpro import Alpro, crop
from alpro.models.frames import NormalizedModel, scale_frames
from alpro.models.losses import box_mask, kept_labels, mlm_loss, pem_loss
from alpro.stages.execution.interface import StageConfig
from alpro.stages.training.batch import Batch
from alpro.stages.training.objective import MatchingObjective, Metrics, concatenate, world_size


class LossWeights(StageConfig):
    """Weights of the losses (equation 6: 1). A loss of weight 0 is not computed; all 0: no training."""

    vtc: float = Field(1.0, ge=0, description="video-text contrast")
    vtm: float = Field(1.0, ge=0, description="video-text matching")
    mlm: float = Field(1.0, ge=0, description="masked language modeling")
    pem: float = Field(1.0, ge=0, description="prompting entity modeling")


class PretrainObjective(MatchingObjective):
    """Weighted sum of VTC, VTM, MLM and PEM. A loss of weight 0 is not computed; PEM needs the prompter.

    uniform_negatives: negatives of VTM are sampled uniformly and not by similarity, as without VTC.
    """

    video_prompts: Tensor
    image_prompts: Tensor

    def __init__(
        self,
        model: Alpro,
        mean: Sequence[float],
        std: Sequence[float],
        prompter: NormalizedModel | None,
        prompts: dict[str, Tensor],
        weights: LossWeights,
        threshold: float,
        negative_pool_size: int = 0,
        uniform_negatives: bool = False,
    ):
        super().__init__(model, mean, std, negative_pool_size)
        self.prompter = prompter.requires_grad_(False).eval() if prompter else None
        for kind, embeddings in prompts.items():
            self.register_buffer(f"{kind}_prompts", embeddings, persistent=False)
        self.threshold, self.uniform_negatives = threshold, uniform_negatives
        self.weights = weights.model_dump()
        self.losses = tuple(name for name, weight in self.weights.items() if weight > 0)

    def train(self, mode: bool = True) -> "PretrainObjective":
        super().train(mode)
        if self.prompter:
            self.prompter.eval()  # frozen: no dropout in the pseudo-labels
        return self

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        frames = self.pixels(batch.frames)
        batch = self.labeled(batch, frames)
        video = self.encode_video(batch, frames)
        text, masked = self.encode_texts(batch)
        terms: dict[str, tuple[Tensor, Metrics]] = {}
        v2t = t2v = torch.zeros(len(video), len(video) * world_size(), device=video.device)
        if "vtc" in self.losses:
            loss, v2t, t2v, metrics = self.contrast(batch, video, text)
            terms["vtc"] = loss, metrics
        if self.uniform_negatives:
            v2t, t2v = torch.zeros_like(v2t), torch.zeros_like(t2v)
        fused = self.fuse(batch, video, text, masked, v2t, t2v)
        if "vtm" in fused:
            terms["vtm"] = self.matching(*fused["vtm"])
        if "mlm" in fused:
            terms["mlm"] = self.masked_words(*fused["mlm"])
        if "pem" in fused:
            terms["pem"] = self.entities(batch, *fused["pem"])
        total = torch.stack([self.weights[name] * loss for name, (loss, _) in terms.items()]).sum()
        return total, {name: value for _, metrics in terms.values() for name, value in metrics.items()}

    def labeled(self, batch: Batch, frames: Tensor) -> Batch:
        """The batch with the prompter's pseudo-labels of its crops, for PEM, unless it has them already."""
        if "pem" not in self.losses or batch.pseudo_labels is not None:
            return batch
        assert batch.boxes is not None
        return replace(batch, pseudo_labels=self.pseudo_labels(batch.frames, batch.boxes, batch.kind))

    def pseudo_labels(self, frames: Tensor, boxes: Tensor, kind: str) -> Tensor:
        """The prompter's probabilities (B, M) of the entities in crops of frames (B, T, 3, H, W) uint8, black outside.

        boxes (B, 4) in patches of this model; the prompter sees the crops with its own size and normalization.
        """
        assert self.prompter is not None
        prompts = self.image_prompts if kind == "image" else self.video_prompts
        video = self.model.config.video
        black = torch.zeros(3, 1, 1, device=boxes.device)
        shown = crop(scale_frames(frames, video.image_size), boxes, video.patch_size, black)
        return self.prompter.model.probabilities(self.prompter.pixels(shown), prompts)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """VTM: pairs; MLM: masked words; PEM: kept samples of a batch with pseudo-labels."""
        counts = super().counts(batch) if "vtm" in self.losses else {}
        if "mlm" in self.losses:
            assert batch.labels is not None
            counts["mlm"] = (batch.labels != -100).sum()
        if "pem" in self.losses:
            assert batch.pseudo_labels is not None
            counts["pem"] = kept_labels(batch.pseudo_labels, self.threshold).sum()
        return counts

    def encode_texts(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Text tokens (B, L, D) of the clean and of the masked texts in one pass; without MLM, the clean ones twice."""
        if "mlm" not in self.losses:
            text = self.model.encode_text(batch.text, batch.mask)
            return text, text
        assert batch.masked is not None
        both = self.model.encode_text(torch.cat([batch.text, batch.masked]), batch.mask.repeat(2, 1))
        return both[: len(batch.text)], both[len(batch.text) :]

    def fuse(
        self, batch: Batch, video: Tensor, text: Tensor, masked: Tensor, v2t: Tensor, t2v: Tensor
    ) -> dict[str, tuple[Tensor, Tensor]]:
        """One pass of the multimodal encoder over all pairs: B positives, 2B negatives, B masked texts.

        Its last layer computes the used tokens only. Returns them for each loss that is on: vtm: [CLS] (3B, D) and
        valid (2B,), see `matching`; mlm: masked words (B, P, D) and their labels (B, P); pem: patches (B, P, D) and
        whether they are inside the crop (B, P).
        """
        on, length = self.losses, batch.text.shape[1]
        cls = batch.mask.new_zeros(len(batch.text), 1)
        pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        positions: list[Tensor] = []  # for each group of pairs the tokens that the losses read, [CLS] first
        if "vtm" in on or "pem" in on:
            pairs.append((text, batch.mask, video))
            positions.append(cls)
        if "pem" in on:
            assert batch.boxes is not None
            grid = self.model.config.video.grid
            patches, inside = box_patches(batch.boxes, grid, max(1, grid**2 // 2), batch.kept)
            positions[0] = torch.cat([cls, length + 1 + patches], dim=1)
        if "vtm" in on:
            negatives, valid = self.negatives(batch, video, text, v2t, t2v)
            pairs += negatives
            positions.append(cls.repeat(2, 1))
        if "mlm" in on:
            assert batch.labels is not None
            pairs.append((masked, batch.mask, video))
            words, labels = masked_positions(batch.labels, batch.max_masked)
            positions.append(words)
        if not pairs:
            return {}
        tokens = self.model.fuse_at(positions, *concatenate(pairs))
        fused: dict[str, tuple[Tensor, Tensor]] = {}
        if "vtm" in on:
            fused["vtm"] = torch.cat([tokens[0][:, 0], tokens[1][:, 0]]), valid
        if "mlm" in on:
            fused["mlm"] = tokens[-1], labels
        if "pem" in on:
            fused["pem"] = tokens[0][:, 1:], inside
        return fused

    def masked_words(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Metrics]:
        """MLM, averaged over the masked words of all ranks. tokens (B, P, D), labels (B, P), -100 = not masked."""
        scores = self.model.mlm_scores(tokens)
        count = self.total("mlm", (labels != -100).sum())
        loss = mlm_loss(scores.flatten(0, 1), labels.flatten()) * world_size() / count
        return loss, {"loss_mlm": loss.detach()}

    def entities(self, batch: Batch, patches: Tensor, inside: Tensor) -> tuple[Tensor, Metrics]:
        """PEM, averaged over the kept samples of all ranks (`total`), with `pem_metrics`.

        patches (B, P, D): fused patch tokens of the positive pairs, averaged where `inside` (B, P) the crop.
        """
        assert batch.pseudo_labels is not None
        logits, labels = self.model.pem_logits(patches, inside), batch.pseudo_labels
        summed, kept = pem_loss(logits, labels, self.threshold)
        each = world_size() / self.total("pem", kept.sum())
        loss = summed * each
        return loss, {"loss_pem": loss.detach(), **self.pem_metrics(logits, labels, kept, each)}

    def pem_metrics(self, logits: Tensor, labels: Tensor, kept: Tensor, each: Tensor) -> Metrics:
        """The share of labels (B, M) that are kept (B,), and over these: how often logits (B, M) have the most likely
        entity of the label, and the entropy of the labels, below which the loss cannot fall. each: the weight of a kept
        label in a mean over all ranks."""
        right = (logits.argmax(1) == labels.argmax(1)) & kept
        entropy = torch.special.entr(labels.float()).sum(1) * kept
        return {
            "pseudo_labels_kept": kept.float().mean(),
            "pem_accuracy": right.sum() * each,
            "pseudo_label_entropy": entropy.sum() * each,
        }


def masked_positions(labels: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Positions (B, P) where labels (B, L) are not -100, and the labels there, padded with -100.

    limit: P, an upper bound of the masked words per text, known on the host; 0: P = L. No device synchronization.
    """
    chosen = (labels != -100).int().argsort(dim=1, descending=True, stable=True)[:, : limit or labels.shape[1]]
    return chosen, labels.gather(1, chosen)


def box_patches(boxes: Tensor, grid: int, limit: int, kept: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The patches inside boxes (B, 4) of at most `limit` = P patches: indices and whether they are inside, both (B, P).

    kept (B, K): the patches that were encoded, to which the indices refer; None: all. P is known on the host, so that
    no device synchronization is needed.
    """
    inside = box_mask(boxes, grid)
    if kept is not None:
        inside = inside.gather(1, kept)
    chosen = inside.int().argsort(dim=1, descending=True, stable=True)[:, :limit]
    return chosen, inside.gather(1, chosen)
