"""Checkpoints that continue to the same losses to the last bit: safetensors and JSON, written whole, then renamed."""

import json
import os
import re
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from alpro.files import checksum

KEEP = 2


class Checkpoints:
    """The checkpoints of one training run: folders step-00000123 with model, optimiser, state and checksums."""

    def __init__(self, folder: Path):
        self.folder = folder

    def save(
        self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any], random: list[Tensor]
    ) -> None:
        """Writes the checkpoint of `step` finished steps, and deletes all but the last two.

        `random` is the random state of every rank. Raises OSError where it cannot be written; the earlier ones stand.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".step-{step:08d}.part"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        states = {f"random.{rank}": value for rank, value in enumerate(random)}
        try:
            write_tensors(trainable(model), temporary / "model.safetensors")
            write_tensors(flatten(optimizer) | states, temporary / "optimizer.safetensors")
            (temporary / "state.json").write_text(json.dumps(state))
            sums = {path.name: checksum(path) for path in sorted(temporary.iterdir())}
            (temporary / "sums.json").write_text(json.dumps(sums))
        except OSError:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        target = self.folder / f"step-{step:08d}"
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
        for old in self.all()[KEEP:]:
            shutil.rmtree(old)
        # The best weights that a checkpoint knows stay as long as it does.
        with suppress(OSError, ValueError):  # a damaged checkpoint is noticed where it is read
            known = {json.loads((path / "state.json").read_text()).get("best_step") for path in self.all()}
            for best in self.folder.glob("best-*.safetensors"):
                if int(best.stem.split("-")[1]) not in known:
                    best.unlink()

    def all(self) -> list[Path]:
        """Checkpoints, newest first."""
        found = [p for p in self.folder.glob("step-*") if re.fullmatch(r"step-\d{8}", p.name)]
        return sorted(found, reverse=True)

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer, rank: int = 0) -> dict[str, Any] | None:
        """Loads the newest checkpoint that is whole and returns its state; None where there is none.

        A damaged one is said so on a line, deleted, and the one before it used. The random state is that of `rank`;
        a rank that the checkpoint does not know keeps its own.
        """
        for folder in self.all():
            if bad := damage(folder):
                print(f"{folder}: damaged ({bad}); using the checkpoint before it", file=sys.stderr, flush=True)
                if rank == 0:
                    shutil.rmtree(folder, ignore_errors=True)
                continue
            unknown = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False).unexpected_keys
            assert not unknown, unknown
            tensors = load_file(folder / "optimizer.safetensors")
            random = {key: tensors.pop(key) for key in list(tensors) if key.startswith("random.")}
            unflatten(optimizer, tensors)
            if f"random.{rank}" in random:
                set_random_state(random[f"random.{rank}"])
            return json.loads((folder / "state.json").read_text())
        return None


def write_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """Writes a safetensors file. Raises OSError where it cannot, as on a full disk."""
    try:
        save_file(tensors, path)
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        if number is None:
            raise
        raise OSError(int(number[1]), os.strerror(int(number[1])), str(path)) from error


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The weights that training moves, by name: a frozen prompter need not be stored with every checkpoint."""
    return {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}


def flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as tensors named `<parameter number>.<state>`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": torch.as_tensor(value).detach().cpu()
        for number, values in state.items()
        for name, value in values.items()
    }


def unflatten(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def random_state() -> Tensor:
    """The state of the generators that this rank draws from: the CPU's, and a GPU's behind it."""
    cpu = torch.get_rng_state()
    return torch.cat([cpu, torch.cuda.get_rng_state()]) if torch.cuda.is_available() else cpu


def set_random_state(state: Tensor) -> None:
    size = len(torch.get_rng_state())
    torch.set_rng_state(state[:size])
    if torch.cuda.is_available() and len(state) > size:
        torch.cuda.set_rng_state(state[size:])


def damage(folder: Path) -> str:
    """What is wrong with a checkpoint; empty where it is whole."""
    try:
        sums = json.loads((folder / "sums.json").read_text())
        wrong = [name for name, digest in sums.items() if checksum(folder / name) != digest]
    except (OSError, ValueError, AttributeError) as error:
        return str(error)
    missing = {"model.safetensors", "optimizer.safetensors", "state.json"} - sums.keys()
    return ", ".join([*wrong, *missing])
