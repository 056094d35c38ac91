"""The pre-training objective: VTC + VTM + MLM + PEM (paper, section 3.2, equation 6), and PVM, which is PEM for verbs.

To add a loss, add its weight to `LossWeights`, its parts of the model to `TRAINED_BY` (objective.py), and a term to
`PretrainObjective.forward`. Report, MLflow, checkpoints and FLOPs follow from these.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from alpro.models.alpro import Alpro, Prompter
from alpro.models.losses import box_mask, kept_labels, mlm_loss, pem_loss
from alpro.stages.execution.interface import StageConfig
from alpro.stages.training.examples import Batch
from alpro.stages.training.objective import MatchingObjective, Metrics, concatenate, world_size

VerbRegion = Literal["clip", "tube"]


class LossWeights(StageConfig):
    """Weights of the losses (equation 6: 1, and no PVM). A loss of weight 0 is not computed; all 0: no training."""

    vtc: float = Field(1.0, ge=0, description="video-text contrast")
    vtm: float = Field(1.0, ge=0, description="video-text matching")
    mlm: float = Field(1.0, ge=0, description="masked language modelling")
    pem: float = Field(1.0, ge=0, description="prompting entity modelling")
    pvm: float = Field(
        0.0,
        ge=0,
        description="prompting verb modelling: PEM with the verbs of `build_vocabulary.verbs`, on videos; not in the "
        "paper",
    )


class PretrainObjective(MatchingObjective):
    """Weighted sum of VTC, VTM, MLM, PEM and PVM. A loss of weight 0 is not computed; PEM and PVM need the prompter.

    Without VTC there is no similarity, and negatives are sampled uniformly. verb_region: where PVM labels and predicts
    verbs, the whole clip or a tube: the crop of PEM, which stays in place through all frames.
    """

    video_prompts: Tensor
    image_prompts: Tensor
    verb_prompts: Tensor

    def __init__(
        self,
        model: Alpro,
        mean: Sequence[float],
        std: Sequence[float],
        prompter: Prompter | None,
        prompts: dict[str, Tensor],
        weights: LossWeights,
        threshold: float,
        negative_pool_size: int = 0,
        verb_threshold: float = 0.2,
        verb_region: VerbRegion = "clip",
    ):
        super().__init__(model, mean, std, negative_pool_size)
        self.prompter = prompter.requires_grad_(False).eval() if prompter else None
        for kind, embeddings in prompts.items():
            self.register_buffer(f"{kind}_prompts", embeddings, persistent=False)
        self.threshold, self.verb_threshold, self.verb_region = threshold, verb_threshold, verb_region
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
        video = self.model.encode_video(frames)
        text, masked = self.encode_texts(batch)
        terms: dict[str, tuple[Tensor, Metrics]] = {}
        v2t = t2v = torch.zeros(len(video), len(video) * world_size(), device=video.device)
        if "vtc" in self.losses:
            loss, v2t, t2v, metrics = self.contrast(batch, video, text)
            terms["vtc"] = loss, metrics
        fused = self.fuse(batch, video, text, masked, v2t, t2v)
        if "vtm" in fused:
            terms["vtm"] = self.matching(*fused["vtm"])
        if "mlm" in fused:
            terms["mlm"] = self.masked_words(*fused["mlm"])
        if "pem" in fused:
            terms["pem"] = self.entities(batch, *fused["pem"])
        if "pvm" in fused:
            terms["pvm"] = self.verbs(batch, *fused["pvm"])
        total = torch.stack([self.weights[name] * loss for name, (loss, _) in terms.items()]).sum()
        return total, {name: value for _, metrics in terms.values() for name, value in metrics.items()}

    def labeled(self, batch: Batch, frames: Tensor) -> Batch:
        """The batch with one crop per example and the prompter's pseudo-labels of it, for PEM, and with its labels for
        PVM, unless it has them already. Of several candidates, the most certain one is the crop."""
        if "pem" in self.losses and batch.pseudo_labels is None:
            assert batch.boxes is not None
            prompts = self.image_prompts if batch.kind == "image" else self.video_prompts
            boxes, labels = self.ask(frames, batch.boxes, prompts)
            batch = replace(batch, boxes=boxes, pseudo_labels=labels)
        if "pvm" in self.losses and batch.verb_labels is None:
            batch = self.with_verbs(batch, frames)
        return batch

    def ask(self, frames: Tensor, boxes: Tensor, prompts: Tensor) -> tuple[Tensor, Tensor]:
        """One box (B, 4) of each example and the prompter's pseudo-labels (B, M) of it. boxes (B, 4), or candidates
        (B, N, 4)."""
        assert self.prompter is not None
        candidates = boxes if boxes.ndim == 3 else boxes[:, None]
        # One after another: all at once would take N times the memory.
        labels = [self.prompter.pseudo_labels(frames, each, prompts, self.black) for each in candidates.unbind(1)]
        return most_certain(candidates, torch.stack(labels, dim=1))

    def with_verbs(self, batch: Batch, frames: Tensor) -> Batch:
        """The batch with verb labels of its clips or, in `tube`, of its crops.

        Those of images, which have no motion, are 0: their loss is 0, but every parameter has a gradient, as DDP needs.
        """
        assert batch.boxes is not None
        boxes = batch.boxes
        if batch.kind == "image":
            boxes = boxes if boxes.ndim == 2 else boxes[:, 0]
            labels = frames.new_zeros(len(frames), len(self.verb_prompts))
        elif self.verb_region == "tube":
            boxes, labels = self.ask(frames, boxes, self.verb_prompts)
        else:
            whole = batch.video.new_zeros(len(frames), 4)
            whole[:, 2:] = self.model.config.video.grid
            _, labels = self.ask(frames, whole, self.verb_prompts)
        return replace(batch, boxes=boxes, verb_labels=labels)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """VTM: pairs; MLM: masked words; PEM and PVM: kept samples of a batch with pseudo-labels."""
        counts = super().counts(batch) if "vtm" in self.losses else {}
        if "mlm" in self.losses:
            assert batch.labels is not None
            counts["mlm"] = (batch.labels != -100).sum()
        for name, labels, threshold in (
            ("pem", batch.pseudo_labels, self.threshold),
            ("pvm", batch.verb_labels, self.verb_threshold),
        ):
            if name in self.losses:
                assert labels is not None
                counts[name] = kept_labels(labels, threshold).sum()
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
        valid (2B,), see `matching`; mlm: masked words (B, P, D) and their labels (B, P); pem and pvm: patches (B, P, D)
        and whether they are inside the crop (B, P).
        """
        on, length = self.losses, batch.text.shape[1]
        cls = batch.mask.new_zeros(len(batch.text), 1)
        pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        positions: list[Tensor] = []  # for each group of pairs the tokens that the losses read, [CLS] first
        regions = self.regions(batch)
        if "vtm" in on or regions:
            pairs.append((text, batch.mask, video))
            positions.append(torch.cat([cls, *(length + 1 + patches for patches, _ in regions.values())], dim=1))
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
        if regions:
            _, *read = tokens[0].split([1, *(inside.shape[1] for _, inside in regions.values())], dim=1)
            for (name, (_, inside)), patches in zip(regions.items(), read, strict=True):
                fused[name] = patches, inside
        return fused

    def regions(self, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """For PEM and PVM, if they are on: the patches that they read and whether these are inside, both (B, P)."""
        grid, regions = self.model.config.video.grid, dict[str, tuple[Tensor, Tensor]]()
        for name in ("pem", "pvm"):
            if name in self.losses and (name == "pem" or self.verb_region == "tube"):
                assert batch.boxes is not None
                regions[name] = box_patches(batch.boxes, grid)
            elif name in self.losses:
                every = torch.arange(grid**2, device=batch.video.device).expand(len(batch.video), -1)
                regions[name] = every, torch.ones_like(every, dtype=torch.bool)
        return regions

    def masked_words(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Metrics]:
        """MLM, averaged over the masked words of all ranks. tokens (B, P, D), labels (B, P), -100 = not masked."""
        scores = self.model.mlm_scores(tokens)
        count = self.total("mlm", (labels != -100).sum())
        loss = mlm_loss(scores.flatten(0, 1), labels.flatten()) * world_size() / count
        return loss, {"loss_mlm": loss.detach()}

    def entities(self, batch: Batch, patches: Tensor, inside: Tensor) -> tuple[Tensor, Metrics]:
        """PEM, averaged over the kept samples of all ranks (`total`).

        patches (B, P, D): fused patch tokens of the positive pairs, averaged where `inside` (B, P) the crop.
        """
        assert batch.pseudo_labels is not None
        summed, kept = pem_loss(self.model.pem_logits(patches, inside), batch.pseudo_labels, self.threshold)
        loss = summed * world_size() / self.total("pem", kept.sum())
        return loss, {"loss_pem": loss.detach(), "pseudo_labels_kept": kept.float().mean()}

    def verbs(self, batch: Batch, patches: Tensor, inside: Tensor) -> tuple[Tensor, Metrics]:
        """PVM, averaged over the kept videos of all ranks (`total`); 0 for images.

        patches (B, P, D): fused patch tokens of the positive pairs, averaged where `inside` (B, P) the clip or crop.
        """
        assert batch.verb_labels is not None
        summed, kept = pem_loss(self.model.pvm_logits(patches, inside), batch.verb_labels, self.verb_threshold)
        loss = summed * world_size() / self.total("pvm", kept.sum())
        share = kept.float().mean() * (batch.kind == "video")
        return loss, {"loss_pvm": loss.detach(), "verb_labels_kept": share}


def most_certain(boxes: Tensor, pseudo_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of N candidates for each crop, the one whose most likely entity has the highest probability.

    boxes (B, N, 4), pseudo_labels (B, N, M) -> (B, 4), (B, M).
    """
    best = pseudo_labels.amax(dim=2).argmax(dim=1)
    rows = torch.arange(len(best), device=best.device)
    return boxes[rows, best], pseudo_labels[rows, best]


def masked_positions(labels: Tensor, limit: int) -> tuple[Tensor, Tensor]:
    """Positions (B, P) where labels (B, L) are not -100, and the labels there, padded with -100.

    limit: P, an upper bound of the masked words per text, known on the host; 0: P = L. No device synchronization.
    """
    chosen = (labels != -100).int().argsort(dim=1, descending=True, stable=True)[:, : limit or labels.shape[1]]
    return chosen, labels.gather(1, chosen)


def box_patches(boxes: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """The patches inside boxes (B, 4) of at most half the grid: indices and whether they are inside, both (B, P).

    P is half the number of patches, so that no device synchronization is needed.
    """
    inside = box_mask(boxes, grid)
    chosen = inside.int().argsort(dim=1, descending=True, stable=True)[:, : max(1, grid**2 // 2)]
    return chosen, inside.gather(1, chosen)
