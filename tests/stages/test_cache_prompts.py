"""The embeddings of prompts, and how much those of an entity disagree."""

import json
import math

import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import normalize

from alpro.models.alpro import Prompter
from alpro.models.folder import ModelFolder
from alpro.models.templates import Templates
from alpro.stages import cache_prompts
from alpro.stages.cache_prompts import compare_prompts, disagreement, read_prompts
from alpro.stages.encoding.encode import encode_texts


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


def test_one_prompt_agrees_with_itself_and_two_disagree_by_entity_and_kind(cached):
    out, outcome = cached
    rows = pq.read_table(out / "prompts.parquet").to_pylist()
    prompts, entities = read_prompts(out), json.loads((out / "entities.json").read_text())
    assert sorted(row["entity"] for row in rows) == sorted(entities)
    assert all(row["disagreement_video"] < 1e-5 for row in rows)
    values = [row["disagreement_image"] for row in rows]
    assert values == sorted(values, reverse=True)
    assert values[0] > 1e-4
    for row in rows:
        length = prompts["image"][entities.index(row["entity"])].norm().item()
        assert row["disagreement_image"] == pytest.approx(1 - length, abs=1e-6)
    assert outcome.metrics["prompts/image/disagreement"] == pytest.approx(sum(values) / len(values), abs=1e-6)
    assert outcome.metrics["prompts/image/disagreement_max"] == pytest.approx(values[0], abs=1e-6)
    assert outcome.metrics["prompts/video/disagreement"] < 1e-5


@pytest.mark.parametrize(
    ("degrees", "expected"),
    [
        ((0, 0, 0), 0.0),
        ((0, 120, 240), 1.0),
        ((-60, 60), 0.5),
        ((0, 180), 1.0),
        ((10, 10, 70, 70), 1 - math.sqrt(0.75)),
    ],
)
def test_disagreement_is_one_minus_the_mean_cosine_to_the_mean(degrees, expected):
    vectors = torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])
    mean = vectors.mean(dim=0, keepdim=True)
    assert disagreement(mean).item() == pytest.approx(expected, abs=1e-6)
    if expected < 1:
        assert (vectors @ normalize(mean, dim=1).T).mean().item() == pytest.approx(1 - expected, abs=1e-6)


def test_the_nearest_entity_depends_only_on_directions():
    video = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 0.1]])
    table, metrics = compare_prompts({"video": video, "image": video}, ["east", "north-east", "north"])
    rows = {row["entity"]: row for row in table.to_pylist()}
    assert list(rows) == ["north", "north-east", "east"]
    assert [rows[name]["nearest"] for name in ("east", "north-east", "north")] == ["north-east", "east", "north-east"]
    assert metrics["prompts/nearest_other_cosine"] == pytest.approx(math.sqrt(0.5))
