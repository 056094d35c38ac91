"""The baseline of benchmarks/train_step.py: a step with five encoder passes."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alpro.models.alpro import Alpro, Prompter, crop
from alpro.models.losses import box_mask
from alpro.stages.training.batch import Batch


class FivePasses(nn.Module):
    """The step as in section 3 of the paper: each kind of text and pair has its own encoder pass."""

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
        text = model.encode_text(batch.text, batch.mask)  # first pass
        v2t = model.project_video(video) @ model.project_text(text).T / model.temperature
        target = torch.arange(size, device=v2t.device)
        vtc = (F.cross_entropy(v2t, target) + F.cross_entropy(v2t.T, target)) / 2

        positive = model.fuse(text, batch.mask, video)  # second pass
        self.drawn = videos, texts = draw(v2t.T, batch.uniforms[:, 0]), draw(v2t, batch.uniforms[:, 1])
        negative = model.fuse(  # third pass
            torch.cat([text, torch.stack([text[n] for n in texts])]),
            torch.cat([batch.mask, torch.stack([batch.mask[n] for n in texts])]),
            torch.cat([torch.stack([video[n] for n in videos]), video]),
        )
        match = model.vtm_head(torch.cat([positive[:, 0], negative[:, 0]]))
        vtm = F.cross_entropy(match, (torch.arange(3 * size, device=match.device) < size).long())

        masked = model.encode_text(batch.masked, batch.mask)  # fourth pass
        words = model.fuse(masked, batch.mask, video)[:, :length]  # fifth pass
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
    """A hard negative for each row, one at a time, from the same random numbers as in our step."""
    weights = similarity.float().clone().fill_diagonal_(-torch.inf).softmax(dim=1)
    drawn = []
    for row, at in zip(weights, uniforms, strict=True):
        cumulative = row.double().cumsum(0)
        drawn.append(int(torch.searchsorted(cumulative, at.double() * cumulative[-1], right=True).item()))
    return drawn
