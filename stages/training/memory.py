"""The memory of a training step, from shapes alone: what a stage needs, before it has data.

The step runs on PyTorch's fake tensors, which have a shape and a device but no data. A dispatch mode follows every
storage from its first use until it is freed, so that the peak has the saved activations, the gradients as the backward
pass creates them, and the largest temporaries. It differs from the allocations that PyTorch's profiler records by less
than 1 % (docs/performance.md). Memory of libraries (workspaces, a CUDA context), fragmentation, and what processes
receive of each other are not included.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary, finalize

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alpro.models.alpro import ModelConfig
from alpro.models.text import Layers
from alpro.models.timesformer import TimeSformer
from alpro.models.word_pieces import padded
from alpro.stages.training.examples import Batch
from alpro.stages.training.objective import Objective

STATES = 2  # of AdamW, each as large as the weights: the means of the gradient and of its square


@dataclass(frozen=True)
class StepMemory:
    """Bytes of a training step in one process, on its device.

    weights: of the model and of a frozen prompter. optimizer: its states, which exist from the first step on. curve:
    the bytes of gradients and of activations (everything else) at the moments that may decide the peak, in order.
    """

    weights: int
    gradients: int
    optimizer: int
    curve: tuple[tuple[int, int], ...]

    @property
    def activations(self) -> int:
        """The maximum of the activations and temporaries."""
        return max(activations for _, activations in self.curve)

    @property
    def peak(self) -> int:
        """The maximum of all together. It is less than the sum: gradients are created while activations are freed."""
        return self.weights + self.optimizer + max(map(sum, self.curve))

    def scale(self, limit: float) -> float:
        """The largest multiple of the batch whose peak is within a limit in bytes; negative if there is none.

        All activations count as proportional to the batch, also the few that are not.
        """
        room = limit - self.weights - self.optimizer
        return min((room - gradients) / activations for gradients, activations in self.curve)

    def with_more(self, weights: int = 0, gradients: int = 0) -> "StepMemory":
        """The memory with more bytes of weights, such as another model's, or of gradients, such as DDP's buckets."""
        curve = tuple((g + gradients, a) for g, a in self.curve)
        return replace(self, weights=self.weights + weights, gradients=self.gradients + gradients, curve=curve)


class LiveBytes(TorchDispatchMode):
    """Follows the bytes of live storages, except those of `known` tensors."""

    def __init__(self, known: Iterable[Tensor]) -> None:
        super().__init__()
        self.known: WeakKeyDictionary[Any, None] = WeakKeyDictionary(
            {tensor.untyped_storage(): None for tensor in known}
        )
        self.live = self.gradients = 0
        self.largest: dict[int, int] = {}  # by the bytes of the gradients, in order: the most of everything else

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = function(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor):
                self.add(result)
        return results

    def add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        if storage not in self.known:
            size = storage.nbytes()
            self.known[storage] = None
            self.live += size
            finalize(storage, self.free, size)
            self.largest[self.gradients] = max(self.largest.get(self.gradients, 0), self.live - self.gradients)

    def free(self, size: int) -> None:
        self.live -= size

    def add_gradient(self, parameter: Tensor) -> None:
        """The gradient of a parameter exists: it counts as a gradient, and no longer as an activation."""
        self.gradients += size_of(parameter)

    def curve(self) -> tuple[tuple[int, int], ...]:
        """The pairs of gradients and activations of which no other has as much of both."""
        kept: list[tuple[int, int]] = []
        for gradients, activations in reversed(self.largest.items()):
            if not kept or activations > kept[-1][1]:
                kept.append((gradients, activations))
        return tuple(reversed(kept))


def size_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().nbytes()


class StepMemories:
    """The memory of steps of an objective, which is built without data on a device.

    mixed_precision: bfloat16 autocast, on a GPU only.
    """

    def __init__(self, objective: Callable[[], Objective], device: torch.device, mixed_precision: bool = False):
        self.mode, self.device = FakeTensorMode(), device
        self.autocast = mixed_precision and device.type == "cuda"
        self.gradient_created: Callable[[Tensor], None] = lambda parameter: None
        with self.mode, torch.device(device):
            self.objective = objective().train()
        for name in self.objective.unused_parameters:
            getattr(self.objective.model, name).requires_grad_(False)
        self.trained = [p for p in self.objective.parameters() if p.requires_grad]
        for parameter in self.trained:
            parameter.register_post_accumulate_grad_hook(lambda p: self.gradient_created(p))

    def __call__(
        self, batch: Callable[[], Batch], checkpoint_activations: bool = False, accumulation_steps: int = 1
    ) -> StepMemory:
        """batch: builds the batch of a step, which has `accumulation_steps` micro-batches."""
        for part in self.objective.modules():
            if isinstance(part, TimeSformer | Layers):
                part.checkpoint_activations = checkpoint_activations
        live = LiveBytes((*self.objective.parameters(), *self.objective.buffers()))
        with self.mode:
            with torch.device(self.device):
                examples = batch()
            for value in vars(examples).values():
                if isinstance(value, Tensor):
                    live.add(value)
            with live, torch.autocast(self.device.type, torch.bfloat16, enabled=self.autocast):
                self.run(examples, accumulation_steps, live)
        self.objective.zero_grad(set_to_none=True)
        gradients = sum(map(size_of, self.trained))
        return StepMemory(total(self.objective), gradients, STATES * gradients, live.curve())

    def run(self, batch: Batch, accumulation_steps: int, live: LiveBytes) -> None:
        """Forward and backward pass; metrics are kept as long as in training."""
        self.gradient_created = live.add_gradient
        if accumulation_steps > 1:  # a later micro-batch: all gradients exist
            self.gradient_created = lambda parameter: None
            for parameter in self.trained:
                parameter.grad = torch.empty_like(parameter)
                live.add_gradient(parameter)
        loss, _metrics = self.objective(batch.split(accumulation_steps)[0])
        loss.backward()


def total(module: nn.Module) -> int:
    """Bytes of the parameters and buffers of a module; shared storages count once."""
    storages = {t.untyped_storage()._cdata: size_of(t) for t in (*module.parameters(), *module.buffers())}
    return sum(storages.values())


def batch_without_data(
    size: int,
    shape: ModelConfig,
    max_text_tokens: int,
    *,
    mlm_probability: float | None = None,
    crops: int = 1,
    answers: bool = False,
    pseudo_labels: int = 0,
    verb_labels: int = 0,
) -> Batch:
    """A batch of `size` videos with the longest texts, on torch's default device. Only its shapes mean anything.

    mlm_probability: unless None, with masked tokens and `crops` candidates for the crop. answers: with answers.
    pseudo_labels, verb_labels: number of entities and verbs, for an objective without a prompter.
    """
    video = shape.video
    length = padded(max_text_tokens)
    whole = partial(torch.ones, dtype=torch.long)
    batch = Batch(
        step=0,
        kind="video",
        ids=[""] * size,
        video=torch.arange(size),
        frames=torch.empty(size, video.frames, 3, video.image_size, video.image_size, dtype=torch.uint8),
        text=whole(size, length),
        mask=whole(size, length),
        uniforms=torch.empty(size, 2, dtype=torch.double),
    )
    if mlm_probability is not None:
        batch.masked, batch.labels = whole(size, length), whole(size, length)
        # The most in a batch is about twice the mean.
        batch.max_masked = min(length, padded(max(1, round(2 * mlm_probability * max_text_tokens))))
        batch.boxes = whole(size, 4) if crops == 1 else whole(size, crops, 4)
    if answers:
        batch.answers = whole(size)
    if pseudo_labels:
        batch.pseudo_labels = torch.empty(size, pseudo_labels)
    if verb_labels:
        batch.verb_labels = torch.empty(size, verb_labels)
    return batch
