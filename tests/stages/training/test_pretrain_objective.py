"""The objective of pre-training: its losses, their weights, and the frozen prompter."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from alpro.models.alpro import Alpro
from alpro.shards.pictures import draw_entities
from alpro.stages.evaluation.gallery import Gallery
from alpro.stages.evaluation.validation import pem_scores
from alpro.stages.pretrain import draw_pseudo_labels
from alpro.stages.training.dataset import Examples, TrainingDataset
from alpro.stages.training.masking import keep_patches
from alpro.stages.training.pretrain_objective import LossWeights, masked_positions
from tests.stages.training.conftest import losses_of

ALL = tuple(LossWeights.model_fields)


@pytest.mark.parametrize("kind", ["video", "image"])
def test_pre_training_reports_every_loss_and_their_sum(pretraining, batches, kind):
    loss, metrics = losses_of(pretraining(), batches[kind])
    losses = [metrics[f"loss_{name}"] for name in ALL]
    assert all(torch.isfinite(value) for value in losses)
    torch.testing.assert_close(loss.detach(), sum(losses))
    assert {"temperature", "in_batch_recall", "vtm_accuracy", "pseudo_labels_kept"} <= metrics.keys()


def test_uniform_negatives_do_not_depend_on_the_similarity(pretraining, batches, monkeypatch):
    """They are those of a model without VTC, whose loss stays."""
    chosen = []

    def chosen_by(objective) -> dict:
        draw = objective.negatives
        monkeypatch.setattr(objective, "negatives", lambda *a: chosen.append(pairs := draw(*a)) or pairs)
        return losses_of(objective, batches["video"])[1]

    hard, uniform = pretraining(), pretraining()
    uniform.uniform_negatives = True
    metrics = [chosen_by(objective) for objective in (hard, uniform, pretraining(vtc=0.0))]
    texts = [pairs[1][0] for pairs, _ in chosen]  # of each video, that of its negative
    assert torch.equal(texts[1], texts[2])
    assert not torch.equal(texts[0], texts[1])
    assert metrics[1]["loss_vtc"] == metrics[0]["loss_vtc"]
    assert "loss_vtc" not in metrics[2]


def test_similarities_stay_exact_under_mixed_precision(pretraining, batches):
    torch.manual_seed(1)
    exact, expected = losses_of(pretraining(), batches["video"])
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        loss, metrics = losses_of(pretraining(), batches["video"])
    assert loss.dtype == metrics["loss_vtc"].dtype == torch.float32
    torch.testing.assert_close(metrics["loss_vtc"], expected["loss_vtc"], rtol=2e-2, atol=0)
    torch.testing.assert_close(loss, exact, rtol=5e-2, atol=0)


@pytest.mark.parametrize("kind", ["video", "image"])
def test_no_loss_reads_a_dropped_patch(pretraining, batches, kind):
    """The losses are those of a batch whose dropped patches show something else; with all patches kept, those of the
    whole batch."""
    objective, batch = pretraining(pem=0), batches[kind]
    batch = replace(batch, frames=torch.randint(0, 256, (*batch.frames.shape[:3], 32, 32), dtype=torch.uint8))
    torch.manual_seed(1)
    expected, metrics = losses_of(objective, batch)
    torch.manual_seed(1)
    everything = replace(batch, kept=torch.arange(16).expand(len(batch.ids), -1))
    loss, others = losses_of(objective, everything)
    torch.testing.assert_close((loss, others), (expected, metrics))
    rng = np.random.default_rng(0)
    kept = torch.from_numpy(np.stack([keep_patches(4, 0.5, rng) for _ in batch.boxes]))
    torch.manual_seed(1)
    loss, metrics = losses_of(objective, replace(batch, kept=kept))
    shown = torch.zeros(len(kept), 16, dtype=torch.bool).scatter(1, kept, True).view(-1, 1, 1, 4, 4)
    shown = shown.repeat_interleave(8, dim=3).repeat_interleave(8, dim=4)
    torch.manual_seed(1)
    hidden = losses_of(objective, replace(batch, kept=kept, frames=batch.frames * shown))
    torch.testing.assert_close((loss, metrics), hidden)


def recorded(monkeypatch, owner, name: str) -> list[torch.Tensor]:
    """The results of each call of a method."""
    results, method = [], getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *args: results.append(result := method(*args)) or result)
    return results


@pytest.mark.parametrize("kept_share", [0.0, 0.6, 1.0])
def test_validation_of_pem_is_over_the_crops_that_it_keeps(pretraining, clips, tokenizer, monkeypatch, kept_share):
    """In batches of two, of which the last has one crop."""
    gallery = Gallery.of(clips, "validation").first(5, 1)
    objective = pretraining().eval()
    labels, logits = (
        recorded(monkeypatch, *of) for of in ((objective, "pseudo_labels"), (objective.model, "pem_logits"))
    )
    pem_scores(objective, tokenizer, 16, gallery, batch=2)
    assert [len(part) for part in labels] == [2, 2, 1]
    labels, logits = torch.cat(labels), torch.cat(logits)
    best = labels.amax(1)
    objective.threshold = float(best.sort(descending=True).values[round(5 * kept_share) - 1]) if kept_share else 1.0
    kept = best >= objective.threshold
    assert kept.float().mean() == pytest.approx(kept_share)
    right = (labels.argmax(1) == logits.argmax(1)) & kept
    entropy = -(labels * labels.log()).sum(1)
    scores = pem_scores(objective, tokenizer, 16, gallery, batch=2)
    assert scores == pytest.approx(
        {
            "validation/pem/kept": 100 * kept_share,
            "validation/pem/acc": 100 * float(right.sum()) / max(1, int(kept.sum())),
            "validation/pem/label_entropy": float(entropy[kept].sum()) / max(1, int(kept.sum())),
        },
        rel=1e-4,
    )


def test_losses_are_weighted(pretraining, batches):
    weights = {"vtc": 0.5, "vtm": 2.0, "mlm": 0.25, "pem": 4.0}
    torch.manual_seed(1)  # the same hard negatives
    loss, metrics = losses_of(pretraining(**weights), batches["video"])
    torch.testing.assert_close(loss.detach(), sum(metrics[f"loss_{name}"] * w for name, w in weights.items()))


WORK = {"vtm": "matching", "mlm": "masked_words", "pem": "entities"}


@pytest.mark.parametrize("off", WORK)
def test_a_loss_of_weight_0_is_not_computed(off, pretraining, batches, monkeypatch):
    objective = pretraining(**{off: 0.0})

    def work(*_):
        raise AssertionError("computed")

    monkeypatch.setattr(objective, WORK[off], work)
    loss, metrics = losses_of(objective, batches["video"])
    assert f"loss_{off}" not in metrics
    kept = [name for name in ALL if name != off]
    torch.testing.assert_close(loss.detach(), sum(metrics[f"loss_{name}"] for name in kept))


@pytest.mark.parametrize("weights", [{}, {"pem": 0.0}, {"mlm": 0.0}, {"vtm": 0.0}, {"vtc": 0.0}], ids=str)
def test_the_loss_is_the_same_if_every_token_is_fused(pretraining, batches, monkeypatch, weights):
    """And so are the gradients: no loss reads what the last layer leaves out."""
    fuse = Alpro.fuse

    def loss_and_gradients():
        objective = pretraining(**weights)
        loss, _ = losses_of(objective, batches["video"])
        loss.backward()
        return loss.detach(), {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}

    loss, gradients = loss_and_gradients()
    monkeypatch.setattr(Alpro, "fuse", lambda self, *pairs: fuse(self, *pairs[:3])[:, : (*pairs, None)[3]])
    expected, expected_gradients = loss_and_gradients()
    torch.testing.assert_close(loss, expected)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@given(data=st.data(), rows=st.integers(1, 5), length=st.integers(1, 9))
def test_every_masked_word_is_selected_once(data, rows, length):
    row = st.lists(st.sampled_from([-100, -100, 5, 6, 7]), min_size=length, max_size=length)
    labels = torch.tensor([data.draw(row) for _ in range(rows)])
    masked = (labels != -100).sum(1)
    most = data.draw(st.one_of(st.just(0), st.integers(max(1, int(masked.max())), length + 8)))
    positions, words = masked_positions(labels, most)
    assert positions.shape == words.shape == (rows, min(most or length, length))
    for row, at, word in zip(labels, positions, words, strict=True):
        assert len(set(at.tolist())) == len(at)  # no position twice
        assert torch.equal(row[at], word)
        assert at[word != -100].tolist() == row.ne(-100).nonzero().flatten().tolist()  # each masked one, in order


def test_the_picture_shows_the_crops(pretraining, clips, training, tokenizer, tmp_path, monkeypatch):
    objective, drawn = pretraining(), []

    def record(frame, box, named, *more):
        drawn.append((box, named[0][1]))
        return draw_entities(frame, box, named, *more)

    monkeypatch.setattr("alpro.stages.pretrain.draw_entities", record)
    config = training(("clips",), 1)
    data = TrainingDataset(config, {"clips": clips}, tokenizer, Examples("sample", 4, 32, 4, 0.3))
    draw_pseudo_labels(objective, data, [str(n) for n in range(8)], tmp_path, 0)
    chosen = objective.labeled(data[0])
    assert [[int(4 * side) for side in box] for box, _ in drawn] == chosen.boxes.tolist()
    assert [value for _, value in drawn] == pytest.approx(chosen.pseudo_labels.amax(1).tolist())
    assert (tmp_path / "pseudo_labels.png").exists()


def test_pem_reports_its_accuracy_and_the_entropy_of_its_labels(pretraining, batches):
    """Of the kept crops alone: two of four, of which one is right."""
    objective = pretraining(threshold=0.6)
    labels = torch.tensor([[0.7, 0.3, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0], [0.3, 0.3, 0.4]])
    logits = torch.tensor([[5.0, 1.0, 0.0], [9.0, 0.0, 0.0], [3.0, 0.0, 1.0], [0.0, 0.0, 9.0]])
    objective.model.pem_logits = lambda patches, inside: logits
    batch = replace(batches["video"], pseudo_labels=labels)
    _, metrics = objective.entities(batch, torch.zeros(8, 16, 3), {"pem": torch.tensor(2.0)})
    assert (metrics["pseudo_labels_kept"], metrics["pem_accuracy"]) == (0.5, 0.5)
    entropy = -(0.7 * np.log(0.7) + 0.3 * np.log(0.3)) / 2
    assert metrics["pseudo_label_entropy"].item() == pytest.approx(entropy, abs=1e-6)


def test_no_pseudo_label_kept_is_no_loss_and_no_nan(pretraining, batches):
    loss, metrics = losses_of(pretraining(threshold=1.1), batches["video"])
    assert (metrics["loss_pem"].item(), metrics["pseudo_labels_kept"].item()) == (0.0, 0.0)
    loss.backward()
    assert torch.isfinite(loss)


def test_a_batch_without_masked_words_is_no_nan(pretraining, batches):
    batch = batches["video"].map(lambda tensor: tensor)
    batch.masked, batch.labels = batch.text, torch.full_like(batch.text, -100)
    loss, metrics = losses_of(pretraining(), batch)
    assert metrics["loss_mlm"] == 0
    loss.backward()
    assert torch.isfinite(loss)


def test_the_prompter_stays_frozen_and_without_dropout(pretraining, batches):
    objective = pretraining().train()
    assert not objective.prompter.training
    assert not any(p.requires_grad for p in objective.prompter.parameters())
    losses_of(objective, batches["video"])[0].backward()
    assert all(p.grad is None for p in objective.prompter.parameters())


def test_pixels_outside_the_crop_are_zeroed_before_normalization(pretraining, batches, monkeypatch):
    """As in the official code: outside the crop a pixel is black, -mean / std, and not the mean grey, 0."""
    objective, seen = pretraining(), []
    batch = batches["video"].map(lambda tensor: tensor)
    batch.frames = torch.randint(0, 256, (8, 4, 3, 32, 32), dtype=torch.uint8)
    encode = objective.prompter.model.encode_video
    monkeypatch.setattr(
        objective.prompter.model, "encode_video", lambda x, cls_only: seen.append(x) or encode(x, cls_only)
    )
    losses_of(objective, batch)
    cut = torch.zeros_like(batch.frames)
    for number, (left, top, width, height) in enumerate((batch.boxes * 8).tolist()):  # patches of 8 pixels
        inside = (number, ..., slice(top, top + height), slice(left, left + width))
        cut[inside] = batch.frames[inside]
    torch.testing.assert_close(seen[0], objective.pixels(cut))


def test_images_use_the_image_prompts(pretraining, batches):
    objective = pretraining()
    one = losses_of(objective, batches["image"])[1]["loss_pem"]
    objective.video_prompts.zero_()
    torch.testing.assert_close(losses_of(objective, batches["image"])[1]["loss_pem"], one)
    assert not torch.equal(losses_of(objective, batches["video"])[1]["loss_pem"], one)
    objective.image_prompts.zero_()
    assert not torch.allclose(losses_of(objective, batches["image"])[1]["loss_pem"], one)
