"""The objective of pre-training: its losses, their weights, and the frozen prompter."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from alpro.models.alpro import Alpro
from alpro.shards.pictures import draw_entities
from alpro.stages.pretrain import Config, draw_pseudo_labels
from alpro.stages.training import pretrain_objective as module
from alpro.stages.training.dataset import TrainingDataset
from alpro.stages.training.masking import keep_patches, random_box
from alpro.stages.training.pretrain_objective import LossWeights, box_patches, masked_positions

ALL = tuple(LossWeights.model_fields)


@pytest.mark.parametrize("kind", ["video", "image"])
def test_pre_training_reports_every_loss_and_their_sum(pretraining, batches, kind):
    loss, metrics = pretraining()(batches[kind])
    losses = [metrics[f"loss_{name}"] for name in ALL]
    assert all(torch.isfinite(value) for value in losses)
    torch.testing.assert_close(loss.detach(), sum(losses))
    assert {"temperature", "in_batch_recall", "vtm_accuracy", "pseudo_labels_kept"} <= metrics.keys()


def test_permuted_labels_are_those_of_another_sample(pretraining, batches):
    objective, batch = pretraining(), batches["video"]
    frames = objective.pixels(batch.frames)
    expected = objective.labeled(batch, frames).pseudo_labels.roll(1, 0)
    objective.control = "permuted_labels"
    assert torch.equal(objective.labeled(batch, frames).pseudo_labels, expected)


def test_labels_are_permuted_over_all_ranks(pretraining, batches, monkeypatch):
    objective, batch = pretraining(), batches["video"]
    whole = objective.labeled(batch, objective.pixels(batch.frames)).pseudo_labels
    objective.control, half = "permuted_labels", len(whole) // 2
    monkeypatch.setattr(module, "gather", lambda local: whole)
    monkeypatch.setattr(module, "world_size", lambda: 2)
    for rank in (0, 1):
        monkeypatch.setattr(module, "rank", lambda rank=rank: rank)
        assert torch.equal(
            objective.labeled(batch, objective.pixels(batch.frames)).pseudo_labels,
            whole.roll(1, 0)[rank * half : (rank + 1) * half],
        )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"pem_control": "without_text", "weights": {"vtm": 0, "mlm": 0}}, "nothing trains the multimodal encoder"),
        ({"pem_control": "permuted_labels", "accumulation_steps": 8}, "more than one pair per micro-batch"),
    ],
)
def test_controls_that_cannot_work_are_refused(values, message):
    with pytest.raises(ValidationError, match=message):
        Config(phases=[{"corpora": ["clips"], "steps": 1}], batch_size=8, **values)


def test_the_whole_frame_is_the_crop_and_all_its_patches_are_read(pretraining, batches, monkeypatch):
    objective, batch, read = pretraining(), batches["video"], []
    objective.control, grid = "whole_frame", objective.model.config.video.grid
    labeled = objective.labeled(batch, frames := objective.pixels(batch.frames))
    assert (labeled.boxes == torch.tensor([0, 0, grid, grid])).all()
    whole = objective.prompter.pseudo_labels(frames, labeled.boxes, objective.prompts_of("video"), objective.black)
    assert torch.equal(labeled.pseudo_labels, whole)
    monkeypatch.setattr(
        objective.model, "pem_logits", lambda patches, inside: read.append(inside) or torch.zeros_like(whole)
    )
    objective(batch)
    assert read[0].shape == (len(whole), grid**2)
    assert read[0].all()


def test_uniform_negatives_do_not_depend_on_the_similarity(pretraining, batches, monkeypatch):
    """They are those of a model without VTC, whose loss stays."""
    chosen = []

    def chosen_by(objective) -> dict:
        draw = objective.negatives
        monkeypatch.setattr(objective, "negatives", lambda *a: chosen.append(pairs := draw(*a)) or pairs)
        return objective(batches["video"])[1]

    hard, uniform = pretraining(), pretraining()
    uniform.uniform_negatives = True
    metrics = [chosen_by(objective) for objective in (hard, uniform, pretraining(vtc=0.0))]
    texts = [pairs[1][0] for pairs, _ in chosen]  # of each video, that of its negative
    assert torch.equal(texts[1], texts[2])
    assert not torch.equal(texts[0], texts[1])
    assert metrics[1]["loss_vtc"] == metrics[0]["loss_vtc"]
    assert "loss_vtc" not in metrics[2]


def test_patches_without_text_do_not_depend_on_the_caption(pretraining, batches):
    objective, batch = pretraining(vtc=0.0, vtm=0.0, mlm=0.0), batches["video"]
    other = replace(batch, text=batch.text.flip(0), mask=batch.mask.flip(0))
    with_text = [objective(b)[0].item() for b in (batch, other)]
    objective.control = "without_text"
    without = [objective(b)[0].item() for b in (batch, other)]
    assert with_text[0] != with_text[1]
    assert without[0] == without[1]


def test_labels_of_the_batch_need_no_prompter(pretraining, batches):
    objective, batch = pretraining(), batches["video"]
    labels = objective.labeled(batch, objective.pixels(batch.frames)).pseudo_labels
    torch.manual_seed(1)
    expected, _ = objective(batch)
    objective.prompter = None
    torch.manual_seed(1)
    loss, _ = objective(replace(batch, pseudo_labels=labels))
    torch.testing.assert_close(loss, expected)


def test_similarities_stay_exact_under_mixed_precision(pretraining, batches):
    torch.manual_seed(1)
    exact, expected = pretraining()(batches["video"])
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        loss, metrics = pretraining()(batches["video"])
    assert loss.dtype == metrics["loss_vtc"].dtype == torch.float32
    torch.testing.assert_close(metrics["loss_vtc"], expected["loss_vtc"], rtol=2e-2, atol=0)
    torch.testing.assert_close(loss, exact, rtol=5e-2, atol=0)


@pytest.mark.parametrize("kind", ["video", "image"])
def test_no_loss_reads_a_dropped_patch(pretraining, batches, kind):
    """The losses are those of a batch whose dropped patches show something else; with all patches kept, those of the
    whole batch. The prompter sees all patches of its crop."""
    objective, batch = pretraining(), batches[kind]
    batch = replace(batch, frames=torch.randint(0, 256, (*batch.frames.shape[:3], 32, 32), dtype=torch.uint8))
    torch.manual_seed(1)
    expected, metrics = objective(batch)
    torch.manual_seed(1)
    loss, others = objective(replace(batch, kept=torch.arange(16).expand(len(batch.ids), -1)))
    torch.testing.assert_close((loss, others), (expected, metrics))
    rng = np.random.default_rng(0)
    kept = torch.from_numpy(np.stack([keep_patches(4, 0.5, rng, tuple(box.tolist())) for box in batch.boxes]))
    torch.manual_seed(1)
    loss, metrics = objective(replace(batch, kept=kept))
    shown = torch.zeros(len(kept), 16, dtype=torch.bool).scatter(1, kept, True).view(-1, 1, 1, 4, 4)
    shown = shown.repeat_interleave(8, dim=3).repeat_interleave(8, dim=4)
    torch.manual_seed(1)
    hidden = objective(replace(batch, kept=kept, frames=batch.frames * shown))
    torch.testing.assert_close((loss, metrics), hidden)


def test_losses_are_weighted(pretraining, batches):
    weights = {"vtc": 0.5, "vtm": 2.0, "mlm": 0.25, "pem": 4.0}
    torch.manual_seed(1)  # the same hard negatives
    loss, metrics = pretraining(**weights)(batches["video"])
    torch.testing.assert_close(loss.detach(), sum(metrics[f"loss_{name}"] * w for name, w in weights.items()))


WORK = {"vtm": "matching", "mlm": "masked_words", "pem": "entities"}


@pytest.mark.parametrize("off", WORK)
def test_a_loss_of_weight_0_is_not_computed(off, pretraining, batches, monkeypatch):
    objective = pretraining(**{off: 0.0})

    def work(*_):
        raise AssertionError("computed")

    monkeypatch.setattr(objective, WORK[off], work)
    loss, metrics = objective(batches["video"])
    assert f"loss_{off}" not in metrics
    kept = [name for name in ALL if name != off]
    torch.testing.assert_close(loss.detach(), sum(metrics[f"loss_{name}"] for name in kept))


@pytest.mark.parametrize("off", WORK)
def test_a_loss_that_is_off_trains_no_head(off, pretraining, batches):
    objective = pretraining(**{off: 0.0})
    objective(batches["video"])[0].backward()
    heads = {"vtm": objective.model.vtm_head, "mlm": objective.model.mlm_head, "pem": objective.model.pem_head}
    for name, head in heads.items():
        assert all((p.grad is None) == (name == off) for p in head.parameters()), name


@pytest.mark.parametrize("weights", [{}, {"pem": 0.0}, {"mlm": 0.0}, {"vtm": 0.0}, {"vtc": 0.0}], ids=str)
def test_the_loss_is_the_same_if_every_position_is_fused(pretraining, batches, monkeypatch, weights):
    """And so are the gradients: no loss reads what the last layer leaves out."""

    def fuse_everything(self, read, text, mask, video):
        rows = self.fuse(text, mask, video).split([len(positions) for positions in read])
        return tuple(x.gather(1, at[..., None].expand(-1, -1, x.shape[2])) for x, at in zip(rows, read, strict=True))

    def loss_and_gradients():
        objective = pretraining(**weights)
        loss, _ = objective(batches["video"])
        loss.backward()
        return loss.detach(), {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}

    loss, gradients = loss_and_gradients()
    monkeypatch.setattr(Alpro, "fuse_at", fuse_everything)
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


@given(data=st.data(), grid=st.integers(2, 6))
def test_every_patch_in_the_crop_is_selected_once(data, grid):
    boxes = []
    for _ in range(data.draw(st.integers(1, 4))):
        height = data.draw(st.integers(1, grid))
        width = data.draw(st.integers(1, max(1, min(grid, grid**2 // 2 // height))))
        if height * width > grid**2 // 2:
            height = 1
        top, left = data.draw(st.integers(0, grid - height)), data.draw(st.integers(0, grid - width))
        boxes.append((left, top, width, height))
    patches, inside = box_patches(torch.tensor(boxes), grid, max(1, grid**2 // 2))
    assert patches.shape == inside.shape == (len(boxes), grid**2 // 2)
    for (left, top, width, height), at, counted in zip(boxes, patches, inside, strict=True):
        assert len(set(at.tolist())) == len(at)
        rows, columns = range(top, top + height), range(left, left + width)
        assert at[counted].tolist() == [row * grid + column for row in rows for column in columns]


@pytest.mark.parametrize("grid", range(1, 17))
def test_the_selected_patches_have_room_for_every_random_box(grid):
    rng = np.random.default_rng(0)
    boxes = torch.tensor([random_box(grid, rng) for _ in range(40)])
    _, inside = box_patches(boxes, grid, max(1, grid**2 // 2))
    assert torch.equal(inside.sum(1), boxes[:, 2] * boxes[:, 3])


def test_the_picture_shows_the_crops(pretraining, clips, training, tokenizer, tmp_path, monkeypatch):
    objective, drawn = pretraining(), []

    def record(frame, box, named, *more):
        drawn.append((box, named[0][1]))
        return draw_entities(frame, box, named, *more)

    monkeypatch.setattr("alpro.stages.pretrain.draw_entities", record)
    config = training(("clips",), 1)
    data = TrainingDataset(config, {"clips": clips}, tokenizer, "sample", 4, 32, 4, 0.3)
    draw_pseudo_labels(objective, data, [str(n) for n in range(8)], tmp_path, 0)
    chosen = objective.labeled(data[0], objective.pixels(data[0].frames))
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
    _, metrics = objective.entities(batch, torch.zeros(4, 2, 3), torch.ones(4, 2, dtype=torch.bool))
    assert (metrics["pseudo_labels_kept"], metrics["pem_accuracy"]) == (0.5, 0.5)
    entropy = -(0.7 * np.log(0.7) + 0.3 * np.log(0.3)) / 2
    assert metrics["pseudo_label_entropy"].item() == pytest.approx(entropy, abs=1e-6)


def test_no_pseudo_label_kept_is_no_loss_and_no_nan(pretraining, batches):
    loss, metrics = pretraining(threshold=1.1)(batches["video"])
    assert (metrics["loss_pem"].item(), metrics["pseudo_labels_kept"].item()) == (0.0, 0.0)
    loss.backward()
    assert torch.isfinite(loss)


def test_a_batch_without_masked_words_is_no_nan(pretraining, batches):
    batch = batches["video"].map(lambda tensor: tensor)
    batch.masked, batch.labels = batch.text, torch.full_like(batch.text, -100)
    loss, metrics = pretraining()(batch)
    assert metrics["loss_mlm"] == 0
    loss.backward()
    assert torch.isfinite(loss)


def test_the_prompter_stays_frozen_and_without_dropout(pretraining, batches):
    objective = pretraining().train()
    assert not objective.prompter.training
    assert not any(p.requires_grad for p in objective.prompter.parameters())
    objective(batches["video"])[0].backward()
    assert all(p.grad is None for p in objective.prompter.parameters())


def test_pixels_outside_the_crop_are_zeroed_before_normalization(pretraining, batches, monkeypatch):
    """As in the official code: outside the crop a pixel is black, -mean / std, and not the mean grey, 0."""
    objective, seen = pretraining(), []
    batch = batches["video"].map(lambda tensor: tensor)
    batch.frames = torch.randint(0, 256, (8, 4, 3, 32, 32), dtype=torch.uint8)
    encode = objective.prompter.encode_video
    monkeypatch.setattr(objective.prompter, "encode_video", lambda x, cls_only: seen.append(x) or encode(x, cls_only))
    objective(batch)
    cut = torch.zeros_like(batch.frames)
    for number, (left, top, width, height) in enumerate((batch.boxes * 8).tolist()):  # patches of 8 pixels
        inside = (number, ..., slice(top, top + height), slice(left, left + width))
        cut[inside] = batch.frames[inside]
    torch.testing.assert_close(seen[0], objective.pixels(cut))


def test_images_use_the_image_prompts(pretraining, batches):
    objective = pretraining()
    one = objective(batches["image"])[1]["loss_pem"]
    objective.video_prompts.zero_()
    torch.testing.assert_close(objective(batches["image"])[1]["loss_pem"], one)
    assert not torch.equal(objective(batches["video"])[1]["loss_pem"], one)
    objective.image_prompts.zero_()
    assert not torch.allclose(objective(batches["image"])[1]["loss_pem"], one)
