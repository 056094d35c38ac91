"""Losses of the four objectives, and hard negative sampling (paper, section 3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def vtc_loss(
    video_to_text: Tensor, text_to_video: Tensor, target: Tensor, same: Tensor
) -> Tensor:
    """Compute the video-text contrastive loss (equations 2 and 3).

    Other captions of a row's own video are excluded from the negatives, so the loss never separates
    a video from a second caption of it.

    Args:
        video_to_text, text_to_video: Similarity / temperature (B, G) of this rank's B pairs against
            the G pairs of the global batch.
        target: Column (B,) of the row's own pair.
        same: Boolean (B, G), True if the column belongs to the row's own video.

    Returns:
        The mean over both directions and all rows.
    """
    # -inf removes a column from the denominator, and gives it no gradient.
    excluded = same.scatter(1, target[:, None], False)
    v2t_logits = video_to_text.masked_fill(excluded, -torch.inf)
    t2v_logits = text_to_video.masked_fill(excluded, -torch.inf)
    v2t = F.cross_entropy(v2t_logits, target)
    t2v = F.cross_entropy(t2v_logits, target)
    return (v2t + t2v) / 2


def sample_hard_negatives(
    similarity: Tensor,
    excluded: Tensor,
    uniforms: Tensor,
) -> tuple[Tensor, Tensor]:
    """Sample one column per row with the probabilities of a softmax (section 3.2.1).

    The function needs no host-device sync.

    Args:
        similarity: Similarity / temperature (B, G).
        excluded: Boolean (B, G), True for columns that must not be sampled, such as other captions
            of the row's own video.
        uniforms: Random numbers (B,) in [0, 1). The sample is a function of them.

    Returns:
        Columns (B,), and a boolean (B,) that is False if every column of the row is excluded. The
        column is then arbitrary, as it is if the similarity is not finite.
    """
    valid = ~excluded.all(dim=1)
    logits = similarity.detach().float().masked_fill(excluded, -torch.inf)
    # A softmax over -inf alone is NaN.
    weights = torch.where(valid[:, None], logits, 0.0).softmax(dim=1)
    # The loss is NaN as well, and training skips the step.
    weights = weights.nan_to_num(nan=1.0)

    # Inverse transform sampling in double precision. torch.multinomial takes no random numbers.
    cumulative = weights.double().cumsum(dim=1)
    targets = uniforms[:, None].double() * cumulative[:, -1:]
    sampled = torch.searchsorted(cumulative, targets, right=True)
    sampled = sampled.clamp(max=weights.shape[1] - 1)

    # Rounding can select a column of weight zero. Replace it by the most likely one.
    most_likely = weights.argmax(dim=1, keepdim=True)
    has_weight = weights.gather(1, sampled) > 0
    sampled = torch.where(has_weight, sampled, most_likely)
    return sampled.squeeze(1), valid


def vtm_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Compute the video-text matching loss (section 3.2.1): weighted sum of cross-entropies.

    Args:
        logits: (N, 2).
        labels: (N,), 1 = match.
        weights: (N,), 1 for rows that count, 0 for others.
    """
    losses = F.cross_entropy(logits, labels, reduction="none")
    return (losses * weights).sum()


def mlm_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Compute the masked language modeling loss, summed over the masked tokens.

    Args:
        scores: (N, vocab).
        labels: (N,), -100 = not masked.
    """
    return F.cross_entropy(
        scores.float(),
        labels,
        ignore_index=-100,
        reduction="sum",
    )


def pem_loss(
    logits: Tensor, pseudo_labels: Tensor, threshold: float
) -> tuple[Tensor, Tensor]:
    """Compute the prompting entity modeling loss (equation 5).

    Args:
        logits: (B, M).
        pseudo_labels: Probabilities (B, M) of the prompter.
        threshold: As in `find_confident`.

    Returns:
        The soft cross-entropy summed over the confident samples, and which these are (B,).
    """
    confident = find_confident(pseudo_labels, threshold)
    log_probabilities = F.log_softmax(logits.float(), dim=1)
    losses = -(pseudo_labels * log_probabilities).sum(dim=1)
    # Multiply by the mask; boolean indexing would force a host-device sync.
    return (losses * confident).sum(), confident


def find_confident(pseudo_labels: Tensor, threshold: float) -> Tensor:
    """Return True (B,) where the most likely entity has at least the probability `threshold`."""
    return pseudo_labels.amax(dim=1) >= threshold


def box_mask(boxes: Tensor, grid: int) -> Tensor:
    """Return which patches are inside of boxes.

    Shape:
        boxes: (B, 4), left, top, width, height in patches.
        output: Boolean (B, grid * grid), row-major.
    """
    left, top, width, height = boxes[:, :, None].unbind(1)
    index = torch.arange(grid, device=boxes.device)
    rows = (index >= top) & (index < top + height)  # (B, grid)
    columns = (index >= left) & (index < left + width)
    inside = rows[:, :, None] & columns[:, None, :]
    return inside.flatten(1)
