"""What a batch is turned into: every loss is reported, and what is switched off is not worked for."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from models.alpro import Alpro, Prompter
from stages.training.examples import Steps
from stages.training.objective import MatchingObjective, PretrainObjective, PrompterObjective, QaObjective, prepare

PROGRAM = Path(__file__).with_name("part_of_a_batch.py")
MEAN, STD = [0.5] * 3, [0.25] * 3
ALL = {"vtc": 1.0, "vtm": 1.0, "mlm": 1.0, "pem": 1.0}
ENTITIES = 8


@pytest.fixture(scope="module")
def data(clips, stills, training, tokenizer):
    config = training(("clips", "stills"), 12)
    return Steps(config, {"clips": clips, "stills": stills}, tokenizer, "sample", 4, 32, 4, 0.3)


@pytest.fixture(scope="module")
def batches(data):
    """A batch of videos and one of images."""
    found = {}
    for step in range(len(data)):
        found.setdefault(data.sources[data.source_of[step]].kind, data[step])
    return found


@pytest.fixture(scope="module")
def pretraining(tiny_model, tokenizer):
    """pretraining(threshold=..., **weights): a pre-training objective on a tiny model, the same each time."""

    def make(threshold: float = 0.0, **weights: float) -> PretrainObjective:
        torch.manual_seed(0)
        shape = tiny_model(tokenizer.get_vocab_size())
        model, prompter = Alpro(shape, ENTITIES), Prompter(shape)
        prompts = {kind: F.normalize(torch.randn(ENTITIES, 16), dim=1) for kind in ("video", "image")}
        return PretrainObjective(model, MEAN, STD, prompter, prompts, ALL | weights, threshold)

    return make


@pytest.mark.parametrize("kind", ["video", "image"])
def test_pre_training_reports_every_loss_and_their_sum(pretraining, batches, kind):
    loss, metrics = pretraining()(batches[kind])
    losses = [metrics[f"loss_{name}"] for name in ALL]
    assert all(torch.isfinite(value) for value in losses)
    torch.testing.assert_close(loss.detach(), sum(losses))
    assert {"temperature", "in_batch_recall", "vtm_accuracy", "pseudo_labels_kept"} <= metrics.keys()


def test_similarities_stay_exact_under_mixed_precision(pretraining, batches):
    torch.manual_seed(1)
    exact, expected = pretraining()(batches["video"])
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16):
        loss, metrics = pretraining()(batches["video"])
    assert loss.dtype == metrics["loss_vtc"].dtype == torch.float32
    torch.testing.assert_close(metrics["loss_vtc"], expected["loss_vtc"], rtol=2e-2, atol=0)
    torch.testing.assert_close(loss, exact, rtol=5e-2, atol=0)


def test_weights_weigh_the_losses(pretraining, batches):
    weights = {"vtc": 0.5, "vtm": 2.0, "mlm": 0.25, "pem": 4.0}
    torch.manual_seed(1)  # the same hard negatives
    loss, metrics = pretraining(**weights)(batches["video"])
    torch.testing.assert_close(loss.detach(), sum(metrics[f"loss_{name}"] * w for name, w in weights.items()))


WORK = {"vtm": "matching", "mlm": "masked_words", "pem": "entities"}


@pytest.mark.parametrize("off", WORK)
def test_a_weight_of_nothing_leaves_the_loss_and_its_work_out(off, pretraining, batches, monkeypatch):
    objective = pretraining(**{off: 0.0})

    def work(*_):
        raise AssertionError("worked for nothing")

    monkeypatch.setattr(objective, WORK[off], work)
    loss, metrics = objective(batches["video"])
    assert f"loss_{off}" not in metrics
    kept = [name for name in ALL if name != off]
    torch.testing.assert_close(loss.detach(), sum(metrics[f"loss_{name}"] for name in kept))


@pytest.mark.parametrize("off", WORK)
def test_a_loss_that_is_off_moves_no_head(off, pretraining, batches):
    objective = pretraining(**{off: 0.0})
    objective(batches["video"])[0].backward()
    heads = {"vtm": objective.model.vtm_head, "mlm": objective.model.mlm_head, "pem": objective.model.pem_head}
    for name, head in heads.items():
        assert all((p.grad is None) == (name == off) for p in head.parameters()), name


def test_fused_pairs_make_one_pass(pretraining, batches, monkeypatch):
    """B positives, B + B negatives, B masked texts."""
    objective, sizes = pretraining(), []
    fuse = objective.model.fuse
    monkeypatch.setattr(objective.model, "fuse", lambda text, *rest: (sizes.append(len(text)), fuse(text, *rest))[1])
    objective(batches["video"])
    assert sizes == [32]


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


def test_images_are_named_by_the_image_prompts(pretraining, batches):
    objective = pretraining()
    one = objective(batches["image"])[1]["loss_pem"]
    objective.video_prompts.zero_()
    torch.testing.assert_close(objective(batches["image"])[1]["loss_pem"], one)
    assert not torch.equal(objective(batches["video"])[1]["loss_pem"], one)
    objective.image_prompts.zero_()
    assert not torch.allclose(objective(batches["image"])[1]["loss_pem"], one)


def test_the_loss_does_not_see_the_order_of_the_batch(tiny_model, tokenizer, batches):
    torch.manual_seed(0)
    objective = PrompterObjective(Prompter(tiny_model(tokenizer.get_vocab_size())), MEAN, STD)
    batch = batches["video"]
    turned = batch.map(lambda tensor: tensor.flip(0))
    torch.testing.assert_close(objective(turned)[0], objective(batch)[0])


def test_two_captions_of_one_video_are_not_each_others_negatives(tiny_model, tokenizer, batches):
    """With every pair from one video nothing is left to be told apart."""
    objective = MatchingObjective(Alpro(tiny_model(tokenizer.get_vocab_size())), MEAN, STD)
    batch = batches["video"].map(lambda tensor: tensor)
    batch.video = torch.zeros_like(batch.video)
    loss, metrics = objective(batch)
    assert metrics["loss_vtc"] == 0
    assert torch.isfinite(loss)


def test_questions_with_unknown_answers_count_for_nothing(tiny_model, tokenizer, batches):
    objective = QaObjective(Alpro(tiny_model(tokenizer.get_vocab_size()), answers=3), MEAN, STD)
    batch = batches["video"].map(lambda tensor: tensor)
    batch.answers = torch.tensor([0, 1, 2, 0, -100, -100, -100, -100])
    known = batch.split(2)[0]
    torch.testing.assert_close(objective(batch)[0], objective(known)[0])
    batch.answers = torch.full((8,), -100)
    assert objective(batch)[0] == 0


def test_frames_are_scaled_normalised_and_resized():
    frames = torch.zeros(1, 2, 3, 4, 4, dtype=torch.uint8)
    frames[:, :, 0], frames[:, :, 1, :2] = 255, 255
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.5, 0.5, 0.5], [0.5, 0.25, 1.0]))
    pixels = prepare(frames, 4, mean, std)
    assert pixels.shape == (1, 2, 3, 4, 4)
    assert pixels[0, 0, :, 0, 0].tolist() == [1.0, 2.0, -0.5]
    assert pixels[0, 0, :, 3, 0].tolist() == [1.0, -2.0, -0.5]
    small = prepare(frames, 2, mean, std)
    assert small.shape == (1, 2, 3, 2, 2)
    np.testing.assert_allclose(small[0, 0, 0].numpy(), 1.0, atol=1e-6)


@pytest.fixture(scope="module")
def halves(tmp_path_factory, two_ranks):
    """What each of two processes finds on its half of a batch."""
    out = tmp_path_factory.mktemp("halves")
    assert two_ranks(PROGRAM, out) == [0, 0]
    return [load_file(out / f"{rank}.safetensors") for rank in range(2)]


@pytest.mark.parametrize("name", ["prompter", "pretrain", "qa"])
def test_two_processes_with_halves_are_as_one_with_the_whole(name, halves):
    """The mean of the ranks' losses, and every gradient: negatives, masked words, kept samples are those of all."""
    whole = runpy.run_path(str(PROGRAM))["losses_and_gradients"](0, 1)
    keys = [key for key in whole if key.startswith(f"{name}/")]
    assert len(keys) > 20
    torch.testing.assert_close(
        (halves[0][f"{name}/loss"] + halves[1][f"{name}/loss"]) / 2, whole[f"{name}/loss"], atol=1e-5, rtol=1e-5
    )
    for key in keys:
        if not key.endswith("/loss"):
            for half in halves:
                torch.testing.assert_close(half[key], whole[key], atol=1e-5, rtol=1e-5, msg=key)


def test_rows_are_gathered_in_order_of_rank_and_totals_are_over_all(halves):
    for rank, half in enumerate(halves):
        assert half["rank"] == rank
        assert half["gathered"].flatten().tolist() == [0, 1, 10, 11]
        assert half["total"] == 3
