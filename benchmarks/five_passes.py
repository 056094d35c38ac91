"""What benchmarks/train_step.py compares our step with: five passes from the paper, and ours without one trick."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from alpro.models.alpro import Alpro, DualEncoder, Prompter, crop
from alpro.models.losses import box_mask
from alpro.stages.training import objective as objective_module
from alpro.stages.training import pretrain_objective
from alpro.stages.training.examples import Batch
from alpro.stages.training.pretrain_objective import masked_positions


class FivePasses(nn.Module):
    """The step written from the paper, section 3: each kind of text and pair through its encoder by itself."""

    def __init__(self, model: Alpro, prompter: Prompter, prompts: Tensor, mean: Tensor, std: Tensor):
        super().__init__()
        self.model, self.prompter = model, prompter.requires_grad_(False)
        for name, tensor in (("prompts", prompts), ("mean", mean), ("std", std)):
            self.register_buffer(name, tensor, persistent=False)

    def train(self, mode: bool = True) -> "FivePasses":
        super().train(mode)
        self.prompter.eval()
        return self

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        model, size, length = self.model, *batch.text.shape
        frames = (batch.frames.float() / 255 - self.mean) / self.std
        video = model.encode_video(frames)
        text = model.encode_text(batch.text, batch.mask)  # the first pass
        v2t = model.project_video(video) @ model.project_text(text).T / model.temperature
        own = torch.arange(size, device=v2t.device)
        vtc = (F.cross_entropy(v2t, own) + F.cross_entropy(v2t.T, own)) / 2

        positive = model.fuse(text, batch.mask, video)  # the second
        self.drawn = videos, texts = draw(v2t.T, batch.uniforms[:, 0]), draw(v2t, batch.uniforms[:, 1])
        negative = model.fuse(  # the third
            torch.cat([text, torch.stack([text[n] for n in texts])]),
            torch.cat([batch.mask, torch.stack([batch.mask[n] for n in texts])]),
            torch.cat([torch.stack([video[n] for n in videos]), video]),
        )
        match = model.vtm_head(torch.cat([positive[:, 0], negative[:, 0]]))
        vtm = F.cross_entropy(match, (torch.arange(3 * size, device=match.device) < size).long())

        masked = model.encode_text(batch.masked, batch.mask)  # the fourth
        words = model.fuse(masked, batch.mask, video)[:, :length]  # the fifth
        scores, chosen = model.mlm_scores(words), batch.labels != -100
        mlm = F.cross_entropy(scores[chosen], batch.labels[chosen])

        inside = box_mask(batch.boxes, model.config.video.grid)[..., None]
        entities = model.pem_head((positive[:, length + 1 :] * inside).sum(1) / inside.sum(1))
        pem = -(self.pseudo_labels(frames, batch.boxes) * F.log_softmax(entities, dim=1)).sum(1).mean()
        results = {"loss_vtc": vtc, "loss_vtm": vtm, "loss_mlm": mlm, "loss_pem": pem}
        return vtc + vtm + mlm + pem, {name: loss.detach() for name, loss in results.items()}

    @torch.no_grad()
    def pseudo_labels(self, frames: Tensor, boxes: Tensor) -> Tensor:
        black = -self.mean / self.std
        tokens = self.prompter.encode_video(crop(frames, boxes, self.model.config.video.patch_size, black))
        return (self.prompter.project_video(tokens) @ self.prompts.T / self.prompter.temperature).softmax(dim=1)


@torch.no_grad()
def draw(similarity: Tensor, uniforms: Tensor) -> list[int]:
    """A hard negative for each row, one at a time, from the same chances as ours."""
    weights = similarity.float().clone().fill_diagonal_(-torch.inf).softmax(dim=1)
    drawn = []
    for row, at in zip(weights, uniforms, strict=True):
        rising = row.double().cumsum(0)
        drawn.append(int(torch.searchsorted(rising, at.double() * rising[-1], right=True).item()))
    return drawn


# The tricks of ours, each by what takes its place


def fuse_whole(self: Alpro, read: list[Tensor], *args: Tensor) -> tuple[Tensor, ...]:
    rows = self.fuse(*args).split([len(positions) for positions in read])
    wanted = zip(rows, read, strict=True)
    return tuple(x.gather(1, positions[..., None].expand(-1, -1, x.shape[-1])) for x, positions in wanted)


def fuse_apart(self: Alpro, read: list[Tensor], *args: Tensor) -> tuple[Tensor, ...]:
    groups = zip(*(part.split([len(positions) for positions in read]) for part in args), strict=True)
    return tuple(self.multimodal_encoder(*group, [p])[0] for group, p in zip(groups, read, strict=True))


def encode_apart(self: DualEncoder, ids: Tensor, mask: Tensor) -> Tensor:
    halves = zip(ids.chunk(2), mask.chunk(2), strict=True)  # clean, masked
    return torch.cat([self.text_encoder(*half) for half in halves])


def draw_apart(similarity: Tensor, same: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    return torch.tensor(draw(similarity, uniforms), device=similarity.device), ~same.all(dim=1)


def encode_whole(self: Prompter, frames: Tensor, cls_only: bool = False) -> Tensor:
    return self.video_encoder(frames)


TRICKS: dict[str, Callable[[], AbstractContextManager]] = {
    "last layer of what is read": lambda: patch.object(Alpro, "fuse_at", fuse_whole),
    "merged text pass": lambda: patch.object(DualEncoder, "encode_text", encode_apart),
    "merged fusion pass": lambda: patch.object(Alpro, "fuse_at", fuse_apart),
    "masked words alone": lambda: patch.object(
        pretrain_objective, "masked_positions", lambda labels, most: masked_positions(labels, 0)
    ),
    "prompter's [CLS] alone": lambda: patch.object(Prompter, "encode_video", encode_whole),
    "inference mode": lambda: patch.object(torch, "inference_mode", torch.no_grad),
    "negatives in one call": lambda: patch.object(objective_module, "hard_negatives", draw_apart),
    "fused attention": lambda: sdpa_kernel(SDPBackend.MATH),
}
