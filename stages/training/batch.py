"""The batch of a training step, and what is sampled for it: masked tokens for MLM and crops for PEM
(paper, section 3.2)."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alpro.models.word_pieces import pad, pad_length


@dataclass
class Batch:
    """One rank's part of a step's batch. Frames are uint8; the objective normalizes them on its
    device."""

    step: int
    kind: str
    ids: list[str]
    # (B,) index of each example's video; captions of the same video share it.
    video: Tensor
    frames: Tensor  # (B, T, 3, H, W) uint8
    text: Tensor  # (B, L) token ids
    mask: Tensor  # (B, L) 1 = token, 0 = padding
    uniforms: Tensor  # (B, 2) random numbers in [0, 1) for hard negatives
    masked: Tensor | None = None  # (B, L) token ids after masking (MLM)
    labels: Tensor | None = None  # (B, L) ids of the masked tokens, -100 elsewhere
    boxes: Tensor | None = None  # (B, 4) crops in patches (PEM)
    # (B, M) probabilities of the entities in the crops; None: the objective asks the prompter
    pseudo_labels: Tensor | None = None
    answers: Tensor | None = None  # (B,) answer indices, -100 = not in the vocabulary
    max_masked: int = 0  # upper bound of the masked tokens per text; 0: unknown
    # Lengths of the texts; empty if all batches have one length
    lengths: list[int] = field(default_factory=list)
    # Errors of the examples that were replaced.
    unreadable: list[str] = field(default_factory=list)

    def map(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """Return the batch with `change` applied to each tensor."""
        tensors: dict[str, Any] = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                tensors[name] = change(value)
        return replace(self, **tensors)

    def to(self, device: torch.device) -> "Batch":
        # The memory is pinned, so it is copied while the GPU computes.
        return self.map(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "Batch":
        return self.map(Tensor.pin_memory)

    def split(self, count: int) -> list["Batch"]:
        """Split into equal micro-batches in order, for gradient accumulation. Each is padded to its
        own longest text."""
        if count == 1:
            return [self]

        size = len(self.ids) // count
        micro_batches = []
        for start in range(0, count * size, size):
            rows = slice(start, start + size)
            micro_batch = replace(
                self.map(itemgetter(rows)),
                ids=self.ids[rows],
                lengths=self.lengths[rows],
            )
            if micro_batch.lengths:
                length = pad_length(max(micro_batch.lengths))
                for name in ("text", "mask", "masked", "labels"):
                    tokens = getattr(micro_batch, name)
                    if tokens is not None:
                        setattr(micro_batch, name, tokens[:, :length])
            micro_batches.append(micro_batch)
        return micro_batches


def collate(step: int, kind: str, items: list[dict], pad_id: int, length: int) -> Batch:
    """Collate examples to a batch. Texts are padded to `length`, or if it is 0 to the longest."""

    def column(name: str) -> list[Any]:
        return [item[name] for item in items]

    def padded(rows: list[np.ndarray], fill: int) -> Tensor:
        return torch.from_numpy(pad(rows, fill, length))

    texts = column("ids")
    batch = Batch(
        step=step,
        kind=kind,
        ids=column("id"),
        video=torch.tensor(column("video")),
        frames=torch.from_numpy(np.stack(column("frames"))),
        text=padded(texts, pad_id),
        mask=padded([np.ones_like(text) for text in texts], 0),
        uniforms=torch.from_numpy(np.stack(column("uniforms"))),
        lengths=[] if length else [len(text) for text in texts],
    )

    # Only some objectives need these.
    if "masked" in items[0]:
        batch.masked = padded(column("masked"), pad_id)
        batch.labels = padded(column("labels"), -100)
        # Counted here: in the objective it would be a host-device sync.
        masked_words = (batch.labels != -100).sum(1)
        batch.max_masked = pad_length(max(1, int(masked_words.max())))
    if "box" in items[0]:
        batch.boxes = torch.tensor(column("box"))
    if "answer" in items[0]:
        batch.answers = torch.tensor(column("answer"))
    return batch


def mask_words(
    ids: np.ndarray,
    mask_id: int,
    vocab_size: int,
    probability: float,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Mask tokens as BERT does: 80 % of the selected tokens become [MASK], 10 % a random token, and
    10 % are unchanged.

    Args:
        ids: Token ids (L,). The first and the last one, [CLS] and [SEP], are never selected.
        probability: Of a token to be selected.

    Returns:
        The masked ids (L,) and the labels (L,), -100 for tokens that are not selected.
    """
    selected = rng.random(ids.shape) < probability
    selected[[0, -1]] = False
    action = rng.random(ids.shape)
    random_ids = rng.integers(0, vocab_size, ids.shape)

    masked = np.where(selected & (action < 0.8), mask_id, ids)
    masked = np.where(selected & (action >= 0.8) & (action < 0.9), random_ids, masked)
    return masked.astype(ids.dtype), np.where(selected, ids, -100)
