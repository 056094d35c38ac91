"""What a batch is turned into: losses and metrics. One class for each thing that is trained (paper, section 3.2)."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from models.alpro import Alpro, DualEncoder, Prompter
from models.losses import hard_negatives, mlm_loss, pem_loss, vtc_loss, vtm_loss
from stages.training.distributed import gather, total
from stages.training.examples import Batch

Metrics = dict[str, Tensor]


class Objective(nn.Module):
    """forward(batch) -> (loss, metrics). Holds the model that is trained, and the normalisation of its frames."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: DualEncoder, mean: list[float], std: list[float]):
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    def pixels(self, frames: Tensor) -> Tensor:
        """Stored frames (B, T, 3, H, W) uint8 to the encoder's size, normalised."""
        return prepare(frames, self.model.config.video.image_size, self.mean, self.std)

    def contrast(self, batch: Batch, video: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor, Metrics]:
        """VTC over the global batch from video tokens and text tokens.

        Returns the loss, the similarities / temperature of this rank's videos to all texts and of its texts to
        all videos (B, G), and metrics.
        """
        # Similarities in full precision: divided by the temperature, bfloat16 would leave two digits of them.
        with torch.autocast(video.device.type, enabled=False):
            return self._contrast(batch, video.float(), text.float())

    def _contrast(self, batch: Batch, video: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor, Metrics]:
        video_feat, text_feat = self.model.project_video(video), self.model.project_text(text)
        all_video, all_text, all_numbers = gather(video_feat), gather(text_feat), gather(batch.video)
        temperature = self.model.clamped_temperature()
        v2t, t2v = video_feat @ all_text.T / temperature, text_feat @ all_video.T / temperature
        # Labels by global rank: this rank's rows begin at rank * B of the gathered columns.
        rank = dist.get_rank() if dist.is_initialized() else 0
        target = torch.arange(len(video_feat), device=v2t.device) + rank * len(video_feat)
        same = batch.video[:, None] == all_numbers[None]
        loss = vtc_loss(v2t, t2v, target, same)
        metrics = {
            "loss_vtc": loss.detach(),
            "temperature": temperature.detach(),
            "in_batch_recall": (t2v.argmax(1) == target).float().mean(),
        }
        return loss, v2t, t2v, metrics


def prepare(frames: Tensor, size: int, mean: Tensor, std: Tensor) -> Tensor:
    """Frames (B, T, 3, H, W) uint8 to (B, T, 3, size, size), resized where they differ, scaled and normalised."""
    pixels = frames.flatten(0, 1).float() / 255
    if pixels.shape[-2:] != (size, size):
        pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return ((pixels - mean) / std).view(*frames.shape[:2], 3, size, size)


class PrompterObjective(Objective):
    """VTC alone: the first stage of pre-training (section 3.2.2)."""

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        video = self.model.encode_video(self.pixels(batch.frames))
        text = self.model.encode_text(batch.text, batch.mask)
        loss, _, _, metrics = self.contrast(batch, video, text)
        return loss, metrics


class MatchingObjective(Objective):
    """VTC and VTM: retrieval fine-tuning, and the base of pre-training."""

    model: Alpro

    def negatives(self, batch: Batch, v2t: Tensor, t2v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Hard negatives within this rank: a video for each text, a text for each video, and where there are any."""
        size = len(batch.video)
        rank = dist.get_rank() if dist.is_initialized() else 0
        here = slice(rank * size, (rank + 1) * size)
        same = batch.video[:, None] == batch.video[None]
        videos, valid = hard_negatives(t2v[:, here], same)
        texts, _ = hard_negatives(v2t[:, here], same)  # valid where the videos are: `same` is symmetric
        return videos, texts, valid

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        video = self.model.encode_video(self.pixels(batch.frames))
        text = self.model.encode_text(batch.text, batch.mask)
        vtc, v2t, t2v, metrics = self.contrast(batch, video, text)
        videos, texts, valid = self.negatives(batch, v2t, t2v)
        fused = self.model.fuse(
            torch.cat([text, text, text[texts]]),
            torch.cat([batch.mask, batch.mask, batch.mask[texts]]),
            torch.cat([video, video[videos], video]),
        )
        vtm, more = self.matching(fused[:, 0], valid)
        return vtc + vtm, metrics | more

    def matching(self, cls: Tensor, valid: Tensor) -> tuple[Tensor, Metrics]:
        """VTM on the fused [CLS] (3B, D) of B positives, B texts with another video, B videos with another text."""
        size = len(valid)
        logits = self.model.vtm_head(cls).float()
        labels = (torch.arange(3 * size, device=cls.device) < size).long()
        weights = torch.cat([torch.ones_like(valid), valid, valid]).float()
        loss = vtm_loss(logits, labels, weights)
        right = ((logits.argmax(1) == labels) * weights).sum() / weights.sum()
        return loss, {"loss_vtm": loss.detach(), "vtm_accuracy": right.detach()}


class PretrainObjective(MatchingObjective):
    """VTC + VTM + MLM + PEM (equation 6), each with a weight; 0 leaves a loss and its work out.

    All fused pairs go through the multimodal encoder in one pass: B positives, B + B negatives, B masked texts.
    """

    video_prompts: Tensor
    image_prompts: Tensor

    def __init__(
        self,
        model,
        mean,
        std,
        prompter: Prompter,
        prompts: dict[str, Tensor],
        weights: dict[str, float],
        threshold: float,
    ):
        super().__init__(model, mean, std)
        self.prompter = prompter.requires_grad_(False).eval()
        self.register_buffer("video_prompts", prompts["video"], persistent=False)
        self.register_buffer("image_prompts", prompts["image"], persistent=False)
        self.weights, self.threshold = weights, threshold

    def train(self, mode: bool = True) -> "PretrainObjective":
        super().train(mode)
        self.prompter.eval()  # frozen: no dropout in the pseudo-labels
        return self

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        assert batch.masked is not None
        assert batch.labels is not None
        on = {name: weight > 0 for name, weight in self.weights.items()}
        size, length = batch.text.shape
        frames = self.pixels(batch.frames)
        video = self.model.encode_video(frames)
        if on["mlm"]:  # clean and masked text in one pass
            both = self.model.encode_text(torch.cat([batch.text, batch.masked]), batch.mask.repeat(2, 1))
            text, masked = both[:size], both[size:]
        else:
            text = masked = self.model.encode_text(batch.text, batch.mask)
        vtc, v2t, t2v, metrics = self.contrast(batch, video, text)

        pairs = [(text, batch.mask, video)]
        valid = None
        if on["vtm"]:
            videos, texts, valid = self.negatives(batch, v2t, t2v)
            pairs += [(text, batch.mask, video[videos]), (text[texts], batch.mask[texts], video)]
        if on["mlm"]:
            pairs.append((masked, batch.mask, video))
        fused = self.model.fuse(*(torch.cat(parts) for parts in zip(*pairs, strict=True)))

        loss = self.weights["vtc"] * vtc
        if on["vtm"]:
            assert valid is not None
            vtm, more = self.matching(fused[: 3 * size, 0], valid)
            loss, metrics = loss + self.weights["vtm"] * vtm, metrics | more
        if on["mlm"]:
            mlm, more = self.masked_words(fused[-size:, :length], batch.labels)
            loss, metrics = loss + self.weights["mlm"] * mlm, metrics | more
        if on["pem"]:
            pem, more = self.entities(batch, frames, fused[:size, length + 1 :])
            loss, metrics = loss + self.weights["pem"] * pem, metrics | more
        return loss, metrics

    def masked_words(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Metrics]:
        """MLM: the mean over the masked words of all ranks. tokens (B, L, D), labels (B, L)."""
        chosen = labels != -100
        scores = self.model.mlm_scores(tokens[chosen])
        count = total(chosen.sum())
        loss = mlm_loss(scores, labels[chosen]) * ranks() / count.clamp(min=1)
        return loss, {"loss_mlm": loss.detach()}

    def entities(self, batch: Batch, frames: Tensor, patches: Tensor) -> tuple[Tensor, Metrics]:
        """PEM: the mean over the kept samples of all ranks. patches (B, N, D): fused, of the positive pairs."""
        assert batch.boxes is not None
        prompts = self.image_prompts if batch.kind == "image" else self.video_prompts
        pseudo_labels = self.prompter.pseudo_labels(frames, batch.boxes, prompts)
        summed, kept = pem_loss(self.model.pem_logits(patches, batch.boxes), pseudo_labels, self.threshold)
        loss = summed * ranks() / total(kept.sum()).clamp(min=1)
        return loss, {"loss_pem": loss.detach(), "pseudo_labels_kept": kept.float().mean()}


class QaObjective(Objective):
    """Question answering as classification on the fused [CLS] (section 4.1), among the known answers."""

    model: Alpro

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        assert batch.answers is not None
        video = self.model.encode_video(self.pixels(batch.frames))
        text = self.model.encode_text(batch.text, batch.mask)
        logits = self.model.answer(text, batch.mask, video).float()
        known = batch.answers != -100
        loss = F.cross_entropy(logits, batch.answers, ignore_index=-100, reduction="sum")
        loss = loss * ranks() / total(known.sum()).clamp(min=1)
        right = (logits.argmax(1) == batch.answers).sum() / known.sum().clamp(min=1)
        return loss, {"loss_qa": loss.detach(), "qa_accuracy": right.detach()}


def ranks() -> int:
    """How many ranks average their gradients: a sum over all, divided by a count over all, is scaled by it."""
    return dist.get_world_size() if dist.is_initialized() else 1
