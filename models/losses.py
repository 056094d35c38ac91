"""The four objectives as pure functions (paper, section 3.2), and their draws: negatives, masked words, crops."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def vtc_loss(video_to_text: Tensor, text_to_video: Tensor, target: Tensor, same: Tensor) -> Tensor:
    """Video-text contrastive loss (equations 2 and 3), the mean of both directions over the rows.

    video_to_text, text_to_video (B, G): similarity / temperature of this rank's B pairs against the G pairs of
    the global batch. target (B,): the column of the row's own pair. same (B, G) boolean: the column belongs to
    the row's own video; apart from the target such columns are no negatives and are left out, so that a
    second caption of one video is never pushed away from it.
    """
    left_out = same.scatter(1, target[:, None], False)
    v2t = F.cross_entropy(video_to_text.masked_fill(left_out, -torch.inf), target)
    t2v = F.cross_entropy(text_to_video.masked_fill(left_out, -torch.inf), target)
    return (v2t + t2v) / 2


def hard_negatives(similarity: Tensor, excluded: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Draws one column for each row, in proportion to the softmax of the similarity.

    similarity (B, G): similarity / temperature. excluded (B, G) boolean: columns that are never drawn, such as those of
    the row's own video. uniforms (B,): a number in [0, 1) that decides each row's draw, so that it depends on nothing
    else. Returns columns (B,) and valid (B,): False where every column is excluded, so that the returned one means
    nothing; nor does it where the similarity is not finite. Nothing is read back from the device.
    """
    valid = ~excluded.all(dim=1)
    weights = similarity.detach().float().masked_fill(excluded, -torch.inf)
    weights = torch.where(valid[:, None], weights, 0.0).softmax(dim=1)
    weights = weights.nan_to_num(nan=1.0)  # the loss is NaN anyway, and training skips it
    rising = weights.double().cumsum(dim=1)
    drawn = torch.searchsorted(rising, uniforms[:, None].double() * rising[:, -1:], right=True)
    drawn = drawn.clamp(max=weights.shape[1] - 1)
    # Rounding could end at a column without any weight: then the likeliest.
    drawn = torch.where(weights.gather(1, drawn) > 0, drawn, weights.argmax(dim=1, keepdim=True))
    return drawn.squeeze(1), valid


def vtm_loss(logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Video-text matching: summed cross-entropy of logits (N, 2) against labels (N,), 1 = match, over valid (N,)."""
    return (F.cross_entropy(logits, labels, reduction="none") * valid).sum()


def mlm_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Masked language modelling: the sum over the masked tokens. scores (N, vocab), labels (N,), -100 = not masked."""
    return F.cross_entropy(scores.float(), labels, ignore_index=-100, reduction="sum")


def pem_loss(logits: Tensor, pseudo_labels: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Prompting entity modelling (equation 5): the sum over the kept samples, and which are kept.

    logits and pseudo_labels (B, M); pseudo_labels are the prompter's probabilities. A sample is kept where its
    most likely entity has at least `threshold`. Returns the summed soft cross-entropy and kept (B,) boolean.
    """
    kept = pseudo_labels.amax(dim=1) >= threshold
    losses = -(pseudo_labels * F.log_softmax(logits.float(), dim=1)).sum(dim=1)
    return (losses * kept).sum(), kept


def mask_words(
    ids: np.ndarray, special: np.ndarray, mask_id: int, vocab_size: int, rate: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """BERT's masking: of the chosen tokens 80 % become [MASK], 10 % a random word piece, 10 % stay.

    ids (L,) and special (L,) boolean (never chosen). Returns masked ids (L,) and labels (L,), -100 = not chosen.
    """
    chosen = (rng.random(ids.shape) < rate) & ~special
    how = rng.random(ids.shape)
    words = rng.integers(0, vocab_size, ids.shape)
    masked = np.where(chosen & (how < 0.8), mask_id, ids)
    masked = np.where(chosen & (how >= 0.8) & (how < 0.9), words, masked)
    return masked.astype(ids.dtype), np.where(chosen, ids, -100)


def random_box(
    grid: int,
    rng: np.random.Generator,
    area: tuple[float, float] = (0.3, 0.5),
    aspect: tuple[float, float] = (0.3, 3.3),
) -> tuple[int, int, int, int]:
    """A crop (top, left, height, width) in patches, of `area` (share of the grid) and `aspect` (width : height).

    Boxes are drawn as in random resized cropping and rounded to the patch grid; one that rounds to an area
    outside the range is drawn again. After 100 failures (a grid too coarse): the most central half.
    """
    for _ in range(100):
        target = rng.uniform(*area) * grid * grid
        ratio = np.exp(rng.uniform(np.log(aspect[0]), np.log(aspect[1])))
        height, width = round(float(np.sqrt(target / ratio))), round(float(np.sqrt(target * ratio)))
        inside = 1 <= height <= grid and 1 <= width <= grid
        if inside and area[0] <= height * width / grid**2 <= area[1]:
            return int(rng.integers(0, grid - height + 1)), int(rng.integers(0, grid - width + 1)), height, width
    return grid // 4, 0, max(1, grid // 2), grid


def box_mask(boxes: Tensor, grid: int) -> Tensor:
    """Boxes (B, 4) in patches to a boolean mask (B, grid * grid), True inside, row-major."""
    top, left, height, width = boxes.unbind(1)
    at = torch.arange(grid, device=boxes.device)
    rows = (at >= top[:, None]) & (at < (top + height)[:, None])
    columns = (at >= left[:, None]) & (at < (left + width)[:, None])
    return (rows[:, :, None] & columns[:, None, :]).flatten(1)
