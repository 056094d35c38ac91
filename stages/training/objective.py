"""Training objectives: a batch in, loss and metrics out (paper, section 3.2). That of pre-training has its own file."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from alpro.models.alpro import Alpro
from alpro.models.frames import NormalizedModel
from alpro.models.losses import hard_negatives, vtc_loss, vtm_loss
from alpro.stages.training.batch import Batch
from alpro.stages.training.distributed import all_reduce_sum, gather

Metrics = dict[str, Tensor]

# The parts of the model that each loss trains, besides the video and text encoders, which every loss trains.
TRAINED_BY = {
    "vtc": {"video_proj", "text_proj", "temperature"},
    "vtm": {"multimodal_encoder", "vtm_head"},
    "mlm": {"multimodal_encoder", "mlm_head"},
    "pem": {"multimodal_encoder", "pem_head"},
    "qa": {"multimodal_encoder", "qa_head"},
}


@dataclass
class WholeBatch:
    """What a micro-batch of b pairs has to know of the batch of its step if contrast is over all of it
    (`contrast_cache`).

    vtc: VTC of this rank's pairs, detached, with its metrics. video, text (b, E), temperature (): its gradient with
    respect to the features of the micro-batch and the temperature. counts: by loss, the number of items that it is
    averaged over, on all ranks and per micro-batch. parts: the number of micro-batches.
    """

    vtc: Tensor
    metrics: Metrics
    video: Tensor
    text: Tensor
    temperature: Tensor
    counts: dict[str, Tensor]
    parts: int

    def loss(self, video: Tensor, text: Tensor, temperature: Tensor) -> Tensor:
        """VTC of the whole batch as a function of the features (b, E) of one micro-batch: it has the value of the whole
        loss, and the mean over the micro-batches has its gradient."""
        linear = ((video * self.video).sum() + (text * self.text).sum()) * self.parts + temperature * self.temperature
        return self.vtc + (linear - linear.detach())


class Objective(NormalizedModel):
    """A model to train; forward(batch) -> (loss, metrics).

    The forward pass reads no value back from the device: a GPU would wait.
    losses: names of the losses, keys of `TRAINED_BY`. The metrics have `loss_<name>` of each, detached. whole: set
    while a micro-batch is computed whose contrast is over the whole batch. totals: set while a micro-batch is computed
    whose losses are averaged over the whole batch, see `totals_of`.
    """

    losses: tuple[str, ...]
    whole: WholeBatch | None = None
    totals: Mapping[str, Tensor] = MappingProxyType({})

    @property
    def unused_parameters(self) -> set[str]:
        """Names of submodules and parameters that no loss trains."""
        parts = set().union(*TRAINED_BY.values())
        unused = parts.difference(*(TRAINED_BY[name] for name in self.losses))
        return {name for name in unused if getattr(self.model, name, None) is not None}

    def encode_texts(self, batch: Batch) -> tuple[Tensor, ...]:
        """Text tokens (B, L, D); objectives that encode other texts in the same pass return them behind."""
        return (self.model.encode_text(batch.text, batch.mask),)

    def encode_video(self, batch: Batch, frames: Tensor, cls_only: bool = False) -> Tensor:
        """Tokens of the normalized frames (B, T, 3, S, S) of a batch, of its kept patches."""
        return self.model.encode_video(frames, cls_only, batch.kept)

    def labeled(self, batch: Batch, frames: Tensor) -> Batch:
        """The batch with pseudo-labels, if the objective uses any. frames (B, T, 3, S, S), normalized."""
        return batch

    def features(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Embeddings (B, E) of videos and texts that `forward` contrasts, from the same random numbers."""
        video = self.encode_video(batch, self.pixels(batch.frames), cls_only=True)
        return self.project(video, self.encode_texts(batch)[0])

    def project(self, video: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Video tokens (B, V, D) and text tokens (B, L, D) -> embeddings (B, E) of both, in float32."""
        with torch.autocast("cuda" if video.is_cuda else "cpu", enabled=False):
            return self.model.project_video(video.float()), self.model.project_text(text.float())

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """The number of this rank's items that a loss is averaged over (see `total`), by the name of the loss."""
        return {}

    def total(self, name: str, count: Tensor) -> Tensor:
        """The number of items that a loss is averaged over, at least 1: `count` of this rank, summed over all ranks.

        If contrast is over the whole batch, the mean is over the whole batch too: its count per micro-batch.
        """
        known = self.totals if self.whole is None else self.whole.counts
        return known[name] if name in known else all_reduce_sum(count).clamp(min=1)

    def totals_of(self, parts: list[Batch]) -> dict[str, Tensor]:
        """By the name of a loss that is averaged over all micro-batches of a step: its count per micro-batch, over all
        ranks. Other losses are averaged over each micro-batch."""
        return {}

    @contextmanager
    def averaged_over(self, totals: Mapping[str, Tensor]) -> Iterator[None]:
        """Losses are averaged over `totals` (of `totals_of`)."""
        self.totals = totals
        try:
            yield
        finally:
            del self.totals

    def contrast(self, batch: Batch, video: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor, Metrics]:
        """VTC over the global batch of G pairs from video tokens (B, V, D) and text tokens (B, L, D).

        Returns the loss, similarity / temperature (B, G) of this rank's videos to all texts and of its texts to all
        videos, and metrics. With `whole`, the similarities cover the micro-batch only, and the loss the whole batch.
        """
        features = self.project(video, text)
        if self.whole is None:
            return self.contrast_features(batch.video, *features)
        with torch.no_grad():
            _, v2t, t2v, _ = self.contrast_features(batch.video, *features)
        return self.whole.loss(*features, self.model.temperature_parameter), v2t, t2v, dict(self.whole.metrics)

    def contrast_features(
        self, numbers: Tensor, video_feat: Tensor, text_feat: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Metrics]:
        """`contrast` from embeddings (B, E) of videos and texts. numbers (B,): index of each pair's video."""
        all_video, all_text, all_numbers = gather(video_feat), gather(text_feat), gather(numbers)
        temperature = self.model.clamped_temperature()
        # In float32: after division by the temperature, bfloat16 keeps two digits of a similarity.
        with torch.autocast("cuda" if video_feat.is_cuda else "cpu", enabled=False):
            v2t, t2v = video_feat @ all_text.T / temperature, text_feat @ all_video.T / temperature
        # Labels by global rank: this rank's pairs start at column rank * B.
        target = torch.arange(len(video_feat), device=v2t.device) + rank() * len(video_feat)
        same = numbers[:, None] == all_numbers[None]
        loss = vtc_loss(v2t, t2v, target, same)
        metrics = {
            "loss_vtc": loss.detach(),
            "temperature": temperature.detach(),
            "in_batch_recall": (t2v.argmax(1) == target).float().mean(),
        }
        return loss, v2t, t2v, metrics


class PrompterObjective(Objective):
    """VTC only: training of the prompter (section 3.2.2)."""

    losses = ("vtc",)

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        video = self.encode_video(batch, self.pixels(batch.frames), cls_only=True)
        (text,) = self.encode_texts(batch)
        loss, _, _, metrics = self.contrast(batch, video, text)
        return loss, metrics


class MatchingObjective(Objective):
    """VTC + VTM: fine-tuning for retrieval, and the base class of pre-training (section 3.2.1).

    negative_pool_size: hard negatives of a pair are sampled from this many consecutive pairs of the global batch (0:
    from all), so that a step does not depend on the number of ranks.
    """

    model: Alpro
    losses: tuple[str, ...] = ("vtc", "vtm")

    def __init__(self, model: Alpro, mean: Sequence[float], std: Sequence[float], negative_pool_size: int = 0):
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
        if excluded.shape[1] > size:  # pools span ranks
            videos, texts, masks = (gather(x) for x in (video, text, batch.mask))
        else:
            own = slice(rank() * size, (rank() + 1) * size)
            v2t, t2v = v2t[:, own], t2v[:, own]
        uniforms = batch.uniforms if batch.uniforms is not None else torch.rand(size, 2, device=video.device)
        other_videos, valid = hard_negatives(t2v, excluded, uniforms[:, 0])
        other_texts, _ = hard_negatives(v2t, excluded, uniforms[:, 1])  # valid is the same in both directions
        pairs = [(text, batch.mask, videos[other_videos]), (texts[other_texts], masks[other_texts], video)]
        return pairs, valid.repeat(2)

    def excluded(self, batch: Batch) -> Tensor:
        """Pairs (B, G) of the global batch that are no negatives of this rank's pairs: those of other pools and of the
        same video. If no pool spans ranks, (B, B): this rank's pairs only."""
        size = len(batch.video)
        pool = self.negative_pool_size or size * world_size()
        first = rank() * size  # index of this rank's first pair in the global batch
        rows = columns = torch.arange(first, first + size, device=batch.video.device)
        numbers = batch.video
        if pool > size:
            numbers = gather(batch.video)
            columns = torch.arange(len(numbers), device=batch.video.device)
        return (rows[:, None] // pool != columns[None] // pool) | (batch.video[:, None] == numbers[None])

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """VTM: B positives, and 2B negatives without the rows that have none."""
        return {"vtm": len(batch.video) + 2 * (~self.excluded(batch).all(dim=1)).sum()}

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        video = self.encode_video(batch, self.pixels(batch.frames))
        (text,) = self.encode_texts(batch)
        vtc, v2t, t2v, metrics = self.contrast(batch, video, text)
        others, valid = self.negatives(batch, video, text, v2t, t2v)
        fused = self.model.fuse_cls(*concatenate([(text, batch.mask, video), *others]))
        vtm, more = self.matching(fused, valid)
        return vtc + vtm, metrics | more

    def matching(self, cls: Tensor, valid: Tensor) -> tuple[Tensor, Metrics]:
        """VTM, averaged over the pairs of all ranks (`total`).

        cls (3B, D): fused [CLS] of B positives, B texts with a negative video, B videos with a negative text. valid
        (2B,): which negatives count.
        """
        logits = self.model.vtm_head(cls).float()
        labels = (torch.arange(len(cls), device=cls.device) < len(cls) - len(valid)).long()
        weight = torch.cat([valid.new_ones(len(cls) - len(valid)), valid]).float()
        count = self.total("vtm", weight.sum())
        loss = vtm_loss(logits, labels, weight) * world_size() / count
        accuracy = ((logits.argmax(1) == labels) * weight).sum() * world_size() / count
        return loss, {"loss_vtm": loss.detach(), "vtm_accuracy": accuracy.detach()}


def concatenate(pairs: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Concatenates groups of pairs (text, mask, video) along the batch."""
    texts, masks, videos = zip(*pairs, strict=True)
    return torch.cat(texts), torch.cat(masks), torch.cat(videos)


class QaObjective(Objective):
    """Question answering as classification of the fused [CLS] (section 4.1). Unknown answers are ignored."""

    model: Alpro
    losses = ("qa",)

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """The known answers."""
        assert batch.answers is not None
        return {"qa": (batch.answers != -100).sum()}

    def totals_of(self, parts: list[Batch]) -> dict[str, Tensor]:
        """The known answers of all micro-batches: the step is that of the batch in one piece."""
        known = torch.stack([self.counts(part)["qa"] for part in parts]).sum()
        return {"qa": all_reduce_sum(known).clamp(min=1) / len(parts)}

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        assert batch.answers is not None
        video = self.encode_video(batch, self.pixels(batch.frames))
        text = self.model.encode_text(batch.text, batch.mask)
        logits = self.model.answer(text, batch.mask, video).float()
        loss = F.cross_entropy(logits, batch.answers, ignore_index=-100, reduction="sum")
        count = self.total("qa", self.counts(batch)["qa"])
        loss = loss * world_size() / count
        accuracy = (logits.argmax(1) == batch.answers).sum() * world_size() / count
        return loss, {"loss_qa": loss.detach(), "qa_accuracy": accuracy.detach()}


def rank() -> int:
    """The global rank of this process; 0 without distributed training."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of ranks. DDP averages gradients, so losses normalized by a global count are multiplied by it."""
    return dist.get_world_size() if dist.is_initialized() else 1
