"""PVM: the prompter's pseudo-labels of verbs on clips and on tubes, and the head that predicts them."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from alpro.models.alpro import Alpro
from alpro.models.losses import box_mask
from alpro.stages.training.config import TrainingConfig
from alpro.stages.training.optim import build_optimizer
from alpro.stages.training.pretrain_objective import PretrainObjective

REGIONS = ("clip", "tube")
ALONE = {"vtc": 0.0, "vtm": 0.0, "mlm": 0.0, "pem": 0.0, "pvm": 1.0}  # no other loss
CANDIDATES = torch.tensor([[[0, 0, 2, 3], [1, 1, 3, 2]], [[2, 0, 2, 4], [0, 2, 4, 2]]]).repeat(4, 1, 1)


def asked(objective: PretrainObjective, frames: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
    """The prompter's verbs in boxes."""
    return objective.prompter.pseudo_labels(frames, boxes, objective.verb_prompts, objective.black)


def test_labels_of_clips_are_the_softmax_over_the_verbs_of_all_pixels(pretraining, batches):
    objective, batch = pretraining(pvm=1.0), batches["video"]
    frames = objective.pixels(batch.frames)
    labels = objective.labeled(batch, frames).verb_labels
    with torch.no_grad():
        features = objective.prompter.project_video(objective.prompter.encode_video(frames))
    by_hand = (features @ objective.verb_prompts.T / objective.prompter.temperature).softmax(1).detach()
    torch.testing.assert_close(labels, by_hand)


def test_labels_of_tubes_are_those_of_the_crop_of_pem_in_every_frame(pretraining, batches):
    objective, batch = pretraining(pvm=1.0, verb_region="tube"), batches["video"]
    frames = objective.pixels(batch.frames)
    labeled = objective.labeled(batch, frames)
    assert torch.equal(labeled.boxes, batch.boxes)
    assert torch.equal(labeled.verb_labels, asked(objective, frames, batch.boxes))
    inside = box_mask(batch.boxes, 4).view(-1, 1, 1, 4, 4).repeat_interleave(8, 3).repeat_interleave(8, 4)
    changed = torch.where(inside, frames, 7.0)  # in any frame, what is outside does not count
    assert torch.equal(objective.labeled(batch, changed).verb_labels, labeled.verb_labels)


def test_a_tube_is_the_candidate_that_pem_chooses_or_without_pem_the_most_certain_verb(pretraining, batches):
    batch = replace(batches["video"], boxes=CANDIDATES)
    both, alone = pretraining(pvm=1.0, verb_region="tube"), pretraining(**ALONE, verb_region="tube")
    frames = both.pixels(batch.frames)
    entities = pretraining().labeled(batch, frames)
    labeled = both.labeled(batch, frames)
    assert torch.equal(labeled.boxes, entities.boxes)
    assert torch.equal(labeled.verb_labels, asked(both, frames, labeled.boxes))
    labeled = alone.labeled(batch, frames)
    each = torch.stack([asked(alone, frames, boxes) for boxes in CANDIDATES.unbind(1)], dim=1)
    chosen = each.amax(2).argmax(1)
    assert torch.equal(labeled.boxes, CANDIDATES[torch.arange(8), chosen])
    assert torch.equal(labeled.verb_labels, each[torch.arange(8), chosen])


@pytest.mark.parametrize("region", REGIONS)
def test_the_loss_is_of_the_mean_of_the_fused_patches_in_the_region(region, pretraining, batches):
    objective, batch = pretraining(**ALONE, verb_region=region).eval(), batches["video"]
    loss, metrics = objective(batch)
    model, frames = objective.model, objective.pixels(batch.frames)
    with torch.no_grad():
        video, text = model.encode_video(frames), model.encode_text(batch.text, batch.mask)
        patches = model.fuse(text, batch.mask, video)[:, batch.text.shape[1] + 1 :]
    inside = box_mask(batch.boxes, 4) if region == "tube" else torch.ones(8, 16, dtype=torch.bool)
    pooled = torch.stack([rows[within].mean(0) for rows, within in zip(patches, inside, strict=True)])
    labels = objective.labeled(batch, frames).verb_labels
    torch.testing.assert_close(loss, F.cross_entropy(model.pvm_head(pooled), labels))
    assert (metrics["loss_pvm"], metrics["verb_labels_kept"]) == (loss.detach(), 1)


@pytest.mark.parametrize("region", REGIONS)
def test_it_is_one_more_weighted_loss(region, pretraining, batches):
    torch.manual_seed(1)  # the same hard negatives
    _, expected = pretraining()(batches["video"])
    torch.manual_seed(1)
    loss, metrics = pretraining(pvm=0.5, verb_region=region)(batches["video"])
    assert metrics.keys() - expected.keys() == {"loss_pvm", "verb_labels_kept"}
    for name, value in expected.items():
        torch.testing.assert_close(metrics[name], value)
    others = sum(metrics[f"loss_{name}"] for name in ("vtc", "vtm", "mlm", "pem"))
    torch.testing.assert_close(loss.detach(), others + 0.5 * metrics["loss_pvm"])


@pytest.mark.parametrize("region", REGIONS)
def test_the_gradient_reaches_the_head_and_the_encoders_but_not_the_prompter(region, pretraining, batches):
    objective = pretraining(**ALONE, verb_region=region)
    assert objective.unused_parameters >= {"vtm_head", "mlm_head", "pem_head"}
    objective(batches["video"])[0].backward()
    for part in (objective.model.pvm_head, objective.model.multimodal_encoder, objective.model.video_encoder):
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in part.parameters())
    assert all(p.grad is None for p in objective.model.pem_head.parameters())
    assert all(p.grad is None for p in objective.prompter.parameters())


@pytest.mark.parametrize("region", REGIONS)
@pytest.mark.parametrize("boxes", [1, 2])
def test_images_are_not_labeled_and_have_a_gradient_of_0(region, boxes, pretraining, batches, monkeypatch):
    """Of 0 and not none: DDP expects that of every parameter in every step."""
    objective, batch = pretraining(**ALONE, verb_region=region), batches["image"]
    batch = batch if boxes == 1 else replace(batch, boxes=batch.boxes[:, None].repeat(1, boxes, 1))
    monkeypatch.setattr(objective.prompter, "pseudo_labels", None)
    loss, metrics = objective(batch)
    loss.backward()
    assert (loss, metrics["loss_pvm"], metrics["verb_labels_kept"]) == (0, 0, 0)
    assert all(p.grad.abs().sum() == 0 for p in objective.model.pvm_head.parameters())


def test_below_the_threshold_there_is_no_loss(pretraining, batches):
    loss, metrics = pretraining(threshold=1.1, **ALONE)(batches["video"])
    assert (loss, metrics["verb_labels_kept"]) == (0, 0)
    certain = pretraining(**ALONE).labeled(batches["video"], pretraining().pixels(batches["video"].frames))
    top = certain.verb_labels.amax(1)
    threshold = top.sort().values[4].item()
    assert pretraining(threshold=threshold, **ALONE)(batches["video"])[1]["verb_labels_kept"] == 0.5


def test_a_model_with_verbs_has_one_more_head_and_otherwise_the_same_initial_weights(tiny_model):
    torch.manual_seed(0)
    before = Alpro(tiny_model(), entities=8).state_dict()
    torch.manual_seed(0)
    after = Alpro(tiny_model(), entities=8, verbs=5).state_dict()
    assert {key.split(".")[0] for key in after.keys() - before.keys()} == {"pvm_head"}
    assert all(torch.equal(after[key], value) for key, value in before.items())


@pytest.mark.parametrize("region", REGIONS)
def test_a_few_steps_learn_the_labels(region, pretraining, batches):
    """From a certain prompter: what is left of the loss is not the entropy of the labels."""
    objective, batch = pretraining(**ALONE, verb_region=region), batches["video"]
    objective.prompter.temperature.data.fill_(0.01)
    config = TrainingConfig.model_validate({"phases": [{"corpora": ["clips"], "steps": 60}], "lr": 1e-3})
    optimizer = build_optimizer(objective, config)
    losses = []
    for _ in range(60):
        loss, _ = objective(batch)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    labels = objective.labeled(batch, objective.pixels(batch.frames)).verb_labels
    entropy = -(labels * labels.clamp(min=1e-30).log()).sum(1).mean().item()
    assert losses[-1] - entropy < 0.5 * (losses[0] - entropy), (losses[0], losses[-1], entropy)
