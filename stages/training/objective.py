"""Training objectives: a batch in, loss and metrics out (paper, section 3.2). That of pre-training has its own file."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from alpro.models.alpro import Alpro
from alpro.models.frames import NormalizedModel
from alpro.models.losses import hard_negatives, vtc_loss, vtm_loss
from alpro.stages.training.distributed import all_reduce_sum, gather
from alpro.stages.training.examples import Batch

Metrics = dict[str, Tensor]

# The parts of the model that each loss trains, besides the video and text encoders, which every loss trains.
TRAINED_BY = {
    "vtc": {"video_proj", "text_proj", "temperature"},
    "vtm": {"multimodal_encoder", "vtm_head"},
    "mlm": {"multimodal_encoder", "mlm_head"},
    "pem": {"multimodal_encoder", "pem_head"},
    "qa": {"multimodal_encoder", "qa_head"},
}


class Objective(NormalizedModel):
    """A model to train; forward(batch) -> (loss, metrics).

    The forward pass reads no value back from the device: a GPU would wait, and `StepFlops` runs it without data.
    losses: names of the losses, keys of `TRAINED_BY`. The metrics have `loss_<name>` of each, detached.
    """

    losses: tuple[str, ...]

    @property
    def unused_parameters(self) -> set[str]:
        """Names of submodules and parameters that no loss trains."""
        parts = set().union(*TRAINED_BY.values())
        unused = parts.difference(*(TRAINED_BY[name] for name in self.losses))
        return {name for name in unused if getattr(self.model, name, None) is not None}

    def contrast(self, batch: Batch, video: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor, Metrics]:
        """VTC over the global batch of G pairs from video tokens (B, V, D) and text tokens (B, L, D).

        Returns the loss, similarity / temperature (B, G) of this rank's videos to all texts and of its texts to all
        videos, and metrics.
        """
        # Similarities in float32: after division by the temperature, bfloat16 keeps two digits of them.
        with torch.autocast("cuda" if video.is_cuda else "cpu", enabled=False):
            return self._contrast(batch, video.float(), text.float())

    def _contrast(self, batch: Batch, video: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor, Metrics]:
        video_feat, text_feat = self.model.project_video(video), self.model.project_text(text)
        all_video, all_text, all_numbers = gather(video_feat), gather(text_feat), gather(batch.video)
        temperature = self.model.clamped_temperature()
        v2t, t2v = video_feat @ all_text.T / temperature, text_feat @ all_video.T / temperature
        # Labels by global rank: this rank's pairs start at column rank * B.
        target = torch.arange(len(video_feat), device=v2t.device) + rank() * len(video_feat)
        same = batch.video[:, None] == all_numbers[None]
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
        video = self.model.encode_video(self.pixels(batch.frames), cls_only=True)
        text = self.model.encode_text(batch.text, batch.mask)
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
        size = len(batch.video)
        pool = self.negative_pool_size or size * world_size()
        first = rank() * size  # index of this rank's first pair in the global batch
        videos, texts, masks, numbers = video, text, batch.mask, batch.video
        if pool > size:
            videos, texts, masks, numbers = (gather(x) for x in (video, text, batch.mask, batch.video))
            columns = torch.arange(len(numbers), device=video.device)
        else:
            v2t, t2v = v2t[:, first : first + size], t2v[:, first : first + size]
            columns = torch.arange(first, first + size, device=video.device)
        rows = torch.arange(first, first + size, device=video.device)
        excluded = (rows[:, None] // pool != columns[None] // pool) | (batch.video[:, None] == numbers[None])
        uniforms = batch.uniforms if batch.uniforms is not None else torch.rand(size, 2, device=video.device)
        other_videos, valid = hard_negatives(t2v, excluded, uniforms[:, 0])
        other_texts, _ = hard_negatives(v2t, excluded, uniforms[:, 1])  # valid is the same in both directions
        pairs = [(text, batch.mask, videos[other_videos]), (texts[other_texts], masks[other_texts], video)]
        return pairs, valid.repeat(2)

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        video = self.model.encode_video(self.pixels(batch.frames))
        text = self.model.encode_text(batch.text, batch.mask)
        vtc, v2t, t2v, metrics = self.contrast(batch, video, text)
        others, valid = self.negatives(batch, video, text, v2t, t2v)
        fused = self.model.fuse_cls(*concatenate([(text, batch.mask, video), *others]))
        vtm, more = self.matching(fused, valid)
        return vtc + vtm, metrics | more

    def matching(self, cls: Tensor, valid: Tensor) -> tuple[Tensor, Metrics]:
        """VTM, averaged over the pairs of all ranks.

        cls (3B, D): fused [CLS] of B positives, B texts with a negative video, B videos with a negative text. valid
        (2B,): which negatives count.
        """
        logits = self.model.vtm_head(cls).float()
        labels = (torch.arange(len(cls), device=cls.device) < len(cls) - len(valid)).long()
        weight = torch.cat([valid.new_ones(len(cls) - len(valid)), valid]).float()
        count = all_reduce_sum(weight.sum())
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

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        assert batch.answers is not None
        video = self.model.encode_video(self.pixels(batch.frames))
        text = self.model.encode_text(batch.text, batch.mask)
        logits = self.model.answer(text, batch.mask, video).float()
        known = batch.answers != -100
        loss = F.cross_entropy(logits, batch.answers, ignore_index=-100, reduction="sum")
        count = all_reduce_sum(known.sum()).clamp(min=1)
        loss = loss * world_size() / count
        accuracy = (logits.argmax(1) == batch.answers).sum() * world_size() / count
        return loss, {"loss_qa": loss.detach(), "qa_accuracy": accuracy.detach()}


def rank() -> int:
    """The global rank of this process; 0 without distributed training."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of ranks. DDP averages gradients, so losses normalized by a global count are multiplied by it."""
    return dist.get_world_size() if dist.is_initialized() else 1
