"""The embeddings of prompts."""

import json

import torch

from alpro.models.folder import ModelFolder
from alpro.models.words import Templates
from alpro.stages import cache_prompts
from alpro.stages.cache_prompts import read_prompts
from alpro.stages.evaluation.encoding import encode_texts


def test_an_entity_is_the_mean_of_its_own_prompts(folders, vocabulary, tmp_path, resources):
    """Of one template for videos and of two for images."""
    templates = Templates(video=("A video of a {}.",), image=("A photo of a {}.", "one {}"))
    inputs = {"prompter": folders["prompter"], "vocabulary": vocabulary}
    cache_prompts.run(cache_prompts.Config(templates=templates), inputs, tmp_path, resources)
    prompts, entities = read_prompts(tmp_path), cache_prompts.read_entities(vocabulary)
    assert json.loads((tmp_path / "entities.json").read_text()) == entities
    prompter = ModelFolder.from_pretrained(folders["prompter"] / "model")

    def embedded(text: str) -> torch.Tensor:
        return encode_texts(prompter.model.eval(), prompter.tokenizer, [text], 64).features[0]

    for number, entity in enumerate(entities):
        torch.testing.assert_close(prompts["video"][number], embedded(f"A video of a {entity}."), atol=1e-5, rtol=0)
        mean = (embedded(f"A photo of a {entity}.") + embedded(f"one {entity}")) / 2
        torch.testing.assert_close(prompts["image"][number], mean, atol=1e-5, rtol=0)
