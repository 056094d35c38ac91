"""What a batch is turned into: every loss is reported, and what is switched off is not worked for."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from alpro.models.alpro import Alpro, Prompter
from alpro.models.frames import normalize_frames
from alpro.stages.training.examples import TrainingDataset
from alpro.stages.training.masking import random_box
from alpro.stages.training.objective import (
    MatchingObjective,
    PretrainObjective,
    PrompterObjective,
    QaObjective,
    box_patches,
    masked_positions,
)

PROGRAM = Path(__file__).with_name("part_of_a_batch.py")
MEAN, STD = [0.5] * 3, [0.25] * 3
ALL = {"vtc": 1.0, "vtm": 1.0, "mlm": 1.0, "pem": 1.0}
ENTITIES = 8


@pytest.fixture(scope="module")
def data(clips, stills, training, tokenizer):
    config = training(("clips", "stills"), 12)
    return TrainingDataset(config, {"clips": clips, "stills": stills}, tokenizer, "sample", 4, 32, 4, 0.3)


@pytest.fixture(scope="module")
def batches(data):
    """A batch of videos and one of images."""
    actual = {}
    for step in range(len(data)):
        actual.setdefault(data.sources[data.source_of[step]].kind, data[step])
    return actual


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


def passes(model: Alpro) -> dict[str, list[int]]:
    """The rows of every pass through each encoder, from now on."""
    actual = {"video_encoder": [], "text_encoder": [], "multimodal_encoder": []}
    for name, sizes in actual.items():
        getattr(model, name).register_forward_pre_hook(lambda _, args, sizes=sizes: sizes.append(len(args[0])))
    return actual


def test_pre_training_goes_once_through_each_encoder(pretraining, batches):
    """8 videos; 8 texts and the same masked; 8 positives, 8 + 8 negatives, 8 masked texts. The official code goes
    twice through the text encoder, and thrice through the multimodal one."""
    objective = pretraining()
    actual = passes(objective.model)
    objective(batches["video"])
    assert actual == {"video_encoder": [8], "text_encoder": [16], "multimodal_encoder": [32]}


def test_retrieval_goes_once_through_each_encoder(tiny_model, tokenizer, batches):
    objective = MatchingObjective(Alpro(tiny_model(tokenizer.get_vocab_size())), MEAN, STD)
    actual = passes(objective.model)
    objective(batches["video"])
    assert actual == {"video_encoder": [8], "text_encoder": [8], "multimodal_encoder": [24]}


@pytest.mark.parametrize("weights", [{}, {"pem": 0.0}, {"mlm": 0.0}, {"vtm": 0.0}, {"vtc": 0.0}], ids=str)
def test_the_loss_is_that_of_fusing_every_position(pretraining, batches, monkeypatch, weights):
    """And so are the gradients: what the last layer leaves out is read by no loss."""

    def fuse_everything(self, read, text, mask, video):
        rows = self.fuse(text, mask, video).split([len(positions) for positions in read])
        return tuple(x.gather(1, at[..., None].expand(-1, -1, x.shape[2])) for x, at in zip(rows, read, strict=True))

    def worked():
        objective = pretraining(**weights)
        loss, _ = objective(batches["video"])
        loss.backward()
        return loss.detach(), {name: p.grad for name, p in objective.named_parameters() if p.grad is not None}

    loss, gradients = worked()
    monkeypatch.setattr(Alpro, "fuse_at", fuse_everything)
    expected, expected_gradients = worked()
    torch.testing.assert_close(loss, expected)
    assert gradients.keys() == expected_gradients.keys()
    for name, gradient in expected_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, atol=1e-5, rtol=1e-4, msg=name)


@given(data=st.data(), rows=st.integers(1, 5), length=st.integers(1, 9))
def test_every_masked_word_is_read_once_and_nothing_else_counts(data, rows, length):
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
def test_every_patch_in_the_crop_is_read_once_and_nothing_else_counts(data, grid):
    boxes = []
    for _ in range(data.draw(st.integers(1, 4))):
        height = data.draw(st.integers(1, grid))
        width = data.draw(st.integers(1, max(1, min(grid, grid**2 // 2 // height))))
        if height * width > grid**2 // 2:
            height = 1
        top, left = data.draw(st.integers(0, grid - height)), data.draw(st.integers(0, grid - width))
        boxes.append((top, left, height, width))
    patches, inside = box_patches(torch.tensor(boxes), grid)
    assert patches.shape == inside.shape == (len(boxes), grid**2 // 2)
    for (top, left, height, width), at, counted in zip(boxes, patches, inside, strict=True):
        assert len(set(at.tolist())) == len(at)
        rows, columns = range(top, top + height), range(left, left + width)
        assert at[counted].tolist() == [row * grid + column for row in rows for column in columns]


@pytest.mark.parametrize("grid", range(1, 17))
def test_every_box_that_is_drawn_has_room_among_the_patches_that_are_read(grid):
    rng = np.random.default_rng(0)
    boxes = torch.tensor([random_box(grid, rng) for _ in range(40)])
    _, inside = box_patches(boxes, grid)
    assert torch.equal(inside.sum(1), boxes[:, 2] * boxes[:, 3])


def second_of_two_ranks(monkeypatch, others: dict[int, torch.Tensor]) -> None:
    """As the second of two ranks; `others`: the first one's tensors by their number of dimensions."""
    monkeypatch.setattr("alpro.stages.training.objective.rank", lambda: 1)
    monkeypatch.setattr("alpro.stages.training.objective.world_size", lambda: 2)
    monkeypatch.setattr("alpro.stages.training.objective.gather", lambda mine: torch.cat([others[mine.ndim], mine]))


@pytest.mark.parametrize("pool", [8, 16, 0])
def test_hard_negatives_are_drawn_among_the_pairs_of_the_pool(pool, tiny_model, tokenizer, batches, monkeypatch):
    """Here on the second rank: of its own pool of 8 each pair is likest to the next one, of all 16 to the first rank's
    third. Were the first columns taken for the own rank's, the latter would decide."""
    objective = MatchingObjective(Alpro(tiny_model(tokenizer.get_vocab_size())), MEAN, STD, pool)
    batch, size = batches["video"].map(lambda tensor: tensor), 8
    batch.video, batch.mask = 8 + torch.arange(size), torch.full((size, 4), 7)
    video, text = torch.arange(8.0, 16)[:, None, None], torch.arange(8.0, 16)[:, None, None]
    first = {3: torch.arange(8.0)[:, None, None], 2: torch.full((size, 4), 3), 1: torch.arange(size)}
    second_of_two_ranks(monkeypatch, first)
    likeness = torch.zeros(size, 2 * size)
    own, far = (torch.arange(size) + 1) % size, (torch.arange(size) + 3) % size
    likeness[torch.arange(size), size + own] = 100.0
    likeness[torch.arange(size), far] = 200.0
    (texts, masks, other_videos), (other_texts, other_masks, videos) = objective.negatives(
        batch, video, text, likeness, likeness
    )[0]
    expected = (8 + own if pool == 8 else far).tolist()
    assert texts.flatten().tolist() == videos.flatten().tolist() == list(range(8, 16))
    assert other_videos.flatten().tolist() == other_texts.flatten().tolist() == expected
    assert torch.equal(masks, batch.mask)
    assert torch.equal(other_masks, batch.mask if pool == 8 else first[2])  # a text and its own mask


def test_a_smaller_pool_divides_the_batch(tiny_model, tokenizer, batches):
    """Pools of 2 in a batch of 8: whatever the similarities, the only other pair of a pool is its negative."""
    objective = MatchingObjective(Alpro(tiny_model(tokenizer.get_vocab_size())), MEAN, STD, 2)
    batch = batches["video"].map(lambda tensor: tensor)
    batch.video = torch.arange(8)
    likeness, rows = torch.randn(8, 8) * 50, torch.arange(8.0)[:, None, None]
    ((_, _, videos), (texts, _, _)), valid = objective.negatives(batch, rows, rows, likeness, likeness)
    assert videos.flatten().tolist() == texts.flatten().tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
    batch.video = torch.tensor([0, 0, 1, 2, 3, 4, 5, 6])  # two captions of one video have no other in their pool
    _, valid = objective.negatives(batch, rows, rows, likeness, likeness)
    assert valid.tolist() == [False, False, *[True] * 6] * 2


def test_each_direction_draws_by_its_own_similarity(tiny_model, tokenizer, batches):
    """Texts are likest to the next video, videos to the text after the next."""
    objective = MatchingObjective(Alpro(tiny_model(tokenizer.get_vocab_size())), MEAN, STD)
    batch, rows = batches["video"].map(lambda tensor: tensor), torch.arange(8.0)[:, None, None]
    batch.video = torch.arange(8)
    of_text, of_video = torch.zeros(8, 8), torch.zeros(8, 8)
    of_text[torch.arange(8), (torch.arange(8) + 1) % 8] = 100.0
    of_video[torch.arange(8), (torch.arange(8) + 2) % 8] = 100.0
    ((_, _, videos), (texts, _, _)), _ = objective.negatives(batch, rows, rows, v2t=of_video, t2v=of_text)
    assert videos.flatten().tolist() == [1, 2, 3, 4, 5, 6, 7, 0]
    assert texts.flatten().tolist() == [2, 3, 4, 5, 6, 7, 0, 1]


def test_a_pairs_own_column_begins_at_its_global_rank(tiny_model, tokenizer, batches, monkeypatch):
    """The official code counts by the rank within a machine: the first process of the second machine would be taught
    that its pairs are those of the first."""
    torch.manual_seed(0)
    objective = PrompterObjective(Prompter(tiny_model(tokenizer.get_vocab_size())).eval(), MEAN, STD)
    batch = batches["video"].map(lambda tensor: tensor)
    batch.video = torch.arange(8)
    loss, _ = objective(batch)
    halves = batch.split(2)
    parts = []
    for half in halves:
        videos = objective.model.project_video(objective.model.encode_video(objective.pixels(half.frames)))
        texts = objective.model.project_text(objective.model.encode_text(half.text, half.mask))
        parts.append((videos, texts, half.video))
    everything = [torch.cat(both) for both in zip(*parts, strict=True)]
    losses = []
    for number, half in enumerate(halves):
        gathered = iter(everything)  # videos, texts and numbers are gathered in this order
        monkeypatch.setattr("alpro.stages.training.objective.rank", lambda number=number: number)
        monkeypatch.setattr("alpro.stages.training.objective.gather", lambda _, gathered=gathered: next(gathered))
        losses.append(objective(half)[0])
    torch.testing.assert_close(sum(losses) / 2, loss)


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


def test_the_prompter_sees_pixels_that_are_zeroed_before_they_are_normalised(pretraining, batches, monkeypatch):
    """As in the official code: outside the crop a pixel is black, -mean / std, and not the mean grey, 0."""
    objective, seen = pretraining(), []
    batch = batches["video"].map(lambda tensor: tensor)
    batch.frames = torch.randint(0, 256, (8, 4, 3, 32, 32), dtype=torch.uint8)
    encode = objective.prompter.encode_video
    monkeypatch.setattr(objective.prompter, "encode_video", lambda x, cls_only: seen.append(x) or encode(x, cls_only))
    objective(batch)
    cut = torch.zeros_like(batch.frames)
    for number, (top, left, height, width) in enumerate((batch.boxes * 8).tolist()):  # patches of 8 pixels
        inside = (number, ..., slice(top, top + height), slice(left, left + width))
        cut[inside] = batch.frames[inside]
    torch.testing.assert_close(seen[0], objective.pixels(cut))


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
    """With every pair from one video no negatives remain."""
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
    pixels = normalize_frames(frames, 4, mean, std)
    assert pixels.shape == (1, 2, 3, 4, 4)
    assert pixels[0, 0, :, 0, 0].tolist() == [1.0, 2.0, -0.5]
    assert pixels[0, 0, :, 3, 0].tolist() == [1.0, -2.0, -0.5]
    small = normalize_frames(frames, 2, mean, std)
    assert small.shape == (1, 2, 3, 2, 2)
    np.testing.assert_allclose(small[0, 0, 0].numpy(), 1.0, atol=1e-6)


@pytest.fixture(scope="module")
def halves(tmp_path_factory, two_ranks):
    """What each of two processes finds on its half of a batch."""
    out = tmp_path_factory.mktemp("halves")
    assert two_ranks(PROGRAM, out) == [0, 0]
    return [load_file(out / f"{rank}.safetensors") for rank in range(2)]


@pytest.mark.parametrize(
    "name", ["prompter", "matching", "matching in pools of 2", "matching in pools of 4", "pretrain", "qa"]
)
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
