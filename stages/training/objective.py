"""Training objectives, which compute a loss and metrics from a batch (paper, section 3.2). The one of
pre-training is in pretrain_objective.py.

Losses and metrics of a step are means over its micro-batches and ranks. If a loss is a mean over
items such as masked tokens, a micro-batch divides its sum by the mean number of items in all of them
(`Counts`), so that each item has the same weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from alpro.models.alpro import Alpro, DualEncoder, crop
from alpro.models.folder import ModelBundle
from alpro.models.frames import NormalizedModel
from alpro.models.losses import sample_hard_negatives, vtc_loss, vtm_loss
from alpro.models.ranks import all_reduce_sum, rank, world_size
from alpro.models.text import Pairs
from alpro.stages.training.batch import Batch
from alpro.stages.training.dataset import ExampleSpec, Granularity
from alpro.stages.training.distributed import gather

Metrics = dict[str, Tensor]
Term = tuple[Tensor, Metrics]  # a loss and its metrics
# Mean number of items in a micro-batch of a step on all ranks, by loss.
Counts = dict[str, Tensor]

# Submodules that each loss trains. Every loss also trains the video and text encoders.
TRAINED_BY = {
    "vtc": {"video_proj", "text_proj", "temperature"},
    "vtm": {"multimodal_encoder", "vtm_head"},
    "mlm": {"multimodal_encoder", "mlm_head"},
    "pem": {"multimodal_encoder", "pem_head"},
    "qa": {"multimodal_encoder", "qa_head"},
}


@dataclass(frozen=True)
class StepFeatures:
    """Embeddings of all P micro-batches of a step on this rank, without gradient, for VTC over the
    whole batch.

    Attributes:
        video, text: (P, b, E).
        video_ids: (P, b), the index of each pair's video.
        micro_batch: Index of the micro-batch that is computed.
    """

    video: Tensor
    text: Tensor
    video_ids: Tensor
    micro_batch: int = 0

    def with_gradient(self, features: Tensor, current: Tensor) -> Tensor:
        """Replace the features of the computed micro-batch by those that have a gradient.

        Args:
            features: (P, b, E).
            current: (b, E), with a gradient.

        Returns:
            The features (P * b, E).
        """
        # The loss is averaged over P micro-batches, but only one of them gives these features a
        # gradient, so it is scaled by P: `lerp(x, x, P)` keeps the value and has the derivative P.
        current = torch.lerp(current.detach(), current, float(len(features)))
        before = features[: self.micro_batch]
        after = features[self.micro_batch + 1 :]
        return torch.cat([*before, current, *after])

    def select_micro_batch(self, similarity: Tensor) -> Tensor:
        """Select the similarities of the computed micro-batch: (P * b, ranks * P * b) -> (b, ranks *
        b)."""
        micro_batches, size = self.video_ids.shape
        start = self.micro_batch * size
        rows = similarity[start : start + size]
        by_rank = rows.unflatten(1, (-1, micro_batches, size))
        return by_rank[:, :, self.micro_batch].flatten(1)


@dataclass(frozen=True)
class Negatives:
    """Hard negatives of B pairs.

    Attributes:
        videos: (B,), the index of a video for each text; an index into the videos of all ranks if
            they share texts.
        texts: (B,), the index of a text for each video.
        valid: (2B,), False for rows without a negative.
    """

    videos: Tensor
    texts: Tensor
    valid: Tensor


class Objective(NormalizedModel):
    """A model to train. forward(batch, counts, features) -> (loss, metrics) of a micro-batch.

    `step_counts` returns `counts`. `step_features` returns `features` if contrast is over the whole
    batch of a step; they are None if it is over the micro-batch. The forward pass has no
    host-device sync. The metrics have a detached `loss_<name>` for each of `losses`, the keys of
    `TRAINED_BY`.

    Args:
        model: The model, with the mean and standard deviation of its pixels.
        contents: Further contents of a training example, as fields of `ExampleSpec`.
    """

    granularity: Granularity
    losses: tuple[str, ...]

    def __init__(
        self,
        model: DualEncoder,
        mean: Sequence[float],
        std: Sequence[float],
        **contents: Any,
    ):
        super().__init__(model, mean, std)
        video = model.config.video
        self.examples = ExampleSpec(
            self.granularity, video.frames, video.image_size, video.grid, **contents
        )

    @classmethod
    def of(cls, bundle: ModelBundle, **options: Any) -> Self:
        """Return the objective of a model with its own normalization."""
        pixels = bundle.preprocessing
        return cls(bundle.model, pixels.mean, pixels.std, **options)

    @property
    def unused_parameters(self) -> set[str]:
        """Names of the submodules and parameters that no loss trains."""
        submodules = set().union(*TRAINED_BY.values())
        unused = submodules.difference(*(TRAINED_BY[name] for name in self.losses))
        # A model may lack some of them: a prompter has no multimodal encoder.
        return {name for name in unused if getattr(self.model, name, None) is not None}

    def encode_video(self, batch: Batch, cls_only: bool = False) -> Tensor:
        """Encode the frames of a batch as tokens."""
        return self.model.encode_video(self.pixels(batch.frames), cls_only)

    def with_pseudo_labels(self, batch: Batch) -> Batch:
        """Return the batch with pseudo-labels, if the objective uses any."""
        return batch

    def shares_texts(self, pairs: int) -> bool:
        """Return whether ranks with this many pairs exchange texts, which must then be padded to one
        length."""
        return False

    def counts(self, batch: Batch) -> Counts:
        """Count the items in this micro-batch that a loss is averaged over, for each loss that has
        items."""
        return {}

    def step_counts(self, micro_batches: Sequence[Batch]) -> Counts:
        """Average the counts over the micro-batches of a step on all ranks, with one all-reduce."""
        counts = [self.counts(batch) for batch in micro_batches]
        names = list(counts[0])
        if not names:
            return {}

        sums = [
            torch.stack([values[name] for values in counts]).sum() for name in names
        ]
        # Without items the sum of losses is 0. Dividing it by at least 1 gives 0 instead of NaN.
        totals = all_reduce_sum(torch.stack(sums).float()).clamp(min=1)
        means = totals / (len(micro_batches) * world_size())
        return dict(zip(names, means.unbind(), strict=True))

    @torch.no_grad()
    def step_features(self, micro_batches: Sequence[Batch]) -> StepFeatures:
        """Compute the features of the micro-batches of a step on this rank without gradient.

        Each micro-batch can then be contrasted with the whole batch in the memory of one (as in
        OpenCLIP). When it is computed again, dropout and stochastic depth are sampled again.
        """
        videos = []
        texts = []
        for batch in micro_batches:
            text_tokens = self.model.encode_text(batch.text, batch.mask)
            video_tokens = self.encode_video(batch, cls_only=True)
            video, text = self.project(video_tokens, text_tokens)
            videos.append(video)
            texts.append(text)

        video_ids = torch.stack([batch.video for batch in micro_batches])
        return StepFeatures(torch.stack(videos), torch.stack(texts), video_ids)

    def project(self, video: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Project video tokens (B, V, D) and text tokens (B, L, D) to embeddings (B, E) in
        float32."""
        # Autocast would compute the projections in bfloat16.
        with torch.autocast("cuda" if video.is_cuda else "cpu", enabled=False):
            return self.model.project_video(video.float()), self.model.project_text(
                text.float()
            )

    def contrast(
        self,
        batch: Batch,
        video: Tensor,
        text: Tensor,
        features: StepFeatures | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Metrics]:
        """Compute VTC (equations 1 to 3) over the pairs of all ranks in this micro-batch, or with
        `features` in all micro-batches.

        Args:
            video: Tokens (B, V, D).
            text: Tokens (B, L, D).

        Returns:
            The loss; similarity / temperature (B, ranks * B) of this rank's videos to all texts of
            the micro-batch, and of its texts to all videos; and metrics.
        """
        video, text = self.project(video, text)
        video_ids = batch.video
        if features:
            video = features.with_gradient(features.video, video)
            text = features.with_gradient(features.text, text)
            video_ids = features.video_ids.flatten()

        # Gathered with gradients: a pair is also a negative in the losses of other ranks. Without
        # their gradients, the step would differ from the step of one rank with the whole batch.
        all_video = gather(video)
        all_text = gather(text)
        all_video_ids = gather(video_ids)

        temperature = self.model.clamped_temperature()
        # Computed in float32: divided by the temperature, bfloat16 keeps two digits of a similarity.
        with torch.autocast("cuda" if video.is_cuda else "cpu", enabled=False):
            v2t = video @ all_text.T / temperature
            t2v = text @ all_video.T / temperature

        # This rank's pairs start at column rank * B.
        target = torch.arange(len(video), device=v2t.device) + rank() * len(video)
        same_video = video_ids[:, None] == all_video_ids[None]
        loss = vtc_loss(v2t, t2v, target, same_video)
        recalled = all_video_ids[t2v.argmax(1)] == video_ids
        metrics = {
            "loss_vtc": loss.detach(),
            "temperature": temperature.detach(),
            "in_batch_recall": recalled.float().mean(),
        }

        # VTM needs the tokens of its negatives, which exist only for this micro-batch.
        if features:
            v2t = features.select_micro_batch(v2t)
            t2v = features.select_micro_batch(t2v)
        return loss, v2t, t2v, metrics


class PrompterObjective(Objective):
    """Only VTC: training of the prompter (section 3.2.2). Some examples may show a crop."""

    granularity: Granularity = "sample"
    losses = ("vtc",)

    def encode_video(self, batch: Batch, cls_only: bool = False) -> Tensor:
        pixels = self.pixels(batch.frames)
        if batch.boxes is not None:
            # Pixels are normalized, so black is not 0.
            patch_size = pixels.shape[-1] // self.examples.grid
            pixels = crop(pixels, batch.boxes, patch_size, self.black)
        return self.model.encode_video(pixels, cls_only)

    def forward(
        self,
        batch: Batch,
        counts: Counts,
        features: StepFeatures | None = None,
    ) -> Term:
        video = self.encode_video(batch, cls_only=True)
        text = self.model.encode_text(batch.text, batch.mask)
        loss, _, _, metrics = self.contrast(batch, video, text, features)
        return loss, metrics


class MatchingObjective(Objective):
    """VTC + VTM: fine-tuning for retrieval, and the base class of pre-training (section 3.2.1).

    Args:
        negative_pool_size: Hard negatives of a pair are sampled from this many consecutive pairs of
            the global batch (0: from all), so that a step does not depend on the number of ranks.
    """

    model: Alpro
    granularity: Granularity = "caption"
    losses: tuple[str, ...] = ("vtc", "vtm")

    def __init__(
        self,
        model: Alpro,
        mean: Sequence[float],
        std: Sequence[float],
        negative_pool_size: int = 0,
        **contents: Any,
    ):
        super().__init__(model, mean, std, **contents)
        self.negative_pool_size = negative_pool_size

    def sample_negatives(self, batch: Batch, v2t: Tensor, t2v: Tensor) -> Negatives:
        """Sample a hard negative video for each text and a hard negative text for each video, from
        the similarity / temperature that `contrast` returns."""
        size = len(batch.video)
        excluded = self.find_excluded(batch)
        if not self.shares_texts(size):
            columns = slice(rank() * size, (rank() + 1) * size)
            v2t = v2t[:, columns]
            t2v = t2v[:, columns]

        videos, valid = sample_hard_negatives(t2v, excluded, batch.uniforms[:, 0])
        # Both directions have the same excluded pairs, and so the same `valid`.
        texts, _ = sample_hard_negatives(v2t, excluded, batch.uniforms[:, 1])
        return Negatives(videos, texts, valid.repeat(2))

    def negative_pairs(
        self,
        batch: Batch,
        video: Tensor,
        text: Tensor,
        negatives: Negatives,
    ) -> list[Pairs]:
        """Return the pairs of each text with its negative video, and the pairs of each video with its
        negative text."""
        videos = video
        texts = text
        masks = batch.mask
        if self.shares_texts(len(batch.video)):
            # Gathered with gradients: an example is also trained as a negative of other ranks.
            videos = gather(videos)
            texts = gather(texts)
            masks = gather(masks)

        # index_select, because on a CPU the backward pass of videos[...] adds in any order.
        video_negatives = videos.index_select(0, negatives.videos)
        text_negatives = texts.index_select(0, negatives.texts)
        return [
            Pairs(text, batch.mask, video_negatives),
            Pairs(text_negatives, masks[negatives.texts], video),
        ]

    def shares_texts(self, pairs: int) -> bool:
        """Return whether a pool of negatives spans ranks."""
        return (self.negative_pool_size or pairs * world_size()) > pairs

    def find_excluded(self, batch: Batch) -> Tensor:
        """Find the pairs of the global batch that cannot be negatives of this rank's pairs: the pairs
        of other pools and of the same video.

        Returns:
            Booleans (B, G) for all pairs. If no pool spans ranks, (B, B) for this rank's pairs.
        """
        size = len(batch.video)
        pool_size = self.negative_pool_size or size * world_size()

        # Indices of pairs in the global batch, where this rank's pairs are consecutive.
        start = rank() * size
        rows = torch.arange(start, start + size, device=batch.video.device)
        columns = rows
        column_videos = batch.video
        if self.shares_texts(size):
            column_videos = gather(batch.video)
            columns = torch.arange(len(column_videos), device=batch.video.device)

        other_pool = rows[:, None] // pool_size != columns[None] // pool_size
        same_video = batch.video[:, None] == column_videos[None]
        return other_pool | same_video

    def counts(self, batch: Batch) -> Counts:
        """Count the pairs of VTM: B positives, and 2B negatives without the rows that have none."""
        has_negative = ~self.find_excluded(batch).all(dim=1)
        return {"vtm": len(batch.video) + 2 * has_negative.sum()}

    def forward(
        self,
        batch: Batch,
        counts: Counts,
        features: StepFeatures | None = None,
    ) -> Term:
        video = self.encode_video(batch)
        text = self.model.encode_text(batch.text, batch.mask)
        vtc, v2t, t2v, metrics = self.contrast(batch, video, text, features)

        # Positives and negatives go through the multimodal encoder in one pass.
        positives = Pairs(text, batch.mask, video)
        negatives = self.sample_negatives(batch, v2t, t2v)
        pairs = concatenate(
            [positives, *self.negative_pairs(batch, video, text, negatives)]
        )
        cls = self.model.fuse_cls(pairs.text, pairs.mask, pairs.video)
        vtm, vtm_metrics = self.vtm_term(cls, negatives.valid, counts)
        return vtc + vtm, metrics | vtm_metrics

    def vtm_term(self, cls: Tensor, valid: Tensor, counts: Counts) -> Term:
        """Compute VTM, averaged over the positives and the valid negatives.

        Args:
            cls: Fused [CLS] (3B, D) of B positives, B texts with a negative video, and B videos with
                a negative text.
            valid: Booleans (2B,) for the negatives.
        """
        positives = len(cls) - len(valid)
        logits = self.model.vtm_head(cls).float()
        labels = (torch.arange(len(cls), device=cls.device) < positives).long()
        weights = torch.cat([valid.new_ones(positives), valid]).float()

        loss = vtm_loss(logits, labels, weights) / counts["vtm"]
        accuracy = ((logits.argmax(1) == labels) * weights).sum() / counts["vtm"]
        return loss, {"loss_vtm": loss.detach(), "vtm_accuracy": accuracy.detach()}


def concatenate(groups: list[Pairs], outputs: int | None = None) -> Pairs:
    """Join groups of pairs to one, of whose fused tokens the leading `outputs` are read."""
    text = torch.cat([pairs.text for pairs in groups])
    mask = torch.cat([pairs.mask for pairs in groups])
    video = torch.cat([pairs.video for pairs in groups])
    return Pairs(text, mask, video, outputs)


class QaObjective(Objective):
    """Question answering as classification of the fused [CLS] (section 4.1). Unknown answers are
    ignored."""

    model: Alpro
    granularity: Granularity = "question"
    losses = ("qa",)

    def counts(self, batch: Batch) -> Counts:
        """Count the known answers."""
        assert batch.answers is not None
        return {"qa": (batch.answers != -100).sum()}

    def forward(
        self,
        batch: Batch,
        counts: Counts,
        features: StepFeatures | None = None,
    ) -> Term:
        assert batch.answers is not None
        text = self.model.encode_text(batch.text, batch.mask)
        video = self.encode_video(batch)
        logits = self.model.answer(text, batch.mask, video).float()

        losses = F.cross_entropy(
            logits, batch.answers, ignore_index=-100, reduction="sum"
        )
        loss = losses / counts["qa"]
        # No class equals -100, an unknown answer.
        accuracy = (logits.argmax(1) == batch.answers).sum() / counts["qa"]
        return loss, {"loss_qa": loss.detach(), "qa_accuracy": accuracy.detach()}
