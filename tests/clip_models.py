"""Fixtures: small CLIP and SigLIP models, in folders and as on the hub."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

REVISION = "0" * 40  # the model of `hub`


@pytest.fixture(scope="session")
def clip_folders(tmp_path_factory) -> dict[str, Path]:
    """Small random models of transformers with images of 32 x 32, texts of 24 tokens (characters)
    and dropout in training: the folders of a `clip`, a `siglip`, and the `clip` without
    safetensors, as OpenAI's are on the hub, with the prefix of a whole model."""
    import torch
    from transformers import (
        CLIPConfig,
        CLIPModel,
        CLIPTokenizer,
        SiglipConfig,
        SiglipModel,
    )

    pieces = [
        letter + end for letter in "abcdefghijklmnopqrstuvwxyz." for end in ("", "</w>")
    ]
    vocabulary = {
        piece: n
        for n, piece in enumerate(["<|startoftext|>", "<|endoftext|>", *pieces])
    }
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    sizes |= {"num_attention_heads": 2, "attention_dropout": 0.5}
    text = sizes | {"vocab_size": len(vocabulary), "max_position_embeddings": 24}
    text |= {
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 1,
        "projection_size": 16,
    }
    shapes = {
        "text_config": text,
        "vision_config": sizes | {"image_size": 32, "patch_size": 16},
    }
    torch.manual_seed(5)
    clip = CLIPModel(CLIPConfig(projection_dim=16, **shapes))
    siglip = SiglipModel(SiglipConfig(**shapes))
    folders = {}
    for name, model in {"clip": clip, "siglip": siglip}.items():
        folders[name] = tmp_path_factory.mktemp(name)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(3)  # far from initialization: labels differ
            model.logit_scale.fill_(1.5)
            if name == "siglip":
                model.logit_bias.fill_(-4)
        model.save_pretrained(folders[name])
        CLIPTokenizer(vocab=vocabulary, merges=[]).save_pretrained(folders[name])
        constants = {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
        (folders[name] / "preprocessor_config.json").write_text(json.dumps(constants))
    pickled = tmp_path_factory.mktemp("pickled")
    shutil.copytree(folders["clip"], pickled, dirs_exist_ok=True)
    (pickled / "model.safetensors").unlink()
    torch.save(clip.state_dict(prefix="clip."), pickled / "pytorch_model.bin")
    return folders | {"pickled": pickled}


@pytest.fixture
def hub(tmp_path, monkeypatch) -> Callable[..., str]:
    """hub(folder, name="my/clip"): the name of a model on the hub that was downloaded; there is no
    network."""
    from huggingface_hub import constants

    def downloaded(folder: Path, name: str = "my/clip") -> str:
        place = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
        shutil.copytree(folder, place / "snapshots" / REVISION)
        (place / "refs").mkdir()
        (place / "refs" / "main").write_text(REVISION)
        return name

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return downloaded
