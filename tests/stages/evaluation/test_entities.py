"""How often the prompter's best entity is in the clip, and the best constant guess."""

from types import SimpleNamespace

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn

from alpro.inference.encoding import Videos
from alpro.models.frames import NormalizedModel
from alpro.shards.reader import ShardReader
from alpro.stages.evaluation import entities as entities_module
from alpro.stages.evaluation.entities import (
    EntityPrediction,
    add_crops,
    add_entities,
    best_constant,
    entities_in_crop,
    entities_of_clips,
    entities_of_crops,
    true_entities,
)
from alpro.stages.evaluation.results import Results
from alpro.stages.evaluation.statistics import calibration

ENTITIES = ["ball", "box", "star"]


@pytest.mark.parametrize(
    ("meta", "captions", "truth"),
    [
        ({"entities": ["star", "moon"]}, ["a ball"], ["star"]),  # the manifest's word comes first
        ({}, ["A Ball's place is above a 'box'."], ["ball", "box"]),
        ({}, ["two balls", "a sandbox"], []),
        ({"entities": "ball"}, ["a star"], ["star"]),
        ({"entities": []}, ["a star"], []),
    ],
)
def test_what_is_known_to_be_in_a_sample(meta, captions, truth):
    assert true_entities({"meta": meta, "captions": captions}, ENTITIES) == truth


@pytest.mark.parametrize(
    ("captions", "truth"),
    [
        (["एक बिल्ली दौड़ती है"], "बिल्ली"),  # vowels are combining marks
        (["یک می\u200cخواهم"], "می\u200cخواهم"),  # a joiner within a word
        (["un cafe\u0301 noir"], "caf\u00e9"),  # decomposed, as on macOS
        (["a man eats Ice-Cream"], "ice cream"),
        (["一只猫在跑"], "猫"),  # written without spaces
        (["แมวกำลังวิ่ง"], "แมว"),
    ],
)
def test_an_entity_of_any_script_is_found_in_captions(captions, truth):
    entities = ["बिल", "می", "cafe", "cream", "狗", "หมา", truth]
    found = true_entities({"meta": {}, "captions": captions}, entities)
    assert found == (["cream", truth] if truth == "ice cream" else [truth])


def test_a_phrase_is_of_one_caption():
    assert true_entities({"meta": {}, "captions": ["some ice", "cream"]}, ["ice cream"]) == []


ROWS = [
    {"id": "a", "split": "test", "meta": {"entities": ["ball"]}, "captions": ["x"]},
    {
        "id": "b",
        "split": "test",
        "meta": {"entities": ["moon"]},
        "captions": ["x"],
    },  # none that is known
    {"id": "c", "split": "test", "meta": {"entities": ["ball", "star"]}, "captions": ["x", "y"]},
    {"id": "d", "split": "test", "kind": "image", "meta": {"entities": ["box"]}, "captions": ["x"]},
    {"id": "e", "split": "train", "meta": {"entities": ["box"]}, "captions": ["x"]},
]


@pytest.fixture
def folder(corpus_of, tmp_path):
    return corpus_of(tmp_path / "corpus", ROWS)


def test_accuracy_is_over_the_clips_with_a_known_entity(folder, monkeypatch):
    """Of a prompter with prompts along the axes."""
    encoded = []

    def encode(encoder, reader, numbers):
        encoded.extend(numbers)
        return Videos(
            torch.zeros(0), torch.tensor([[0.9, 0.1, 0.0], [0.0, 0.2, 0.4], [0.3, 0.2, 0.1]])
        )

    monkeypatch.setattr(entities_module, "encode_videos", encode)
    actual = entities_of_clips(None, torch.eye(3), ENTITIES, ShardReader(folder, "test"))
    assert encoded == [0, 2, 3]
    assert actual == [
        EntityPrediction("a", "x", ["ball"], "ball"),
        EntityPrediction("c", "x | y", ["ball", "star"], "star"),
        EntityPrediction("d", "x", ["box"], "ball"),
    ]
    assert best_constant([clip.truth for clip in actual], ENTITIES) == pytest.approx(
        200 / 3
    )  # "ball", in two of three


def test_nothing_known_is_no_score(folder, tmp_path):
    assert entities_of_clips(None, torch.eye(3), ENTITIES, ShardReader(folder, "validation")) == []
    results = Results("test", tmp_path)
    add_entities(results, [], ENTITIES)
    add_crops(results, [], ENTITIES, 0.2)
    assert results.rows == []


class Halves(nn.Module):
    """A prompter that names the entity of the corner of a crop, and is certain of crops of the left
    half."""

    def __init__(self, grid: int):
        super().__init__()
        video = SimpleNamespace(grid=grid, frames=2, image_size=8)
        self.config = SimpleNamespace(video=video)
        self.seen = list[Tensor]()

    def pseudo_labels(
        self, frames: Tensor, boxes: Tensor, prompts: Tensor, black: Tensor
    ) -> Tensor:
        self.seen.append(boxes)
        assert frames.shape == (len(boxes), 2, 3, 8, 8)
        assert (black == -1).all()  # -mean / std
        certain = torch.tensor([0.6, 0.3, 0.1])
        return torch.stack(
            [certain.roll(int(box[1] > 0)) * (1 if box[0] == 0 else 0.5) for box in boxes]
        )


def test_every_clip_with_a_known_entity_has_crops_with_a_fixed_seed(folder):
    reader = ShardReader(folder, "test", exclude={"d"})
    model = Halves(grid=4)
    encoder = NormalizedModel(model, (0.5,) * 3, (0.5,) * 3)
    actual, again = (
        entities_of_crops(encoder, torch.eye(3), ENTITIES, reader, 20) for _ in range(2)
    )
    boxes = [box for boxes in model.seen for box in boxes.tolist()]
    assert [crop.id for crop in actual] == ["a", "c"] * 20
    assert [list(crop.box) for crop in (*actual, *again)] == boxes
    assert actual == again
    assert {0.3 <= height * width / 16 <= 0.5 for _, _, width, height in boxes} == {True}
    assert {crop.named for crop in actual} == {"ball", "box"}
    for crop in actual:
        assert crop.named == ("box" if crop.box[1] > 0 else "ball")
        assert crop.probability == pytest.approx(0.6 if crop.box[0] == 0 else 0.3)
        assert crop.truth == {"a": ["ball"], "c": ["ball", "star"]}[crop.id]


def crop(name: str, named: str, probability: float, *truth: str) -> EntityPrediction:
    return EntityPrediction(name, "x", list(truth), named, probability, (0, 0, 2, 3))


def test_the_accuracy_of_crops_and_their_calibration(tmp_path):
    """Of five crops that show an entity 3 are right; of the 4 that are kept 2, one of which shows
    none; the sure one is right. The best constant is "ball" in 3 of 5, "box" in 2 of 4 and in the
    sure one."""
    some = [
        crop("a", "ball", 0.1, "ball"),
        crop("a", "star", 0.1, "ball"),
        crop("a", "star", 0.5, "ball"),
        crop("b", "box", 0.2, "box"),
        crop("b", "star", 0.9, "box", "star"),
        crop("c", "star", 0.6),
    ]
    results = Results("test", tmp_path)
    add_crops(results, some, ENTITIES, 0.2)
    assert [(row["metric"], row["items"], row["value"], row["chance"]) for row in results.rows] == [
        ("crops that show an entity", 5, pytest.approx(60), pytest.approx(60)),
        ("crops that PEM keeps", 4, pytest.approx(50), pytest.approx(50)),
        ("of these, labels with p >= 0.6", 1, pytest.approx(100), pytest.approx(100)),
        ("share that PEM keeps", 6, pytest.approx(400 / 6), None),
        ("share of labels with p >= 0.6", 5, pytest.approx(20), None),
        (
            "expected calibration error",
            5,
            pytest.approx(100 * (2 * 0.4 + 0.5 + 0.8 + 0.1) / 5),
            None,
        ),
    ]
    table = pq.read_table(tmp_path / "entity_crops.parquet").to_pylist()
    assert table[3] | {"kept": True} == table[3]
    assert [(row["kept"], row["right"]) for row in table] == [
        (False, True), (False, False), (True, False), (True, True), (True, True), (True, False)
    ]  # fmt: skip
    results = Results("test", tmp_path)
    add_crops(results, some[:1], ENTITIES, 0.2)  # none that is kept
    values = {row["name"]: row["value"] for row in results.rows}
    assert values == {
        f"entity_crops/{k}": v for k, v in (("acc", 100), ("kept", 0), ("sure", 0), ("ece", 90))
    }


@pytest.mark.parametrize(
    ("places", "box", "shown"),
    [
        ({"ball": [[0, 0, 0.5, 0.5]], "star": [[0.5, 0.5, 1, 1]]}, (0, 0, 2, 2), ["ball"]),
        ({"ball": [[0, 0, 0.5, 0.5]], "star": [[0.5, 0.5, 1, 1]]}, (0, 0, 4, 4), ["ball", "star"]),
        ({"ball": [[0.25, 0, 0.75, 0.5]]}, (0, 0, 2, 4), ["ball"]),  # half of it exactly
        ({"ball": [[0.25, 0, 0.76, 0.5]]}, (0, 0, 2, 4), []),
        (
            {"ball": [[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]]},
            (0, 0, 2, 2),
            ["ball"],
        ),  # at one of two times
        ({"ball": [[-1, 0, 0.5, 1]]}, (0, 0, 2, 4), ["ball"]),  # all that the frame shows of it
        ({"ball": [[0, 0, 0.25, 0.25]], "star": [[0.5, 0.5, 1, 1]]}, (2, 2, 2, 2), ["star"]),
        ({}, (0, 0, 4, 4), []),
        (None, (0, 0, 1, 1), ["ball", "star"]),  # not known: those of the clip
    ],
)
def test_what_a_crop_shows(places, box, shown):
    assert entities_in_crop({"meta": {"places": places}}, ["ball", "star"], box, grid=4) == shown


def test_a_label_is_in_the_interval_of_its_probability_and_1_in_the_last():
    actual = calibration(
        np.array([1.0, 0.05, 0.9, 0.48, 0.42]), np.array([True, False, False, True, False])
    )
    assert actual == [(1, 0.05, 0.0), (2, pytest.approx(0.45), 0.5), (2, 0.95, 0.5)]
