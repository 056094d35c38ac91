"""What a batch is turned into: losses and metrics. One class for each thing that is trained (paper, section 3.2)."""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from alpro.models.alpro import Alpro, DualEncoder, Prompter
from alpro.models.flops import classifier_flops, fusion_flops, mlm_flops, text_flops, video_flops
from alpro.models.losses import box_mask, hard_negatives, mlm_loss, pem_loss, vtc_loss, vtm_loss
from alpro.stages.training.distributed import gather, total
from alpro.stages.training.examples import Batch

Metrics = dict[str, Tensor]


class Objective(nn.Module):
    """forward(batch) -> (loss, metrics). Holds the model that is trained, and the normalization of its frames."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: DualEncoder, mean: list[float], std: list[float]):
        super().__init__()
        self.model = model
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @property
    def black(self) -> Tensor:
        """A black pixel after normalization: (3, 1, 1)."""
        return -self.mean / self.std

    @property
    def unused_parameters(self) -> set[str]:
        """Parts of the model that the objective does not read: they stay as they are."""
        return set()

    def unread_heads(self, *read: str) -> set[str]:
        """The model's heads but those that are read."""
        heads = {"vtm_head", "mlm_head", "pem_head", "qa_head"} - set(read)
        return {name for name in heads if getattr(self.model, name) is not None}

    def flops(self, batch: Batch) -> float:
        """Floating-point operations of a training step on a batch (models/flops.py has the count)."""
        size, length = batch.text.shape
        return 3 * size * (video_flops(self.model.config.video) + text_flops(self.model.config.text, length))

    def fusion(self, length: int, read: int) -> float:
        """Floating-point operations of a training step on one fused pair, of which `read` positions are read."""
        video, text = self.model.config.video, self.model.config.text
        return 3 * fusion_flops(text, length + 1 + video.grid**2, read)

    def pixels(self, frames: Tensor) -> Tensor:
        """Stored frames (B, T, 3, H, W) uint8 to the encoder's size, normalized."""
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
        target = torch.arange(len(video_feat), device=v2t.device) + rank() * len(video_feat)
        same = batch.video[:, None] == all_numbers[None]
        loss = vtc_loss(v2t, t2v, target, same)
        metrics = {
            "loss_vtc": loss.detach(),
            "temperature": temperature.detach(),
            "in_batch_recall": (t2v.argmax(1) == target).float().mean(),
        }
        return loss, v2t, t2v, metrics


def prepare(frames: Tensor, size: int, mean: Tensor, std: Tensor) -> Tensor:
    """Frames (B, T, 3, H, W) uint8 to (B, T, 3, size, size), resized where they differ, scaled and normalized."""
    pixels = frames.flatten(0, 1).float() / 255
    if pixels.shape[-2:] != (size, size):
        pixels = F.interpolate(pixels, (size, size), mode="bilinear", antialias=True, align_corners=False)
    return ((pixels - mean) / std).view(*frames.shape[:2], 3, size, size)


class PrompterObjective(Objective):
    """VTC alone: the first stage of pre-training (section 3.2.2)."""

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
    """VTC and VTM: retrieval fine-tuning, and the base of pre-training.

    `negative_pool_size`: hard negatives of a pair are drawn among this many consecutive pairs of the global batch (0:
    among all), so that a step is the same on any number of ranks.
    """

    model: Alpro

    def __init__(self, model: Alpro, mean: list[float], std: list[float], negative_pool_size: int = 0):
        super().__init__(model, mean, std)
        self.negative_pool_size = negative_pool_size

    @property
    def unused_parameters(self) -> set[str]:
        return self.unread_heads("vtm_head")

    def negatives(
        self, batch: Batch, video: Tensor, text: Tensor, v2t: Tensor, t2v: Tensor
    ) -> tuple[list[tuple[Tensor, Tensor, Tensor]], Tensor]:
        """Each text with a hard negative video, each video with a hard negative text (text, mask, video); and which
        rows have one (2B,). One call on the device for each direction."""
        size = len(batch.video)
        pool = self.negative_pool_size or size * ranks()
        first = rank() * size  # of this rank's pairs in the global batch
        videos, texts, masks, numbers = video, text, batch.mask, batch.video
        if pool > size:
            videos, texts, masks, numbers = (gather(part) for part in (video, text, batch.mask, batch.video))
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
        fused = self.model.fuse_cls(*merged([(text, batch.mask, video), *others]))
        vtm, more = self.matching(fused, valid)
        return vtc + vtm, metrics | more

    def flops(self, batch: Batch) -> float:
        size, length = batch.text.shape
        return super().flops(batch) + 3 * size * self.fusion(length, 1)

    def matching(self, cls: Tensor, valid: Tensor) -> tuple[Tensor, Metrics]:
        """VTM: the mean over the pairs of all ranks.

        On the fused [CLS] (3B, D) of B positives, B texts with another video, B videos with another text; the latter
        two count where valid (2B,).
        """
        logits = self.model.vtm_head(cls).float()
        labels = (torch.arange(len(cls), device=cls.device) < len(cls) - len(valid)).long()
        counted = torch.cat([valid.new_ones(len(cls) - len(valid)), valid]).float()
        count = total(counted.sum())
        loss = vtm_loss(logits, labels, counted) * ranks() / count
        right = ((logits.argmax(1) == labels) * counted).sum() * ranks() / count
        return loss, {"loss_vtm": loss.detach(), "vtm_accuracy": right.detach()}


def merged(pairs: list[tuple[Tensor, Tensor, Tensor]]) -> tuple[Tensor, Tensor, Tensor]:
    """Pairs (text, mask, video) of several kinds as one batch."""
    texts, masks, videos = zip(*pairs, strict=True)
    return torch.cat(texts), torch.cat(masks), torch.cat(videos)


class PretrainObjective(MatchingObjective):
    """VTC + VTM + MLM + PEM (equation 6), each with a weight; 0 leaves a loss and its work out, the prompter with PEM.

    All fused pairs go through the multimodal encoder in one pass: B positives, B + B negatives, B masked texts; its
    last layer computes only what is read of them: [CLS], the masked words, the patches of the crop. Without VTC nothing
    tells which negatives are hard, and they are drawn evenly.
    """

    video_prompts: Tensor
    image_prompts: Tensor

    def __init__(
        self,
        model: Alpro,
        mean: list[float],
        std: list[float],
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
        found = self.unread_heads(*(f"{name}_head" for name in on))
        if "vtc" not in on:
            found |= {"video_proj", "text_proj", "temperature"}
        if not on & {"vtm", "mlm", "pem"}:
            found.add("multimodal_encoder")
        return found

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
            v2t = t2v = torch.zeros(size, size * ranks(), device=video.device)

        # The pairs, and for each group of them the positions that a loss reads: [CLS] first, where VTM does.
        pairs: list[tuple[Tensor, Tensor, Tensor]] = []
        read: list[Tensor] = []
        cls = batch.mask.new_zeros(size, 1)
        patches, inside = box_patches(batch.boxes, self.model.config.video.grid)
        if on["vtm"] or on["pem"]:
            pairs.append((text, batch.mask, video))
            read.append(torch.cat([cls, length + 1 + patches], dim=1) if on["pem"] else cls)
        if on["vtm"]:
            others, valid = self.negatives(batch, video, text, v2t, t2v)
            pairs += others
            read.append(cls.repeat(2, 1))
        if on["mlm"]:
            pairs.append((masked, batch.mask, video))
            words, labels = masked_positions(batch.labels, batch.most_masked)
            read.append(words)
        if pairs:
            fused = self.model.fuse_at(read, *merged(pairs))
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
        one = 3 * (video_flops(video) + text_flops(text, length) * (1 + on["mlm"]))
        if on["vtm"] or on["pem"]:
            one += self.fusion(length, 1 + on["pem"] * (video.grid**2 // 2))
        one += on["vtm"] * 2 * self.fusion(length, 1)
        if on["mlm"]:
            words = batch.most_masked or length
            one += self.fusion(length, words) + 3 * words * mlm_flops(text)
        if on["pem"] and self.prompter:  # the prompter goes forward alone
            one += video_flops(self.prompter.config.video, cls_only=True) + 3 * classifier_flops(
                text.width, self.model.entities
            )
        return size * one

    def masked_words(self, tokens: Tensor, labels: Tensor) -> tuple[Tensor, Metrics]:
        """MLM: the mean over the masked words of all ranks. tokens (B, P, D), labels (B, P), -100 = not masked."""
        scores = self.model.mlm_scores(tokens)
        count = total((labels != -100).sum())
        loss = mlm_loss(scores.flatten(0, 1), labels.flatten()) * ranks() / count.clamp(min=1)
        return loss, {"loss_mlm": loss.detach()}

    def entities(self, batch: Batch, frames: Tensor, patches: Tensor, inside: Tensor) -> tuple[Tensor, Metrics]:
        """PEM: the mean over the kept samples of all ranks.

        patches (B, P, D): fused, of the positive pairs; those that are `inside` (B, P) the crop are averaged.
        """
        assert batch.boxes is not None
        assert self.prompter is not None
        prompts = self.image_prompts if batch.kind == "image" else self.video_prompts
        pseudo_labels = self.prompter.pseudo_labels(frames, batch.boxes, prompts, self.black)
        summed, kept = pem_loss(self.model.pem_logits(patches, inside), pseudo_labels, self.threshold)
        loss = summed * ranks() / total(kept.sum()).clamp(min=1)
        return loss, {"loss_pem": loss.detach(), "pseudo_labels_kept": kept.float().mean()}


def masked_positions(labels: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Where labels (B, L) are not -100: positions (B, P) and the labels there, -100 behind the last.

    `most`: P, at least the most masked words of a row; 0: L. It is known without looking at the device.
    """
    chosen = (labels != -100).int().argsort(dim=1, descending=True, stable=True)[:, : most or labels.shape[1]]
    return chosen, labels.gather(1, chosen)


def box_patches(boxes: Tensor, grid: int) -> tuple[Tensor, Tensor]:
    """The patches inside boxes (B, 4), at most half of the grid: their numbers and whether they are inside (B, P).

    P is half of the patches, so that nothing is read back from the device.
    """
    inside = box_mask(boxes, grid)
    chosen = inside.int().argsort(dim=1, descending=True, stable=True)[:, : max(1, grid**2 // 2)]
    return chosen, inside.gather(1, chosen)


class QaObjective(Objective):
    """Question answering as classification on the fused [CLS] (section 4.1), among the known answers."""

    model: Alpro

    @property
    def unused_parameters(self) -> set[str]:
        return self.unread_heads("qa_head") | {"video_proj", "text_proj", "temperature"}

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
        count = total(known.sum()).clamp(min=1)
        loss = loss * ranks() / count
        right = (logits.argmax(1) == batch.answers).sum() * ranks() / count
        return loss, {"loss_qa": loss.detach(), "qa_accuracy": right.detach()}


def rank() -> int:
    """This process among all, over all nodes."""
    return dist.get_rank() if dist.is_initialized() else 0


def ranks() -> int:
    """How many ranks average their gradients: a sum over all, divided by a count over all, is scaled by it."""
    return dist.get_world_size() if dist.is_initialized() else 1
