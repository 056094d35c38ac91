"""Objectives: contrast over all ranks, hard negatives, one pass through each encoder."""

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from alpro.models.alpro import Alpro, Prompter
from alpro.models.frames import normalize_frames
from alpro.models.losses import box_mask
from alpro.stages.training.objective import (
    MatchingObjective,
    PrompterObjective,
    QaObjective,
)
from tests.stages.training.conftest import losses_of

PROGRAM = Path(__file__).with_name("part_of_a_batch.py")
MEAN, STD = [0.5] * 3, [0.25] * 3


def passes(model: Alpro) -> dict[str, list[int]]:
    """The rows of every pass through each encoder, from now on."""
    actual = {"video_encoder": [], "text_encoder": [], "multimodal_encoder": []}
    for name, sizes in actual.items():
        getattr(model, name).register_forward_pre_hook(lambda _, args, sizes=sizes: sizes.append(len(args[0])))
    return actual


def test_each_encoder_runs_once_over_clips_and_texts(pretraining, tiny_model, tokenizer, batches):
    """8 videos; 8 texts and the same masked; 8 positives, 8 + 8 negatives, 8 masked texts."""
    objective = pretraining()
    actual = passes(objective.model)
    losses_of(objective, batches["video"])
    assert actual == {"video_encoder": [8], "text_encoder": [16], "multimodal_encoder": [8, 16, 8]}
    objective = MatchingObjective(Alpro(tiny_model(tokenizer.get_vocab_size())), MEAN, STD)
    actual = passes(objective.model)
    losses_of(objective, batches["video"])
    assert actual == {"video_encoder": [8], "text_encoder": [8], "multimodal_encoder": [24]}


def second_of_two_ranks(monkeypatch, others: dict[int, torch.Tensor]) -> None:
    """As the second of two ranks; `others`: the first one's tensors by their number of dimensions."""
    monkeypatch.setattr("alpro.stages.training.objective.rank", lambda: 1)
    monkeypatch.setattr("alpro.stages.training.objective.world_size", lambda: 2)
    monkeypatch.setattr("alpro.stages.training.objective.gather", lambda mine: torch.cat([others[mine.ndim], mine]))


@pytest.mark.parametrize("pool", [8, 16, 0])
def test_hard_negatives_are_sampled_from_the_pool(pool, tiny_model, tokenizer, batches, monkeypatch):
    """Here on the second rank: in its own pool of 8 each pair is most similar to the next one, among all 16 to a pair
    of the first rank. If the first columns were taken for those of this rank, the latter would decide."""
    objective = MatchingObjective(Alpro(tiny_model(tokenizer.get_vocab_size())), MEAN, STD, pool)
    batch, size = batches["video"].map(lambda tensor: tensor), 8
    batch.video, batch.mask = 8 + torch.arange(size), torch.full((size, 4), 7)
    video, text = torch.arange(8.0, 16)[:, None, None], torch.arange(8.0, 16)[:, None, None]
    first = {3: torch.arange(8.0)[:, None, None], 2: torch.full((size, 4), 3), 1: torch.arange(size)}
    second_of_two_ranks(monkeypatch, first)
    similarity = torch.zeros(size, 2 * size)
    own, far = (torch.arange(size) + 1) % size, (torch.arange(size) + 3) % size
    similarity[torch.arange(size), size + own] = 100.0
    similarity[torch.arange(size), far] = 200.0
    (texts, masks, other_videos), (other_texts, other_masks, videos) = objective.negatives(
        batch, video, text, similarity, similarity
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
    similarity, rows = torch.randn(8, 8) * 50, torch.arange(8.0)[:, None, None]
    ((_, _, videos), (texts, _, _)), valid = objective.negatives(batch, rows, rows, similarity, similarity)
    assert videos.flatten().tolist() == texts.flatten().tolist() == [1, 0, 3, 2, 5, 4, 7, 6]
    batch.video = torch.tensor([0, 0, 1, 2, 3, 4, 5, 6])  # two captions of one video have no other in their pool
    _, valid = objective.negatives(batch, rows, rows, similarity, similarity)
    assert valid.tolist() == [False, False, *[True] * 6] * 2


def test_each_direction_samples_by_its_own_similarity(tiny_model, tokenizer, batches):
    """Texts are most similar to the next video, videos to the text after the next."""
    objective = MatchingObjective(Alpro(tiny_model(tokenizer.get_vocab_size())), MEAN, STD)
    batch, rows = batches["video"].map(lambda tensor: tensor), torch.arange(8.0)[:, None, None]
    batch.video = torch.arange(8)
    of_text, of_video = torch.zeros(8, 8), torch.zeros(8, 8)
    of_text[torch.arange(8), (torch.arange(8) + 1) % 8] = 100.0
    of_video[torch.arange(8), (torch.arange(8) + 2) % 8] = 100.0
    ((_, _, videos), (texts, _, _)), _ = objective.negatives(batch, rows, rows, v2t=of_video, t2v=of_text)
    assert videos.flatten().tolist() == [1, 2, 3, 4, 5, 6, 7, 0]
    assert texts.flatten().tolist() == [2, 3, 4, 5, 6, 7, 0, 1]
    # And by its own random number: the first other video, and the last other text.
    batch.uniforms = torch.tensor([[0.01, 0.99]] * 8)
    even = torch.zeros(8, 8)
    ((_, _, videos), (texts, _, _)), _ = objective.negatives(batch, rows, rows, even, even)
    assert videos.flatten().tolist() == [1] + [0] * 7
    assert texts.flatten().tolist() == [7] * 7 + [6]


def test_the_prompter_sees_its_crops_black_outside(small_objective, small_batch):
    """As PEM shows them: equal to the prompter's own pseudo-labels' input."""
    objective, batch = small_objective("prompter").eval(), small_batch
    whole = torch.tensor([[0, 0, 4, 4]])
    seen = objective.encode_video(batch)
    inside = box_mask(batch.boxes, 4).view(-1, 1, 1, 4, 4).repeat_interleave(8, 3).repeat_interleave(8, 4)
    by_hand = replace(batch, frames=torch.where(inside, batch.frames, 0), boxes=whole.expand(4, -1))
    torch.testing.assert_close(seen, objective.encode_video(by_hand))
    assert not torch.allclose(seen, objective.encode_video(replace(batch, boxes=None)))


def test_labels_are_by_global_rank(tiny_model, tokenizer, batches, monkeypatch):
    """The official code counts by the rank within a machine: the first process of the second machine would be taught
    that its pairs are those of the first."""
    torch.manual_seed(0)
    objective = PrompterObjective(Prompter(tiny_model(tokenizer.get_vocab_size())).eval(), MEAN, STD)
    batch = replace(batches["video"], video=torch.arange(8), boxes=None)
    loss, _ = losses_of(objective, batch)
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
        losses.append(losses_of(objective, half)[0])
    torch.testing.assert_close(sum(losses) / 2, loss)


def test_questions_with_unknown_answers_are_ignored(tiny_model, tokenizer, batches):
    objective = QaObjective(Alpro(tiny_model(tokenizer.get_vocab_size()), answers=3), MEAN, STD)
    batch = batches["video"].map(lambda tensor: tensor)
    batch.answers = torch.tensor([0, 1, 2, 0, -100, -100, -100, -100])
    known = batch.split(2)[0]
    torch.testing.assert_close(losses_of(objective, batch)[0], losses_of(objective, known)[0])
    batch.answers = torch.full((8,), -100)
    assert losses_of(objective, batch)[0] == 0


def test_frames_are_scaled_normalized_and_resized():
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
