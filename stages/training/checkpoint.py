"""Checkpoints that continue to the same losses to the last bit: safetensors and JSON, written whole, then renamed."""

import hashlib
import json
import os
import re
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

KEEP = 2


class Checkpoints:
    """The checkpoints of one training run: folders step-00000123 with model, optimiser and state."""

    def __init__(self, folder: Path):
        self.folder = folder

    def save(self, step: int, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
        """Writes the checkpoint of `step` finished steps, and deletes all but the last two."""
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".step-{step:08d}.{os.getpid()}.part"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        save_file(trainable(model), temporary / "model.safetensors")
        save_file(
            flatten(optimizer) | {"rng.cpu": torch.get_rng_state()} | cuda_rng(), temporary / "optimizer.safetensors"
        )
        sums = {name: checksum(temporary / name) for name in ("model.safetensors", "optimizer.safetensors")}
        (temporary / "state.json").write_text(json.dumps({"step": step, "sums": sums, **state}))
        target = self.folder / f"step-{step:08d}"
        shutil.rmtree(target, ignore_errors=True)
        os.replace(temporary, target)
        for old in self.all()[KEEP:]:
            shutil.rmtree(old)

    def all(self) -> list[Path]:
        """Whole checkpoints, newest first."""
        found = [p for p in self.folder.glob("step-*") if re.fullmatch(r"step-\d{8}", p.name)]
        return sorted(found, reverse=True)

    def restore(self, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any] | None:
        """Loads the newest checkpoint that is whole and returns its state; None where there is none.

        A damaged one is said so on a line and the one before it used.
        """
        for folder in self.all():
            try:
                state = json.loads((folder / "state.json").read_text())
                bad = [name for name, digest in state["sums"].items() if checksum(folder / name) != digest]
            except (OSError, ValueError, KeyError) as error:
                bad = [str(error)]
            if bad:
                print(
                    f"{folder}: damaged ({', '.join(bad)}); using the checkpoint before it", file=sys.stderr, flush=True
                )
                continue
            missing = model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
            assert not missing.unexpected_keys
            tensors = load_file(folder / "optimizer.safetensors")
            torch.set_rng_state(tensors.pop("rng.cpu"))
            if "rng.cuda" in tensors:
                torch.cuda.set_rng_state(tensors.pop("rng.cuda"))
            unflatten(optimizer, tensors)
            return state
        return None

    def clear(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)


def trainable(model: nn.Module) -> dict[str, Tensor]:
    """The weights that training moves, by name: a frozen prompter need not be stored with every checkpoint."""
    return {name: p.detach().contiguous() for name, p in model.named_parameters() if p.requires_grad}


def flatten(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimiser's state as tensors named `<parameter number>.<state>`."""
    state = optimizer.state_dict()["state"]
    return {
        f"{number}.{name}": torch.as_tensor(value).detach().clone()
        for number, values in state.items()
        for name, value in values.items()
    }


def unflatten(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor]) -> None:
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        number, name = key.split(".", 1)
        state.setdefault(int(number), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def cuda_rng() -> dict[str, Tensor]:
    return {"rng.cuda": torch.cuda.get_rng_state()} if torch.cuda.is_available() else {}


def checksum(path: Path) -> str:
    """SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
