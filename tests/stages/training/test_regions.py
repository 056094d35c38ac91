"""What PEM names in regions of validation clips, beside the prompter, and which labels a caption names."""

import numpy as np
import pytest
import torch
from PIL import Image

from alpro.models.losses import box_mask
from alpro.models.word_pieces import WordPieces, train_tokenizer
from alpro.shards.pictures import TILE, draw_regions
from alpro.stages.evaluation import regions
from alpro.stages.evaluation.retrieval import Gallery
from alpro.stages.training.named_entities import NamedEntities

ENTITIES = ["dog", "carpet", "car", "zebra"]  # `carpet` and `zebra` have several pieces
TOKENIZER = train_tokenizer({"a dog on a car": 9, "pets z e b r": 1}, 400)


@pytest.mark.parametrize(
    ("caption", "entity", "named"),
    [
        ("a Dog runs.", "dog", True),
        ("a dog", "car", False),
        ("on a carpet", "car", False),  # its first piece is `car`
        ("on a carpet", "carpet", True),
        ("the dogs", "dog", False),  # as in `true_entities`: the word itself
        ("a zebra, a dog", "zebra", True),
        ("a zebra, a dog", "dog", True),
        ("zebras", "zebra", False),
        ("", "dog", False),
    ],
)
def test_a_caption_names_the_word_itself(caption, entity, named):
    text, _ = WordPieces(TOKENIZER).batch([caption, "a dog on a car, on a carpet"], 40)
    names = NamedEntities(TOKENIZER, ENTITIES)
    assert names(text, torch.tensor([ENTITIES.index(entity), 0])).tolist() == [named, True]


def test_an_entity_without_pieces_is_never_named():
    names = NamedEntities(TOKENIZER, ["dog", "猫"])
    text, _ = WordPieces(TOKENIZER).batch(["a 猫"], 20)
    assert not names(text, torch.tensor([1]))


@pytest.fixture
def gallery(clips):
    return Gallery.of(clips, "validation").first(5, 1)


def test_the_scores_are_those_of_the_crops(pretraining, gallery, tokenizer):
    objective, words = pretraining(threshold=0.2), WordPieces(tokenizer)
    objective.eval()
    objective.named = NamedEntities(tokenizer, ["cube", *"bcdefgh"])
    objective.draw_box = lambda grid, rng: (0, 1, 2, 3)
    found = list(regions.name_regions(objective, gallery, words, 16, batch=2))
    assert all((part.boxes == torch.tensor([0, 1, 2, 3])).all() for part in found)
    labels, logits = (torch.cat([getattr(part, key) for part in found]) for key in ("labels", "logits"))
    assert [caption for part in found for caption in part.captions] == gallery.texts
    kept = labels.amax(1) >= 0.2
    assert kept.sum() > 0
    right = (labels.argmax(1) == logits.argmax(1)) & kept
    scores = regions.score_regions(objective, gallery, words, 16)
    assert scores["validation/pem/acc"] == pytest.approx(100 * float(right.sum() / kept.sum()))
    assert scores["validation/pem/kept"] == pytest.approx(100 * float(kept.float().mean()))
    assert scores["validation/pem/label_entropy"] == pytest.approx(
        float(torch.special.entr(labels[kept]).sum(1).mean())
    )
    assert scores.keys() == {f"validation/pem/{name}" for name in ("acc", "kept", "named", "label_entropy")}
    patches = objective.model.pem_head(found[0].fused)
    one = box_mask(torch.tensor([[2, 1, 1, 1]] * len(patches)), 4)  # a region of one patch is that patch
    torch.testing.assert_close(objective.model.pem_logits(found[0].fused, one), patches[:, 6])


def test_without_a_kept_label_the_scores_are_numbers(pretraining, gallery, tokenizer):
    scores = regions.score_regions(pretraining(threshold=1.0), gallery, WordPieces(tokenizer), 16)
    assert (scores["validation/pem/kept"], scores["validation/pem/acc"]) == (0, 0)


def test_the_picture_has_the_crops_and_leaves_training_as_it_was(
    pretraining, gallery, tokenizer, tmp_path, monkeypatch
):
    objective, drawn = pretraining(), []

    def record(frame, box, named, patches, caption):
        drawn.append((box, named, patches, caption))
        return draw_regions(frame, box, named, patches, caption)

    monkeypatch.setattr(regions, "draw_regions", record)
    before = torch.get_rng_state()
    names = [str(n) for n in range(8)]
    regions.draw_named_regions(
        objective.train(), gallery, WordPieces(tokenizer), 16, names, tmp_path / "pictures" / "regions.png"
    )
    assert objective.training
    assert torch.equal(torch.get_rng_state(), before)
    assert not objective.prompter.training
    assert [caption for *_, caption in drawn] == gallery.texts
    for box, named, patches, _ in drawn:
        assert 0.3 <= box[2] * box[3] <= 0.5
        assert named.keys() == {"prompter", "model"}
        assert len(patches) == 16
    assert Image.open(tmp_path / "pictures" / "regions.png").width >= 2 * TILE


def test_a_map_has_a_color_for_each_entity():
    frame = np.zeros((32, 32, 3), np.uint8)
    patches = [("dog", 1.0), ("dog", 0.0), ("cat", 1.0), ("dog", 1.0)]
    image = np.asarray(draw_regions(frame, (0, 0, 0.5, 0.5), {"model": [("dog", 0.9)]}, patches, "a dog"))
    dog, unsure, cat, again = (image[y, TILE + 4 + x] for y in (70, 150) for x in (70, 150))
    assert (dog == again).all()
    assert dog.any()
    assert not unsure.any()
    assert (cat != dog).any()
