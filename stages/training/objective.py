"""Training objectives: a batch in, loss and metrics out. One class per training stage (paper, section 3.2)."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from alpro.models.alpro import Alpro, Prompter
from alpro.models.flops import classifier_flops, fusion_flops, mlm_flops, text_flops, video_flops
from alpro.models.frames import NormalizedModel
from alpro.models.losses import box_mask, hard_negatives, mlm_loss, pem_loss, vtc_loss, vtm_loss
from alpro.stages.training.distributed import all_reduce_sum, gather
from alpro.stages.training.examples import Batch

Metrics = dict[str, Tensor]


class Objective(NormalizedModel):
    """A model to train; forward(batch) -> (loss, metrics)."""

    @property
    def unused_parameters(self) -> set[str]:
        """Names of submodules and parameters that the objective does not use; they are not trained."""
        return set()

    def unused_heads(self, *used: str) -> set[str]:
        """The model's heads other than those in `used`."""
        heads = {"vtm_head", "mlm_head", "pem_head", "qa_head"} - set(used)
        return {name for name in heads if getattr(self.model, name) is not None}

    def flops(self, batch: Batch) -> float:
        """Floating-point operations of a training step on a batch (see models/flops.py)."""
        size, length = batch.text.shape
        return 3 * size * (video_flops(self.model.config.video) + text_flops(self.model.config.text, length))

    def fusion(self, length: int, outputs: int) -> float:
        """Floating-point operations of a training step on one fused pair with `outputs` output tokens."""
        video, text = self.model.config.video, self.model.config.text
        return 3 * fusion_flops(text, length + 1 + video.grid**2, outputs)

    def contrast(self, batch: Batch, video: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor, Metrics]:
        """VTC over the global batch of G pairs from video tokens (B, V, D) and text tokens (B, L, D).

        Returns the loss, similarity / temperature (B, G) of this rank's videos to all texts and of its texts to all
        videos, and metrics.
        """
        # Similarities in float32: after division by the temperature, bfloat16 keeps two digits of them.
        with torch.autocast(video.device.type, enabled=False):
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

    def flops(self, batch: Batch) -> float:
        size, length = batch.text.shape
        video = video_flops(self.model.config.video, cls_only=True)
        return 3 * size * (video + text_flops(self.model.config.text, length))

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

    def __init__(self, model: Alpro, mean: Sequence[float], std: Sequence[float], negative_pool_size: int = 0):
        super().__init__(model, mean, std)
        self.negative_pool_size = negative_pool_size

    @property
    def unused_parameters(self) -> set[str]:
        return self.unused_heads("vtm_head")

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

    def flops(self, batch: Batch) -> float:
        size, length = batch.text.shape
        return super().flops(batch) + 3 * size * self.fusion(length, 1)

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


class PretrainObjective(MatchingObjective):
    """Weighted sum of VTC, VTM, MLM and PEM (equation 6). A loss of weight 0 is not computed; PEM needs the prompter.

    One pass of the multimodal encoder takes all pairs: B positives, 2B negatives, B masked texts. Its last layer
    computes the used positions only: [CLS], the masked words, the patches of the crop. Without VTC there is no
    similarity, and negatives are sampled uniformly.
    """

    video_prompts: Tensor
    image_prompts: Tensor

    def __init__(
        self,
        model: Alpro,
        mean: Sequence[float],
        std: Sequence[float],
        prompter: Prompter | None,
        prompts: dict[str, Tensor],
        weights: dict[str, float],
        threshold: float,
        negative_pool_size: int = 0,
    ):
        super().__init__(model, mean, std, negative_pool_size)
        self.prompter = prompter.requires_grad_(False).eval() if prompter else None
        for kind, embeddings in prompts.items():
            self.register_buffer(f"{kind}_prompts", embeddings, persistent=False)
        self.weights, self.threshold = weights, threshold

    @property
    def unused_parameters(self) -> set[str]:
        on = {name for name, weight in self.weights.items() if weight > 0}
        unused = self.unused_heads(*(f"{name}_head" for name in on))
        if "vtc" not in on:
            unused |= {"video_proj", "text_proj", "temperature"}
        if not on & {"vtm", "mlm", "pem"}:
            unused.add("multimodal_encoder")
        return unused

    def train(self, mode: bool = True) -> "PretrainObjective":
        super().train(mode)
        if self.prompter:
            self.prompter.eval()  # frozen: no dropout in the pseudo-labels
        return self

    def forward(self, batch: Batch) -> tuple[Tensor, Metrics]:
        assert batch.masked is not None
        assert batch.labels is not None
        assert batch.boxes is not None
        on = {name: weight > 0 for name, weight in self.weights.items()}
        size, length = batch.text.shape
        frames = self.pixels(batch.frames)
        video = self.model.encode_video(frames)
        if on["mlm"]:  # clean and masked text in one pass
            both = self.model.encode_text(torch.cat([batch.text, batch.masked]), batch.mask.repeat(2, 1))
            text, masked = both[:size], both[size:]
        else:
            text = masked = self.model.encode_text(batch.text, batch.mask)
        losses: dict[str, Tensor] = {}
        metrics: Metrics = {}
        if on["vtc"]:
            losses["vtc"], v2t, t2v, metrics = self.contrast(batch, video, text)
        else:
            v2t = t2v = torch.zeros(size, size * world_size(), device=video.device)

        # The pairs, and for each group the positions that the losses use: [CLS] first.
        pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        positions: list[Tensor] = []
        cls = batch.mask.new_zeros(size, 1)
        patches, inside = box_patches(batch.boxes, self.model.config.video.grid)
        if on["vtm"] or on["pem"]:
            pairs.append((text, batch.mask, video))
            positions.append(torch.cat([cls, length + 1 + patches], dim=1) if on["pem"] else cls)
        if on["vtm"]:
            others, valid = self.negatives(batch, video, text, v2t, t2v)
            pairs += others
            positions.append(cls.repeat(2, 1))
        if on["mlm"]:
            pairs.append((masked, batch.mask, video))
            words, labels = masked_positions(batch.labels, batch.max_masked)
            positions.append(words)
        if pairs:
            fused = self.model.fuse_at(positions, *concatenate(pairs))
            if on["vtm"]:
                losses["vtm"], more = self.matching(torch.cat([fused[0][:, 0], fused[1][:, 0]]), valid)
                metrics |= more
            if on["mlm"]:
                losses["mlm"], more = self.masked_words(fused[-1], labels)
                metrics |= more
            if on["pem"]:
                losses["pem"], more = self.entities(batch, frames, fused[0][:, 1:], inside)
                metrics |= more
        return torch.stack([self.weights[name] * loss for name, loss in losses.items()]).sum(), metrics

    def flops(self, batch: Batch) -> float:
        on = {name: weight > 0 for name, weight in self.weights.items()}
        size, length = batch.text.shape
        video, text = self.model.config.video, self.model.config.text
        flops = 3 * (video_flops(video) + text_flops(text, length) * (1 + on["mlm"]))
        if on["vtm"] or on["pem"]:
            flops += self.fusion(length, 1 + on["pem"] * (video.grid**2 // 2))
        flops += on["vtm"] * 2 * self.fusion(length, 1)
        if on["mlm"]:
            words = batch.max_masked or length
            flops += self.fusion(length, words) + 3 * words * mlm_flops(text)
        if on["pem"] and self.prompter:  # the frozen prompter has no backward pass
            flops += video_flops(self.prompter.config.video, cls_only=True) + 3 * classifier_flops(
                text.width, self.model.entities
            )
        return size * flops

    def masked_words(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Metrics]:
        """MLM, averaged over the masked words of all ranks. tokens (B, P, D), labels (B, P), -100 = not masked."""
        scores = self.model.mlm_scores(tokens)
        count = all_reduce_sum((labels != -100).sum())
        loss = mlm_loss(scores.flatten(0, 1), labels.flatten()) * world_size() / count.clamp(min=1)
        return loss, {"loss_mlm": loss.detach()}

    def entities(self, batch: Batch, frames: Tensor, patches: Tensor, inside: Tensor) -> tuple[Tensor, Metrics]:
        """PEM, averaged over the kept samples of all ranks.

        frames (B, T, 3, S, S), normalized; patches (B, P, D): fused patch tokens of the positive pairs, averaged where
        `inside` (B, P) the crop.
        """
        assert batch.boxes is not None
        assert self.prompter is not None
        prompts = self.image_prompts if batch.kind == "image" else self.video_prompts
        pseudo_labels = self.prompter.pseudo_labels(frames, batch.boxes, prompts, self.black)
        summed, kept = pem_loss(self.model.pem_logits(patches, inside), pseudo_labels, self.threshold)
        loss = summed * world_size() / all_reduce_sum(kept.sum()).clamp(min=1)
        return loss, {"loss_pem": loss.detach(), "pseudo_labels_kept": kept.float().mean()}


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


class QaObjective(Objective):
    """Question answering as classification of the fused [CLS] (section 4.1). Unknown answers are ignored."""

    model: Alpro

    @property
    def unused_parameters(self) -> set[str]:
        return self.unused_heads("qa_head") | {"video_proj", "text_proj", "temperature"}

    def flops(self, batch: Batch) -> float:
        size, length = batch.text.shape
        head = 3 * classifier_flops(self.model.config.text.width, self.model.answers)
        return super().flops(batch) + size * (self.fusion(length, 1) + head)

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
