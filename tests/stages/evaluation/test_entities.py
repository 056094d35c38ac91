"""How often the prompter's best entity is in the clip, and the best constant guess."""

from types import SimpleNamespace

import pytest
import torch

from alpro.stages.evaluation import entities as entities_module
from alpro.stages.evaluation.encode import Videos
from alpro.stages.evaluation.entities import entity_accuracy, true_entities

ENTITIES = ["ball", "box", "star"]


@pytest.mark.parametrize(
    ("meta", "captions", "truth"),
    [
        ({"entities": ["star", "moon"]}, ["a ball"], ["star"]),  # the manifest's word comes first
        ({}, ["A Ball above a box."], ["ball", "box"]),
        ({}, ["two balls", "a sandbox"], []),
        ({"entities": "ball"}, ["a star"], ["star"]),
        ({"entities": []}, ["a star"], []),
    ],
)
def test_what_is_known_to_be_in_a_sample(meta, captions, truth):
    assert true_entities({"meta": meta, "captions": captions}, ENTITIES) == truth


@pytest.fixture
def named(corpus_of, tmp_path, monkeypatch):
    """named(features): the score of a prompter that gives the videos these features, with prompts along the axes."""
    rows = [
        {"id": "a", "split": "test", "meta": {"entities": ["ball"]}, "captions": ["x"]},
        {"id": "b", "split": "test", "meta": {"entities": ["moon"]}, "captions": ["x"]},  # none that is known
        {"id": "c", "split": "test", "meta": {"entities": ["ball", "star"]}, "captions": ["x"]},
        {"id": "d", "split": "test", "meta": {"entities": ["box"]}, "captions": ["x"]},
        {"id": "e", "split": "train", "meta": {"entities": ["box"]}, "captions": ["x"]},
    ]
    folder = corpus_of(tmp_path, rows)

    def score(features, split="test"):
        encoded = []

        def encode(objective, reader, numbers, device):
            encoded.extend(numbers)
            return Videos(torch.zeros(0), torch.tensor(features))

        monkeypatch.setattr(entities_module, "encode_videos", encode)
        monkeypatch.setattr(entities_module.NormalizedModel, "from_folder", lambda prompter, device: None)
        prompts = {"video": torch.eye(3), "image": torch.zeros(3, 3)}
        actual = entity_accuracy(SimpleNamespace(), prompts, ENTITIES, folder, split, torch.device("cpu"))
        return actual, encoded

    return score


def test_accuracy_is_over_the_clips_with_a_known_entity(named):
    actual, encoded = named([[0.9, 0.1, 0.0], [0.0, 0.2, 0.4], [0.3, 0.2, 0.1]])
    assert encoded == [0, 2, 3]
    assert actual.named == ["ball", "star", "ball"]
    assert actual.truth == [["ball"], ["ball", "star"], ["box"]]
    assert actual.ids == ["a", "c", "d"]
    assert actual.accuracy == pytest.approx(200 / 3)
    assert actual.best_constant == pytest.approx(200 / 3)  # "ball", in two of three


def test_nothing_known_is_no_score(named):
    assert named([], split="validation")[0] is None
