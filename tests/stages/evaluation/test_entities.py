"""How often the prompter's best entity is in the clip, and the best constant guess."""

from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from alpro.inference.matching import Videos
from alpro.models.folder import ModelBundle
from alpro.models.frames import NormalizedModel
from alpro.stages.evaluation import entities as entities_module
from alpro.stages.evaluation.entities import (
    add_crops,
    add_entities,
    entities_in_crop,
    label_crops,
    true_entities,
)
from alpro.stages.evaluation.gallery import Gallery
from alpro.stages.evaluation.loaded_model import LoadedModel
from alpro.stages.evaluation.results import Results

ENTITIES = ["ball", "box", "star"]


@pytest.mark.parametrize(
    ("meta", "captions", "truth"),
    [
        # The manifest's word comes first.
        ({"entities": ["star", "moon"]}, ["a ball"], ["star"]),
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
    assert (
        true_entities({"meta": {}, "captions": ["some ice", "cream"]}, ["ice cream"])
        == []
    )


ROWS = [
    {"id": "a", "split": "test", "meta": {"entities": ["ball"]}, "captions": ["x"]},
    # Unknown.
    {"id": "b", "split": "test", "meta": {"entities": ["moon"]}, "captions": ["x"]},
    {
        "id": "c",
        "split": "test",
        "meta": {"entities": ["ball", "star"]},
        "captions": ["x", "y"],
    },
    {
        "id": "d",
        "split": "test",
        "kind": "image",
        "meta": {"entities": ["box"]},
        "captions": ["x"],
    },
    {"id": "e", "split": "train", "meta": {"entities": ["box"]}, "captions": ["x"]},
]


@pytest.fixture
def gallery(corpus_of, tmp_path):
    return Gallery.read(corpus_of(tmp_path / "corpus", ROWS), "test")


def load(model=None, entities=ENTITIES):
    """A prompter with prompts along the axes; those of images are turned by one."""
    encoder = NormalizedModel(model or nn.Identity(), (0.5,) * 3, (0.5,) * 3)
    prompts = {"video": torch.eye(3), "image": torch.eye(3).roll(1, 0)}
    bundle = ModelBundle(
        "prompter", encoder.model, None, entities=entities, prompts=prompts
    )
    return LoadedModel("mine", bundle, encoder)


def test_accuracy_is_over_the_videos_with_a_known_entity(gallery):
    """An image is named by the prompts of images."""
    features = [
        [0.9, 0.1, 0],
        [0, 0, 1],
        [0, 0.2, 0.4],
        [0.3, 0.2, 0.1],
    ]
    results = Results("mine")

    add_entities(
        results, load(), gallery, Videos(torch.zeros(0), torch.tensor(features))
    )

    (row,) = results.rows()
    assert row["items"] == 3
    assert row["value"] == 100
    assert row["chance"] == pytest.approx(200 / 3)  # "ball", in two of three
    named = [
        (row["id"], row["named"]) for row in results.tables["entities"].to_pylist()
    ]
    assert named == [("a", "ball"), ("c", "star"), ("d", "box")]


def test_nothing_known_is_no_score(gallery):
    results = Results("mine")
    unknown = load(entities=["moon of mars"])

    add_entities(results, unknown, gallery, Videos(torch.zeros(0), torch.zeros(4, 3)))
    add_crops(results, unknown, gallery, crops=2, threshold=0.2)

    assert results.rows() == []


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
        left, top, _, _ = boxes.unbind(1)
        first = torch.tensor([0.6, 0.3, 0.1]).expand(len(boxes), -1)
        labels = torch.where(top[:, None] > 0, first.roll(1, dims=1), first)
        return torch.where(left[:, None] > 0, labels / 2, labels) @ prompts


def test_every_video_with_a_known_entity_has_crops_with_a_fixed_seed(gallery):
    model = Halves(grid=4)

    labels, again = (label_crops(load(model), gallery, 20) for _ in range(2))

    boxes = [box for boxes in model.seen for box in boxes.tolist()]
    assert [row["id"] for row in labels] == ["a", "c"] * 20 + ["d"] * 20
    assert [list(row["box"]) for row in (*labels, *again)] == boxes
    assert {0.3 <= height * width / 16 <= 0.5 for _, _, width, height in boxes} == {
        True
    }
    for row in labels:
        left, top, _, _ = row["box"]
        # The prompts of the image d are turned by one.
        shift = 1 if row["id"] == "d" else 0
        assert row["named"] == ENTITIES[(1 if top > 0 else 0) - shift]
        assert row["probability"] == pytest.approx(0.6 if left == 0 else 0.3)
        truth = {"a": ["ball"], "c": ["ball", "star"], "d": ["box"]}
        assert row["truth"] == truth[row["id"]]
        assert row["right"] == (row["named"] in row["truth"])


def test_the_accuracy_of_crops_and_their_calibration(monkeypatch):
    """Of five crops that show an entity 3 are right; of the 4 that are kept 2, one of which shows
    none, which the calibration counts as wrong. The best constant is "ball" in 3 of 5, and "box" in 2 of 4."""
    labels = []
    for name, named, probability, *shown in (
        ("a", "ball", 0.1, "ball"),
        ("a", "star", 0.1, "ball"),
        ("a", "star", 0.5, "ball"),
        ("b", "box", 0.2, "box"),
        ("b", "star", 0.9, "box", "star"),
        ("c", "star", 0.6),
    ):
        label = {
            "id": name,
            "box": (0, 0, 2, 3),
            "named": named,
            "probability": probability,
        }
        labels.append(label | {"truth": shown, "right": named in shown})
    monkeypatch.setattr(entities_module, "label_crops", lambda *_: labels)
    results = Results("mine")

    add_crops(results, load(), None, crops=1, threshold=0.2)

    rows = {row["name"].partition("/")[2]: row for row in results.rows()}
    actual = {
        name: (row["items"], row["value"], row["chance"]) for name, row in rows.items()
    }
    assert actual == {
        "acc": (5, pytest.approx(60), pytest.approx(60)),
        "acc_kept": (4, pytest.approx(50), pytest.approx(50)),
        "kept": (6, pytest.approx(400 / 6), None),
        "ece": (6, pytest.approx(100 * (2 * 0.4 + 0.5 + 0.8 + 0.1 + 0.6) / 6), None),
    }
    kept = results.tables["entity_crops"]["kept"].to_pylist()
    assert kept == [False, False, True, True, True, True]


@pytest.mark.parametrize(
    ("places", "box", "shown"),
    [
        (
            {"ball": [[0, 0, 0.5, 0.5]], "star": [[0.5, 0.5, 1, 1]]},
            (0, 0, 2, 2),
            ["ball"],
        ),
        (
            {"ball": [[0, 0, 0.5, 0.5]], "star": [[0.5, 0.5, 1, 1]]},
            (0, 0, 4, 4),
            ["ball", "star"],
        ),
        # Half of it exactly.
        ({"ball": [[0.25, 0, 0.75, 0.5]]}, (0, 0, 2, 4), ["ball"]),
        ({"ball": [[0.25, 0, 0.76, 0.5]]}, (0, 0, 2, 4), []),
        # At one of two times.
        ({"ball": [[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]]}, (0, 0, 2, 2), ["ball"]),
        # All that the frame shows of it.
        ({"ball": [[-1, 0, 0.5, 1]]}, (0, 0, 2, 4), ["ball"]),
        ({}, (0, 0, 4, 4), []),
        (None, (0, 0, 1, 1), ["ball", "star"]),  # not known: those of the clip
    ],
)
def test_what_a_crop_shows(places, box, shown):
    assert (
        entities_in_crop({"meta": {"places": places}}, ["ball", "star"], box, grid=4)
        == shown
    )
