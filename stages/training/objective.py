"""Training objectives: a batch in, loss and metrics out (paper, section 3.2). That of pre-training has its own file.

Losses and metrics of a step are the means of those of its micro-batches and ranks. A loss that is a mean over items,
such as masked words, divides the sum of a micro-batch by the mean number of items (`Counts`): each item counts alike.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from alpro.models.alpro import Alpro, DualEncoder, crop
from alpro.models.frames import NormalizedModel
from alpro.models.losses import hard_negatives, vtc_loss, vtm_loss
from alpro.models.ranks import all_reduce_sum, gather, rank, world_size
from alpro.stages.training.batch import Batch
from alpro.stages.training.dataset import Examples, Unit

Metrics = dict[str, Tensor]
Counts = Mapping[
    str, Tensor
]  # by loss, the mean number of items in a micro-batch of a step, on all ranks

# The parts of the model that each loss trains, besides the video and text encoders, which every loss trains.
TRAINED_BY = {
    "vtc": {"video_proj", "text_proj", "temperature"},
    "vtm": {"multimodal_encoder", "vtm_head"},
    "mlm": {"multimodal_encoder", "mlm_head"},
    "pem": {"multimodal_encoder", "pem_head"},
    "qa": {"multimodal_encoder", "qa_head"},
}


@dataclass(frozen=True)
class StepFeatures:
    """Embeddings of all P micro-batches of a step on this rank, without gradient, for VTC over the whole batch.

    video, text (P, b, E); numbers (P, b): index of each pair's video; part: the micro-batch that is computed.
    """

    video: Tensor
    text: Tensor
    numbers: Tensor
    part: int = 0

    def with_own(self, features: Tensor, own: Tensor) -> Tensor:
        """Features (P, b, E) with those of this micro-batch (b, E) in their place -> (P * b, E).

        Only they have a gradient, in one of P losses that are averaged: it is multiplied by P.
        """
        own = torch.lerp(own.detach(), own, float(len(features)))
        return torch.cat([*features[: self.part], own, *features[self.part + 1 :]])

    def of_part(self, similarity: Tensor) -> Tensor:
        """Similarities (P * b, ranks * P * b) -> those of the pairs of this micro-batch (b, ranks * b)."""
        parts, size = self.numbers.shape
        own = similarity[self.part * size : (self.part + 1) * size]
        return own.unflatten(1, (-1, parts, size))[:, :, self.part].flatten(1)


class Objective(NormalizedModel):
    """A model to train; forward(batch, counts, features) -> (loss, metrics) of a micro-batch.

    counts: of `step_counts`. features: of `step_features`, if contrast is over the whole batch of a step; None: over
    the micro-batch. The forward pass reads no value back from the device: a GPU would wait. losses: names of the
    losses, keys of `TRAINED_BY`. The metrics have `loss_<name>` of each, detached.
    """

    unit: Unit
    losses: tuple[str, ...]

    @property
    def examples(self) -> Examples:
        """What a training example is made of."""
        video = self.model.config.video
        return Examples(self.unit, video.frames, video.image_size, video.grid)

    @property
    def unused_parameters(self) -> set[str]:
        """Names of submodules and parameters that no loss trains."""
        parts = set().union(*TRAINED_BY.values())
        unused = parts.difference(*(TRAINED_BY[name] for name in self.losses))
        return {name for name in unused if getattr(self.model, name, None) is not None}

    def encode_video(self, batch: Batch, cls_only: bool = False) -> Tensor:
        """Tokens of the frames of a batch, of its kept patches."""
        return self.model.encode_video(self.pixels(batch.frames), cls_only, batch.kept)

    def labeled(self, batch: Batch) -> Batch:
        """The batch with pseudo-labels, if the objective uses any."""
        return batch

    def cast_frozen_(self, dtype: torch.dtype) -> None:
        """Casts the matrices of a frozen model to the type of their products, once: autocast keeps no copies of
        weights that are not trained, and would cast them in every pass."""

    def shares_texts(self, pairs: int) -> bool:
        """Whether ranks with this many pairs each use texts of each other, which then need one length."""
        return False

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """By loss, the number of items of this micro-batch that it is averaged over, of losses that have items."""
        return {}

    def step_counts(self, parts: Sequence[Batch]) -> Counts:
        """The counts of the micro-batches of a step on this rank; one collective of all ranks, if there are any."""
        rows = [self.counts(part) for part in parts]
        if not rows[0]:
            return {}
        own = torch.stack(
            [torch.stack([row[name] for row in rows]).sum() for name in rows[0]]
        ).float()
        means = all_reduce_sum(own).clamp(min=1) / (len(parts) * world_size())
        return dict(zip(rows[0], means.unbind(), strict=True))

    @torch.no_grad()
    def step_features(self, parts: Sequence[Batch]) -> StepFeatures:
        """The features of the micro-batches of a step on this rank, from a forward pass without gradient.

        A micro-batch then contrasts with the whole batch in its own memory (as in OpenCLIP). Where it is computed
        again, dropout and stochastic depth are drawn anew.
        """
        rows = []
        for part in parts:
            text = self.model.encode_text(part.text, part.mask)
            rows.append((*self.project(self.encode_video(part, cls_only=True), text), part.video))
        video, texts, numbers = (torch.stack(column) for column in zip(*rows, strict=True))
        return StepFeatures(video, texts, numbers)

    def project(self, video: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Video tokens (B, V, D) and text tokens (B, L, D) -> embeddings (B, E) of both, in float32."""
        with torch.autocast("cuda" if video.is_cuda else "cpu", enabled=False):
            return self.model.project_video(video.float()), self.model.project_text(text.float())

    def contrast(
        self, batch: Batch, video: Tensor, text: Tensor, features: StepFeatures | None = None
    ) -> tuple[Tensor, Tensor, Tensor, Metrics]:
        """VTC over G pairs from video tokens (B, V, D) and text tokens (B, L, D): the pairs of all ranks in this
        micro-batch, or with `features` in all micro-batches.

        Returns the loss, similarity / temperature (B, ranks * B) of this rank's videos to all texts of the micro-batch
        and of its texts to all videos, and metrics.
        """
        video, text = self.project(video, text)
        numbers = batch.video
        if features:
            video, text = (
                features.with_own(features.video, video),
                features.with_own(features.text, text),
            )
            numbers = features.numbers.flatten()
        all_video, all_text, all_numbers = gather(video), gather(text), gather(numbers)
        temperature = self.model.clamped_temperature()
        # In float32: after division by the temperature, bfloat16 keeps two digits of a similarity.
        with torch.autocast("cuda" if video.is_cuda else "cpu", enabled=False):
            v2t, t2v = video @ all_text.T / temperature, text @ all_video.T / temperature
        # Labels by global rank: this rank's pairs start at column rank * B.
        target = torch.arange(len(video), device=v2t.device) + rank() * len(video)
        loss = vtc_loss(v2t, t2v, target, numbers[:, None] == all_numbers[None])
        metrics = {
            "loss_vtc": loss.detach(),
            "temperature": temperature.detach(),
            "in_batch_recall": (t2v.argmax(1) == target).float().mean(),
        }
        if features:
            v2t, t2v = features.of_part(v2t), features.of_part(t2v)
        return loss, v2t, t2v, metrics


class PrompterObjective(Objective):
    """VTC only: training of the prompter (section 3.2.2). crop_share, crop_area: the share of the examples that show a
    crop, and the share of the frame that a crop has."""

    unit: Unit = "sample"
    losses = ("vtc",)

    def __init__(
        self,
        model: DualEncoder,
        mean: Sequence[float],
        std: Sequence[float],
        crop_share: float = 0.0,
        crop_area: tuple[float, float] = (0.3, 0.75),
    ):
        super().__init__(model, mean, std)
        self.crop_share, self.crop_area = crop_share, crop_area

    @property
    def examples(self) -> Examples:
        return replace(super().examples, crop_share=self.crop_share, crop_area=self.crop_area)

    def encode_video(self, batch: Batch, cls_only: bool = False) -> Tensor:
        pixels = self.pixels(batch.frames)
        if batch.boxes is not None:
            pixels = crop(pixels, batch.boxes, pixels.shape[-1] // self.examples.grid, self.black)
        return self.model.encode_video(pixels, cls_only, batch.kept)

    def forward(
        self, batch: Batch, counts: Counts, features: StepFeatures | None = None
    ) -> tuple[Tensor, Metrics]:
        video = self.encode_video(batch, cls_only=True)
        loss, _, _, metrics = self.contrast(
            batch, video, self.model.encode_text(batch.text, batch.mask), features
        )
        return loss, metrics


class MatchingObjective(Objective):
    """VTC + VTM: fine-tuning for retrieval, and the base class of pre-training (section 3.2.1).

    negative_pool_size: hard negatives of a pair are sampled from this many consecutive pairs of the global batch (0:
    from all), so that a step does not depend on the number of ranks.
    """

    model: Alpro
    unit: Unit = "caption"
    losses: tuple[str, ...] = ("vtc", "vtm")

    def __init__(
        self, model: Alpro, mean: Sequence[float], std: Sequence[float], negative_pool_size: int = 0
    ):
        super().__init__(model, mean, std)
        self.negative_pool_size = negative_pool_size

    def negatives(
        self, batch: Batch, video: Tensor, text: Tensor, v2t: Tensor, t2v: Tensor
    ) -> tuple[list[tuple[Tensor, Tensor, Tensor]], Tensor]:
        """Pairs (text, mask, video) of each text with a hard negative video and each video with a hard negative text.

        Also returns valid (2B,), False for rows without a negative. One vectorized sample per direction.
        """
        size, excluded = len(batch.video), self.excluded(batch)
        videos, texts, masks = video, text, batch.mask
        if self.shares_texts(size):
            videos, texts, masks = (gather(x) for x in (video, text, batch.mask))
        else:
            own = slice(rank() * size, (rank() + 1) * size)
            v2t, t2v = v2t[:, own], t2v[:, own]
        uniforms = (
            batch.uniforms
            if batch.uniforms is not None
            else torch.rand(size, 2, device=video.device)
        )
        other_videos, valid = hard_negatives(t2v, excluded, uniforms[:, 0])
        other_texts, _ = hard_negatives(
            v2t, excluded, uniforms[:, 1]
        )  # valid is the same in both directions
        pairs = [
            (text, batch.mask, videos[other_videos]),
            (texts[other_texts], masks[other_texts], video),
        ]
        return pairs, valid.repeat(2)

    def shares_texts(self, pairs: int) -> bool:
        """Whether a pool of negatives spans ranks."""
        return (self.negative_pool_size or pairs * world_size()) > pairs

    def excluded(self, batch: Batch) -> Tensor:
        """Pairs (B, G) of the global batch that are no negatives of this rank's pairs: those of other pools and of the
        same video. If no pool spans ranks, (B, B): this rank's pairs only."""
        size = len(batch.video)
        pool = self.negative_pool_size or size * world_size()
        first = rank() * size  # index of this rank's first pair in the global batch
        rows = columns = torch.arange(first, first + size, device=batch.video.device)
        numbers = batch.video
        if self.shares_texts(size):
            numbers = gather(batch.video)
            columns = torch.arange(len(numbers), device=batch.video.device)
        return (rows[:, None] // pool != columns[None] // pool) | (
            batch.video[:, None] == numbers[None]
        )

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """VTM: B positives, and 2B negatives without the rows that have none."""
        return {"vtm": len(batch.video) + 2 * (~self.excluded(batch).all(dim=1)).sum()}

    def forward(
        self, batch: Batch, counts: Counts, features: StepFeatures | None = None
    ) -> tuple[Tensor, Metrics]:
        video, text = self.encode_video(batch), self.model.encode_text(batch.text, batch.mask)
        vtc, v2t, t2v, metrics = self.contrast(batch, video, text, features)
        others, valid = self.negatives(batch, video, text, v2t, t2v)
        fused = self.model.fuse_cls(*concatenate([(text, batch.mask, video), *others]))
        vtm, more = self.matching(fused, valid, counts)
        return vtc + vtm, metrics | more

    def matching(self, cls: Tensor, valid: Tensor, counts: Counts) -> tuple[Tensor, Metrics]:
        """VTM, averaged over the pairs that count.

        cls (3B, D): fused [CLS] of B positives, B texts with a negative video, B videos with a negative text. valid
        (2B,): which negatives count.
        """
        logits = self.model.vtm_head(cls).float()
        labels = (torch.arange(len(cls), device=cls.device) < len(cls) - len(valid)).long()
        weight = torch.cat([valid.new_ones(len(cls) - len(valid)), valid]).float()
        loss = vtm_loss(logits, labels, weight) / counts["vtm"]
        accuracy = ((logits.argmax(1) == labels) * weight).sum() / counts["vtm"]
        return loss, {"loss_vtm": loss.detach(), "vtm_accuracy": accuracy.detach()}


def concatenate(pairs: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Concatenates groups of pairs (text, mask, video) along the batch."""
    texts, masks, videos = zip(*pairs, strict=True)
    return torch.cat(texts), torch.cat(masks), torch.cat(videos)


class QaObjective(Objective):
    """Question answering as classification of the fused [CLS] (section 4.1). Unknown answers are ignored.

    answers: the classes, in order.
    """

    model: Alpro
    unit: Unit = "question"
    losses = ("qa",)

    def __init__(
        self, model: Alpro, mean: Sequence[float], std: Sequence[float], answers: Sequence[str] = ()
    ):
        super().__init__(model, mean, std)
        self.answers = tuple(answers)

    @property
    def examples(self) -> Examples:
        return replace(super().examples, answers=self.answers)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """The known answers."""
        assert batch.answers is not None
        return {"qa": (batch.answers != -100).sum()}

    def forward(
        self, batch: Batch, counts: Counts, features: StepFeatures | None = None
    ) -> tuple[Tensor, Metrics]:
        assert batch.answers is not None
        text = self.model.encode_text(batch.text, batch.mask)
        logits = self.model.answer(text, batch.mask, self.encode_video(batch)).float()
        loss = (
            F.cross_entropy(logits, batch.answers, ignore_index=-100, reduction="sum")
            / counts["qa"]
        )
        accuracy = (logits.argmax(1) == batch.answers).sum() / counts["qa"]
        return loss, {"loss_qa": loss.detach(), "qa_accuracy": accuracy.detach()}
