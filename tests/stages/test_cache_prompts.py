"""The embeddings of prompts."""

import json

import pytest
import torch

from alpro.models.alpro import Prompter
from alpro.models.folder import ModelFolder
from alpro.models.words import Templates
from alpro.stages import cache_prompts
from alpro.stages.cache_prompts import read_prompts
from alpro.stages.evaluation.encoding import encode_texts


@pytest.fixture(scope="module")
def prompter(tmp_path_factory, tiny_model, tokenizer):
    torch.manual_seed(0)
    root = tmp_path_factory.mktemp("prompter")
    folder = ModelFolder("prompter", Prompter(tiny_model(tokenizer.get_vocab_size())).eval(), tokenizer)
    folder.save_pretrained(root / "model")
    return root, folder


@pytest.fixture(scope="module")
def cached(prompter, vocabulary, tmp_path_factory, resources):
    """The prompts of one template for videos and two for images, and the outcome of the stage."""
    out = tmp_path_factory.mktemp("prompts")
    templates = Templates(video=("A video of a {}.",), image=("A photo of a {}.", "one {}"))
    config = cache_prompts.Config(templates=templates)
    return out, cache_prompts.run(config, {"prompter": prompter[0], "vocabulary": vocabulary}, out, resources)


def test_an_entity_is_the_mean_of_its_own_prompts(cached, prompter, vocabulary):
    prompts, entities = read_prompts(cached[0]), cache_prompts.read_entities(vocabulary)
    assert json.loads((cached[0] / "entities.json").read_text()) == entities

    def embedded(text: str) -> torch.Tensor:
        model, tokenizer = prompter[1].model, prompter[1].tokenizer
        return encode_texts(model, tokenizer, [text], 64).features[0]

    for number, entity in enumerate(entities):
        torch.testing.assert_close(prompts["video"][number], embedded(f"A video of a {entity}."), atol=1e-5, rtol=0)
        mean = (embedded(f"A photo of a {entity}.") + embedded(f"one {entity}")) / 2
        torch.testing.assert_close(prompts["image"][number], mean, atol=1e-5, rtol=0)
