"""Objectives: their losses by hand, hard negatives, pseudo-labels, one pass through each encoder,
several ranks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch.testing import assert_close

from alpro.models import alpro
from alpro.models.alpro import Alpro
from alpro.models.losses import sample_hard_negatives, vtc_loss
from tests.stages.training.part_of_a_batch import (
    NAMES,
    TEXT,
    WEIGHTS,
    losses_and_gradients,
    losses_of,
    objective_of,
    whole_batch,
)


@pytest.fixture
def batch():
    return whole_batch()


def gradients(loss, objective):
    objective.zero_grad()
    loss.backward()
    gradients = {name: p.grad for name, p in objective.model.named_parameters()}
    return {name: g for name, g in gradients.items() if g is not None and g.any()}


def losses_by_hand(objective, batch, uniform):
    """VTC, VTM, MLM, PEM and QA with an encoder pass for each, and loops over the examples."""
    model = objective.model
    count = len(batch.ids)
    video = model.encode_video(objective.pixels(batch.frames))
    text, masked = (
        model.encode_text(ids, batch.mask) for ids in (batch.text, batch.masked)
    )
    cosines = model.project_video(video) @ model.project_text(text).T
    similarity = cosines / model.clamped_temperature()
    same = batch.video[:, None] == batch.video[None]
    losses = {"vtc": vtc_loss(similarity, similarity.T, torch.arange(count), same)}
    if isinstance(model, Alpro):
        likely = torch.zeros_like(similarity) if uniform else similarity
        pool = torch.arange(count) // (
            getattr(objective, "negative_pool_size", 0) or count
        )
        excluded = same | (pool[:, None] != pool[None])
        videos, valid = sample_hard_negatives(likely.T, excluded, batch.uniforms[:, 0])
        texts, _ = sample_hard_negatives(likely, excluded, batch.uniforms[:, 1])
        pairs = (
            (text, batch.mask, video),
            (text, batch.mask, video[videos]),
            (text[texts], batch.mask[texts], video),
        )
        logits = torch.cat([model.match(*pair) for pair in pairs])
        used = torch.cat([valid.new_ones(count), valid, valid])
        label = torch.tensor([1] * count + [0] * 2 * count)
        losses["vtm"] = F.cross_entropy(logits[used], label[used])
    if batch.pseudo_labels is not None:
        fused = model.fuse(text, batch.mask, video)
        patches = fused[:, batch.text.shape[1] + 1 :].unflatten(1, (4, 4))
        kept = [
            n
            for n in range(count)
            if batch.pseudo_labels[n].max() >= objective.threshold
        ]
        shown = []
        for n in kept:
            left, top, width, height = batch.boxes[n].tolist()
            crop = patches[n, top : top + height, left : left + width]
            shown.append(crop.flatten(0, 1).mean(0))
        logits = model.pem_head(torch.stack(shown))
        losses["pem"] = F.cross_entropy(logits, batch.pseudo_labels[kept])
    if getattr(model, "mlm_head", None):
        fused = model.fuse(masked, batch.mask, video)
        scores = model.mlm_scores(fused[:, : batch.text.shape[1]])
        losses["mlm"] = F.cross_entropy(scores.flatten(0, 1), batch.labels.flatten())
    if getattr(model, "qa_head", None):
        losses["qa"] = F.cross_entropy(
            model.answer(text, batch.mask, video), batch.answers
        )
    return losses


WITHOUT = [{}, *({name: 0.0} for name in ("vtc", "vtm", "mlm", "pem"))]


@pytest.mark.parametrize(
    ("name", "changes", "uniform"),
    [
        ("prompter", {}, False),
        ("matching", {}, False),
        ("matching in pools of 2", {}, False),
        ("qa", {}, False),
        *(("pretrain", {"weights": WEIGHTS | off}, "vtc" in off) for off in WITHOUT),
        ("pretrain", {"threshold": 0.0}, True),
    ],
)
def test_losses_and_gradients_are_those_by_hand_and_of_the_parts_that_they_train(
    name, changes, uniform, batch
):
    objective = objective_of(name, **changes)
    if uniform:
        uniform = {"negatives": "uniform"}  # as without VTC
        objective.settings = objective.settings.model_copy(update=uniform)
        batch.max_masked = 0  # as where the number is not known
    if name == "prompter":
        batch.boxes = None
    batch = objective.with_pseudo_labels(batch)
    if "pem" in objective.losses:
        assert 1 < (batch.pseudo_labels.amax(1) >= 0.64).sum() < 7
        assert len(batch.pseudo_labels.argmax(1).unique()) > 2

    loss, metrics = objective(batch, objective.step_counts([batch]))
    actual = gradients(loss, objective)

    by_hand = losses_by_hand(objective, replace(batch), uniform)
    weights = getattr(objective, "weights", {})
    total = 0.0
    for each in objective.losses:
        expected = by_hand[each].detach()
        assert_close(metrics[f"loss_{each}"], expected, atol=1e-5, rtol=1e-5)
        total = total + by_hand[each] * weights.get(each, 1.0)
    assert_close(loss, total, atol=1e-5, rtol=1e-5)
    assert_close(actual, gradients(total, objective), atol=1e-5, rtol=1e-4)
    parts = {key.split(".")[0] for key, _ in objective.model.named_parameters()}
    assert parts - {key.split(".")[0] for key in actual} == objective.unused_parameters


def test_similarities_stay_exact_under_mixed_precision_and_beyond_the_bounds_of_the_temperature(
    batch,
):
    exact, expected = losses_of(objective_of("pretrain", threshold=0.0), batch)
    with torch.autocast("cpu", torch.bfloat16):
        loss, metrics = losses_of(objective_of("pretrain", threshold=0.0), batch)
    assert loss.dtype == metrics["loss_vtc"].dtype == torch.float32
    assert_close(metrics["loss_vtc"], expected["loss_vtc"], rtol=2e-2, atol=0)
    assert_close(loss, exact, rtol=5e-2, atol=0)

    one = objective_of("prompter")
    other = objective_of("prompter")
    one.model.temperature.data.fill_(0.5)
    other.model.temperature.data.fill_(0.9)  # beyond its bound, which counts
    assert_close(losses_of(one, batch), losses_of(other, batch))


def black_outside(batch):
    """The frames with black around the crops."""
    frames = torch.zeros_like(batch.frames)
    for number, box in enumerate(batch.boxes * 4):  # patches of 4 pixels
        left, top, width, height = box.tolist()
        inside = (number, ..., slice(top, top + height), slice(left, left + width))
        frames[inside] = batch.frames[inside]
    return frames


def test_another_clip_of_the_own_video_is_no_miss(batch):
    """As in the loss."""
    one_video = replace(batch, boxes=None, video=0 * batch.video)

    _, metrics = objective_of("prompter")(one_video, {})

    assert metrics["in_batch_recall"] == 1


def test_the_prompter_sees_its_crops_black_outside(batch):
    """As PEM shows them: black before normalization."""
    objective = objective_of("prompter").eval()
    whole = torch.tensor([[0, 0, 4, 4]]).expand(8, -1)
    by_hand = replace(batch, frames=black_outside(batch), boxes=whole)
    seen = objective.encode_video(batch)
    assert_close(seen, objective.encode_video(by_hand))
    assert not torch.allclose(seen, objective.encode_video(replace(batch, boxes=None)))


@torch.no_grad()
@pytest.mark.parametrize("kind", ["video", "image"])
def test_pseudo_labels_are_the_frozen_prompters_of_the_crops_with_the_prompts_of_the_kind(
    kind, batch
):
    """As in the official code: outside the crop a pixel is black, -mean / std, and not the mean
    grey, 0."""
    objective = objective_of("pretrain", dropout=0.5).train()
    assert not any(p.requires_grad for p in objective.prompter.parameters())
    assert not objective.prompter.training
    prompter = objective.prompter
    pixels = prompter.pixels(black_outside(batch))
    features = prompter.model.project_video(prompter.model.encode_video(pixels))
    prompts = getattr(objective, f"{kind}_prompts").requires_grad_()

    with torch.enable_grad():
        labels = objective.with_pseudo_labels(replace(batch, kind=kind)).pseudo_labels

    assert not labels.requires_grad
    similarity = features @ prompts.T / prompter.model.clamped_temperature()
    assert_close(labels, similarity.softmax(1))


def test_without_kept_labels_masked_words_and_known_answers_there_is_no_loss_and_no_nan(
    batch,
):
    objective = objective_of("pretrain")
    objective.threshold = 1.1
    nothing = replace(
        batch, masked=batch.text, labels=torch.full_like(batch.text, -100)
    )
    loss, metrics = losses_of(objective, nothing)
    assert metrics["loss_pem"] == 0
    assert metrics["pseudo_labels_kept"] == 0
    assert metrics["loss_mlm"] == 0
    assert all(
        gradient.isfinite().all() for gradient in gradients(loss, objective).values()
    )
    assert (
        losses_of(objective_of("qa"), replace(batch, answers=torch.full((8,), -100)))[0]
        == 0
    )


def test_pem_reports_its_accuracy_and_the_entropy_of_its_labels(batch):
    """Of the kept crops alone: two of four, of which one is right."""
    objective = objective_of("pretrain", threshold=0.6)
    labels = torch.tensor(
        [
            [0.7, 0.3, 0.0],
            [0.5, 0.5, 0.0],
            [0.0, 0.0, 1.0],
            [0.3, 0.3, 0.4],
        ]
    )
    logits = torch.tensor(
        [
            [5.0, 1.0, 0.0],
            [9.0, 0.0, 0.0],
            [3.0, 0.0, 1.0],
            [0.0, 0.0, 9.0],
        ]
    )
    objective.model.pem_logits = lambda patches, inside: logits
    batch.pseudo_labels = labels
    _, metrics = objective.pem_term(
        batch, torch.zeros(8, 16, 3), {"pem": torch.tensor(2.0)}
    )

    assert metrics["pseudo_labels_kept"] == 0.5
    assert metrics["pem_accuracy"] == 0.5
    entropy = -(0.7 * np.log(0.7) + 0.3 * np.log(0.3)) / 2
    assert metrics["pseudo_label_entropy"].item() == pytest.approx(entropy, abs=1e-6)


def test_two_processes_with_halves_are_as_one_with_the_whole(two_ranks_trained):
    """The mean of the ranks' losses, and every gradient: labels by global rank, negatives, masked
    words, kept samples are those of all. The official code counts by the rank within a machine."""
    first = load_file(two_ranks_trained / "objectives.0.safetensors")
    second = load_file(two_ranks_trained / "objectives.1.safetensors")
    for name in NAMES:
        mean = (first[f"{name}/loss"] + second[f"{name}/loss"]) / 2
        first[f"{name}/loss"] = second[f"{name}/loss"] = mean

    whole = losses_and_gradients(0, 1)

    assert len(whole) > 20 * len(NAMES)
    assert_close(first, whole, atol=1e-5, rtol=1e-5)
    assert_close(second, whole, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("off", [{}, {"pem": 0.0}, {"vtm": 0.0}])
def test_one_pass_for_all_pairs_has_the_losses_and_gradients_of_three(
    off, batch, monkeypatch
):
    """As on a GPU."""
    # Three layers of fusion, of which two are shared.
    monkeypatch.setitem(TEXT, "depth", 4)
    objective = objective_of("pretrain", weights=WEIGHTS | off)
    batch = objective.with_pseudo_labels(batch)
    counts = objective.step_counts([batch])
    expected, _ = objective(batch, counts)
    expected_gradients = gradients(expected, objective)

    monkeypatch.setattr(alpro, "is_on_gpu", lambda _: True)
    passes = []
    layers = objective.model.multimodal_encoder.layers
    layers.register_forward_hook(lambda *_: passes.append(1))
    loss, _ = objective(batch, counts)

    assert passes == [1]
    assert_close(loss, expected)
    assert_close(gradients(loss, objective), expected_gradients, atol=1e-5, rtol=1e-4)
