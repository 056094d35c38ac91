"""Score many pairs of encoded texts and videos with a head.

Pairs share the encoded texts and videos, and the queries, keys and values of the first fusion
layer. A batch has pairs whose texts have one length, so that no padding is computed.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from alpro.log import progress
from alpro.models.alpro import Alpro
from alpro.models.folder import Texts
from alpro.models.ranks import all_reduce_, belongs_to_this_rank

# Number of videos whose queries, keys and values are on the device at a time.
VIDEOS = 64
PAIRS = 512  # pairs in a batch on a GPU
CPU_VALUES = 2**19  # activations of a batch on a CPU, about what its cache holds


@dataclass
class Videos:
    """Encoded videos: tokens (N, 1 + patches, D), features (N, E)."""

    tokens: Tensor
    features: Tensor


@torch.no_grad()
def score(
    model: Alpro,
    head: Callable[[Tensor], Tensor],
    texts: Texts,
    videos: Videos,
    pairs: np.ndarray,
) -> Tensor:
    """Compute the outputs of a head, in float32 on the device.

    Ranks share the batches, and all of them return the result.

    Args:
        head: Maps fused [CLS] tokens (B, D) to outputs (B, ...).
        pairs: Indices (P, 2) of texts and videos.

    Returns:
        Outputs (P, ...).
    """

    device = videos.tokens.device
    lengths = texts.mask.sum(dim=1).cpu().numpy()
    # No pairs: for the shape of the outputs.
    empty = head(texts.tokens.new_empty(0, texts.tokens.shape[-1])).float()
    scores = empty.new_zeros(len(pairs), *empty.shape[1:])
    batch_index = 0
    with progress("matching", len(pairs), "pairs") as advance:
        block_of_pair = pairs[:, 1] // VIDEOS
        for number in np.unique(block_of_pair):
            first_video = number * VIDEOS
            block = np.flatnonzero(block_of_pair == number)
            tokens = videos.tokens[first_video : first_video + VIDEOS]
            # All pairs of a video share the queries, keys and values of the first layer.
            qkv = model.multimodal_encoder.project(tokens)
            size = PAIRS if tokens.is_cuda else CPU_VALUES // tokens[0].numel()

            for in_block in batches(pairs[block, 0], lengths, max(1, size)):
                advance(len(in_block))
                batch_index += 1
                if not belongs_to_this_rank(batch_index):
                    continue

                rows = block[in_block]
                distinct, text_of_pair = np.unique(pairs[rows, 0], return_inverse=True)
                video_of_pair = pairs[rows, 1] - first_video
                # No padding and no mask: `batches` puts texts of one length together.
                length = int(lengths[distinct[0]])  # all texts of the batch have it
                fused = model.multimodal_encoder.fuse_pairs(
                    text=texts.tokens[torch.from_numpy(distinct).to(device), :length],
                    text_indices=torch.from_numpy(text_of_pair).to(device),
                    video=tokens,
                    video_qkv=qkv,
                    video_indices=torch.from_numpy(video_of_pair).to(device),
                )
                with torch.autocast(device.type, enabled=False):
                    scores[torch.from_numpy(rows).to(device)] = head(fused.float())
    return all_reduce_(scores)


def match(model: Alpro, texts: Texts, videos: Videos, pairs: np.ndarray) -> Tensor:
    """Compute the logit margin (P,), match minus no match, of pairs (P, 2) of text and video
    indices. It has the order of the probability, without its rounding near 0 and 1."""
    logits = score(model, model.vtm_head, texts, videos, pairs)
    no_match, is_match = logits.unbind(1)
    return is_match - no_match


def match_all(model: Alpro, texts: Texts, videos: Videos) -> np.ndarray:
    """Compute the logit margin (texts, videos) of every pair."""
    shape = (len(texts.tokens), len(videos.tokens))
    # Row by row, so that the margins have the order of the matrix.
    pairs = np.argwhere(np.ones(shape, bool))
    margins = match(model, texts, videos, pairs)
    return margins.view(shape).cpu().numpy()


def batches(texts: np.ndarray, lengths: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Yield rows of pairs whose texts have one length, at most `size` at a time.

    Args:
        texts: Text index (P,) of each pair.
        lengths: Number of tokens (T,) of each text.
    """
    # Sort by length, then by text: pairs of one text share its queries, keys and values.
    order = np.lexsort((texts, lengths[texts]))
    ordered_lengths = lengths[texts[order]]
    borders = np.flatnonzero(np.diff(ordered_lengths)) + 1
    for rows in np.split(order, borders):
        yield from np.split(rows, range(size, len(rows), size))
