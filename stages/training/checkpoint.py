"""Checkpoints with bit-exact resume: safetensors and JSON in a temporary folder that is renamed."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.optim import Optimizer

from alpro.errors import InputError
from alpro.files import checksum, make_folder, publish
from alpro.log import log
from alpro.models.folder import write_tensors

Weights = dict[str, Tensor]  # parameters by name
KEPT_CHECKPOINTS = 2
FILES = {
    "model.safetensors",
    "optimizer.safetensors",
    "best.safetensors",
    "state.json",
}


@dataclass(frozen=True)
class Checkpoints:
    """Checkpoints of a training run: folders step-00000123 with model, optimizer, the best
    weights on validation, state and checksums."""

    folder: Path

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: Optimizer,
        state: dict[str, Any],
        rng: Sequence[Tensor],
        best: Weights,
    ) -> None:
        """Write the checkpoint after `step` steps, and delete all but the newest two.

        Args:
            rng: Random state of every rank.
            best: The best weights on validation; empty if there are none.

        Raises:
            OSError: If it cannot be written. Earlier checkpoints are kept.
        """
        make_folder(self.folder)

        # The folder is renamed after its checksums are written, so an incomplete one has no name.
        for unfinished in self.folder.glob(".step-*.part"):
            shutil.rmtree(unfinished, ignore_errors=True)
        temporary = self.folder / f".step-{step:08d}.part"
        temporary.mkdir()

        states = {f"random.{rank}": value for rank, value in enumerate(rng)}
        tensors = optimizer_tensors(optimizer) | states
        try:
            write_tensors(trainable(model), temporary / "model.safetensors")
            write_tensors(tensors, temporary / "optimizer.safetensors")
            write_tensors(best, temporary / "best.safetensors")
            (temporary / "state.json").write_text(json.dumps(state))
            sums = {path.name: checksum(path) for path in sorted(temporary.iterdir())}
            (temporary / "sums.json").write_text(json.dumps(sums))
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise

        target = self.folder / f"step-{step:08d}"
        shutil.rmtree(target, ignore_errors=True)
        publish(temporary, target)
        log.debug(f"checkpoint {target}")

        for old in self.all()[KEPT_CHECKPOINTS:]:
            shutil.rmtree(old)

    def all(self) -> list[Path]:
        """List the checkpoint folders, newest first."""
        return sorted(self.folder.glob("step-*"), reverse=True)

    def restore(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        rank: int = 0,
    ) -> tuple[dict[str, Any], Weights]:
        """Load the newest intact checkpoint.

        A corrupt checkpoint is logged and deleted, and the previous one is used. The random state of
        `rank` is restored; a rank that is not in the checkpoint keeps its own.

        Returns:
            The state that was saved, and the best weights; both empty if there is no checkpoint.

        Raises:
            OSError: If one cannot be read. Nothing is deleted: it may be intact.
            InputError: If another version wrote one.
        """
        for newest in self.all():
            wrong = corrupt_files(newest)
            if not wrong:
                break
            log.warning(
                f"{newest}: corrupt ({wrong}): training continues from an earlier checkpoint, or "
                "begins anew"
            )
            if rank == 0:
                shutil.rmtree(newest, ignore_errors=True)
        else:
            return {}, {}

        log.debug(f"restoring {newest}")
        # `strict=False`, because the file has no frozen weights.
        weights = load_file(newest / "model.safetensors")
        unexpected = model.load_state_dict(weights, strict=False).unexpected_keys
        assert not unexpected, unexpected

        tensors = load_file(newest / "optimizer.safetensors")
        rng = {
            key: tensors.pop(key) for key in list(tensors) if key.startswith("random.")
        }
        load_optimizer_tensors(optimizer, tensors)
        if f"random.{rank}" in rng:
            set_random_state(rng[f"random.{rank}"])
        state = json.loads((newest / "state.json").read_text())
        return state, load_file(newest / "best.safetensors")


def trainable(model: nn.Module) -> Weights:
    """Return the trainable parameters by name. Checkpoints do not store the frozen prompter."""
    weights = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            weights[name] = parameter.detach().contiguous()
    return weights


def copy_trainable(model: nn.Module) -> Weights:
    """Return copies of the trainable parameters on the CPU, by name."""
    weights = trainable(model)
    return {name: weight.to("cpu", copy=True) for name, weight in weights.items()}


def optimizer_tensors(optimizer: Optimizer) -> Weights:
    """Return the optimizer's state as tensors named `<parameter index>.<state>`."""
    tensors = {}
    for index, values in optimizer.state_dict()["state"].items():
        for name, value in values.items():
            tensors[f"{index}.{name}"] = torch.as_tensor(value).detach().cpu()
    return tensors


def load_optimizer_tensors(optimizer: Optimizer, tensors: Weights) -> None:
    """Load the tensors of `optimizer_tensors` into an optimizer."""
    state: dict[int, Weights] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        state.setdefault(int(index), {})[name] = value

    # Settings such as weight decay come from the configuration and not from the checkpoint.
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def random_state() -> Tensor:
    """Return the random state of this rank: the bytes of the CPU's generator, followed by the bytes
    of its GPU's, if it uses one: asking an unused GPU would create a context there."""
    cpu = torch.get_rng_state()
    return (
        torch.cat([cpu, torch.cuda.get_rng_state()])
        if torch.cuda.is_initialized()
        else cpu
    )


def set_random_state(state: Tensor) -> None:
    """Restore a state of `random_state`."""
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size])
    if torch.cuda.is_initialized() and len(state) > size:
        torch.cuda.set_rng_state(state[size:])


def corrupt_files(folder: Path) -> str:
    """Return the names of the corrupt or missing files of a checkpoint, or why they are; empty if it
    is intact.

    Raises:
        OSError: If they cannot be read.
        InputError: If another version wrote it: it is intact, and not to be deleted.
    """
    try:
        sums = json.loads((folder / "sums.json").read_text())
        wrong = [
            name for name, digest in sums.items() if checksum(folder / name) != digest
        ]
    except (FileNotFoundError, NotADirectoryError, ValueError, AttributeError) as error:
        return str(error)

    if sums.keys() != FILES:
        raise InputError(
            f"{folder}: another version of alpro-pipeline wrote this checkpoint; finish the training "
            f"with it, or delete {folder.parent} to begin anew"
        )
    return ", ".join(wrong)
