"""The four objectives as pure functions (paper, section 3.2), and their draws: negatives, masked words, crops."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def vtc_loss(video_to_text: Tensor, text_to_video: Tensor, target: Tensor, same: Tensor) -> Tensor:
    """Video-text contrastive loss (equations 2 and 3), averaged over both directions and the rows.

    video_to_text, text_to_video (B, G): similarity / temperature of this rank's B pairs against the G pairs of
    the global batch. target (B,): the column of the row's own pair. same (B, G), boolean: the column belongs to
    the row's own video. Such columns other than the target are excluded from the negatives, so that the loss never
    separates a video from a second caption of it.
    """
    excluded = same.scatter(1, target[:, None], False)
    v2t = F.cross_entropy(video_to_text.masked_fill(excluded, -torch.inf), target)
    t2v = F.cross_entropy(text_to_video.masked_fill(excluded, -torch.inf), target)
    return (v2t + t2v) / 2


def hard_negatives(similarity: Tensor, excluded: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Samples one column per row with probability proportional to the softmax of the similarity (section 3.2.1).

    similarity (B, G): similarity / temperature. excluded (B, G), boolean: columns that are never sampled, such as those
    of the row's own video. uniforms (B,): random numbers in [0, 1), one per row; the sample is a function of them.
    Returns columns (B,) and valid (B,), which is False if every column of the row is excluded; the column is then
    arbitrary, as it is if the similarity is not finite. No device synchronization.
    """
    valid = ~excluded.all(dim=1)
    weights = similarity.detach().float().masked_fill(excluded, -torch.inf)
    weights = torch.where(valid[:, None], weights, 0.0).softmax(dim=1)
    weights = weights.nan_to_num(nan=1.0)  # the loss is NaN as well, and training skips the step
    cumulative = weights.double().cumsum(dim=1)
    sampled = torch.searchsorted(cumulative, uniforms[:, None].double() * cumulative[:, -1:], right=True)
    sampled = sampled.clamp(max=weights.shape[1] - 1)
    # Rounding can select a column of zero weight: take the most likely one instead.
    sampled = torch.where(weights.gather(1, sampled) > 0, sampled, weights.argmax(dim=1, keepdim=True))
    return sampled.squeeze(1), valid


def vtm_loss(logits: Tensor, labels: Tensor, valid: Tensor) -> Tensor:
    """Video-text matching loss (section 3.2.1): cross-entropy of logits (N, 2) and labels (N,), 1 = match, summed over
    the rows where valid (N,) is True."""
    return (F.cross_entropy(logits, labels, reduction="none") * valid).sum()


def mlm_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Masked language modelling loss, summed over the masked tokens.

    scores (N, vocab), labels (N,), -100 = not masked.
    """
    return F.cross_entropy(scores.float(), labels, ignore_index=-100, reduction="sum")


def pem_loss(logits: Tensor, pseudo_labels: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Prompting entity modelling loss (equation 5): soft cross-entropy summed over the kept samples.

    logits (B, M); pseudo_labels (B, M): the prompter's probabilities. A sample is kept if the probability of its most
    likely entity is at least `threshold`. Returns the loss and kept (B,), boolean.
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

    Boxes are sampled as in random resized cropping and rounded to the patch grid; one that rounds to an area
    outside the range is sampled again. After 100 failures (a grid too coarse): the most central half.
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
    """Boxes (B, 4) in patches (top, left, height, width) -> boolean mask (B, grid * grid), row-major, True inside."""
    top, left, height, width = boxes.unbind(1)
    at = torch.arange(grid, device=boxes.device)
    rows = (at >= top[:, None]) & (at < (top + height)[:, None])
    columns = (at >= left[:, None]) & (at < (left + width)[:, None])
    return (rows[:, :, None] & columns[:, None, :]).flatten(1)
