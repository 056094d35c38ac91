"""Models of every task, and the videos of the sample."""

import pytest
import torch

from alpro.models.alpro import Alpro, Prompter
from alpro.models.folder import ModelFolder
from alpro.stages import cache_prompts


@pytest.fixture(scope="session")
def folders(tmp_path_factory, tiny_model, vocabulary, tokenizer, resources):
    """Model folders by task, and the prompts of the prompter."""
    config, root = tiny_model(tokenizer.get_vocab_size()), tmp_path_factory.mktemp("folders")
    torch.manual_seed(0)
    folders = {
        "prompter": ModelFolder("prompter", Prompter(config), tokenizer),
        "pretrain": ModelFolder("pretrain", Alpro(config, 8), tokenizer, entities=list("abcdefgh")),
        "retrieval": ModelFolder("retrieval", Alpro(config), tokenizer),
        "qa": ModelFolder("qa", Alpro(config, answers=3), tokenizer, answers=["ball", "box", "left"]),
    }
    for name, folder in folders.items():
        folder.save_pretrained(root / name / "model")  # as in an artifact
    prompts = root / "prompts"
    prompts.mkdir()
    inputs = {"prompter": root / "prompter", "vocabulary": vocabulary}
    cache_prompts.run(cache_prompts.Config(), inputs, prompts, resources)
    return {name: root / name for name in (*folders, "prompts")}


@pytest.fixture(scope="session")
def videos(sample):
    return sorted((sample / "videos").glob("test-*.mp4"))[:3]
