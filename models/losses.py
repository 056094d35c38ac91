"""The losses of the four objectives as pure functions, and hard negative sampling (paper, section
3.2)."""

import torch
import torch.nn.functional as F
from torch import Tensor


def vtc_loss(video_to_text: Tensor, text_to_video: Tensor, target: Tensor, same: Tensor) -> Tensor:
    """Video-text contrastive loss (equations 2 and 3), averaged over both directions and the rows.

    video_to_text, text_to_video (B, G): similarity / temperature of this rank's B pairs against the
    G pairs of the global batch. target (B,): the column of the row's own pair. same (B, G),
    boolean: the column belongs to the row's own video. Such columns other than the target are
    excluded from the negatives, so that the loss never separates a video from a second caption of
    it.
    """
    # -inf: a column that is excluded has no share in the denominator, and no gradient.
    excluded = same.scatter(1, target[:, None], False)
    v2t_logits = video_to_text.masked_fill(excluded, -torch.inf)
    t2v_logits = text_to_video.masked_fill(excluded, -torch.inf)
    v2t = F.cross_entropy(v2t_logits, target)
    t2v = F.cross_entropy(t2v_logits, target)
    return (v2t + t2v) / 2


def hard_negatives(similarity: Tensor, excluded: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """Samples one column per row with probability proportional to the softmax of the similarity
    (section 3.2.1).

    similarity (B, G): similarity / temperature. excluded (B, G), boolean: columns that are never
    sampled, such as those of the row's own video. uniforms (B,): random numbers in [0, 1), one per
    row; the sample is a function of them. Returns columns (B,) and valid (B,), which is False if
    every column of the row is excluded; the column is then arbitrary, as it is if the similarity is
    not finite. No device synchronization.
    """
    valid = ~excluded.all(dim=1)
    logits = similarity.detach().float().masked_fill(excluded, -torch.inf)
    # A softmax over -inf alone is NaN.
    weights = torch.where(valid[:, None], logits, 0.0).softmax(dim=1)
    weights = weights.nan_to_num(nan=1.0)  # the loss is NaN as well, and training skips the step

    # Inversion of the distribution function, in double precision: torch.multinomial knows no given
    # random numbers.
    cumulative = weights.double().cumsum(dim=1)
    targets = uniforms[:, None].double() * cumulative[:, -1:]
    sampled = torch.searchsorted(cumulative, targets, right=True)
    sampled = sampled.clamp(max=weights.shape[1] - 1)

    # Rounding can select a column of zero weight: take the most likely one instead.
    most_likely = weights.argmax(dim=1, keepdim=True)
    has_weight = weights.gather(1, sampled) > 0
    sampled = torch.where(has_weight, sampled, most_likely)
    return sampled.squeeze(1), valid


def vtm_loss(logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
    """Video-text matching loss (section 3.2.1): cross-entropy of logits (N, 2) and labels (N,), 1 =
    match, summed with weights (N,): 1 for rows that count, 0 for others."""
    losses = F.cross_entropy(logits, labels, reduction="none")
    return (losses * weights).sum()


def mlm_loss(scores: Tensor, labels: Tensor) -> Tensor:
    """Masked language modeling loss, summed over the masked tokens.

    scores (N, vocab), labels (N,), -100 = not masked.
    """
    return F.cross_entropy(scores.float(), labels, ignore_index=-100, reduction="sum")


def pem_loss(logits: Tensor, pseudo_labels: Tensor, threshold: float) -> tuple[Tensor, Tensor]:
    """Prompting entity modeling loss (equation 5): soft cross-entropy summed over the kept samples.

    logits (B, M); pseudo_labels (B, M): the prompter's probabilities. A sample is kept if the
    probability of its most likely entity is at least `threshold`. Returns the loss and kept (B,),
    boolean.
    """
    kept = kept_labels(pseudo_labels, threshold)
    log_probabilities = F.log_softmax(logits.float(), dim=1)
    losses = -(pseudo_labels * log_probabilities).sum(dim=1)
    # A product with the mask, not an index: how many are kept would be read back from the device.
    loss = (losses * kept).sum()
    return loss, kept


def kept_labels(pseudo_labels: Tensor, threshold: float) -> Tensor:
    """Which samples PEM keeps (B,): the most likely entity of pseudo_labels (B, M) has at least
    `threshold`."""
    return pseudo_labels.amax(dim=1) >= threshold


def box_mask(boxes: Tensor, grid: int) -> Tensor:
    """Boxes (B, 4) in patches (left, top, width, height) -> boolean mask (B, grid * grid),
    row-major, True inside."""
    left, top, width, height = boxes[:, :, None].unbind(1)
    bottom = top + height
    right = left + width
    index = torch.arange(grid, device=boxes.device)
    rows = (index >= top) & (index < bottom)  # (B, grid)
    columns = (index >= left) & (index < right)
    inside = rows[:, :, None] & columns[:, None, :]
    return inside.flatten(1)
