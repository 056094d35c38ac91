"""Which examples make which batch: everything follows from the seed and the number of the step."""

import itertools
import multiprocessing
import os
import shutil
import signal
from collections import Counter
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from alpro.errors import InputError
from alpro.shards.decode import Clip
from alpro.shards.reader import read_index
from alpro.shards.schema import Row
from alpro.shards.writer import ShardWriter, index_shard
from alpro.stages.artifacts.store import Resources
from alpro.stages.training import examples
from alpro.stages.training.config import MatchingConfig, Phase
from alpro.stages.training.examples import Batch, TrainingDataset
from alpro.stages.vocabulary.word_pieces import load_tokenizer

WORDS = ("left", "right", "up")


def rows(count: int, captions: int = 1, kind: str = "video", prefix: str = "v", group: int = 1, **more) -> list[dict]:
    """`count` samples in groups of `group`, each with captions of its own."""
    return [
        {
            "id": f"{prefix}{n}",
            "kind": kind,
            "captions": [f"the red ball moves {word}" for word in WORDS[:captions]],
            "group": f"{prefix}{n // group}",
            **more,
        }
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def corpus(corpus_of, tmp_path_factory):
    """corpus(count, **rows): a corpus of `count` samples, built once per combination."""
    cache = {}

    def make(count: int, **overrides):
        key = (count, *sorted(overrides.items()))
        if key not in cache:
            cache[key] = corpus_of(tmp_path_factory.mktemp("corpus"), rows(count, **overrides))
        return cache[key]

    return make


@pytest.fixture(scope="module")
def steps_of(tokenizer, training):
    """steps_of(corpora, steps, unit=..., rank=..., ranks=..., **config): the batches of a training run."""

    def make(corpora, steps=4, unit="sample", rank=0, ranks=1, mlm=0.0, answers=None, **config) -> TrainingDataset:
        config = training(tuple(corpora), steps, **config)
        return TrainingDataset(config, corpora, tokenizer, unit, 4, 8, 4, mlm, answers, rank, ranks)

    return make


def shown(data: TrainingDataset) -> list[str]:
    return [name for step in range(len(data)) for name in data[step].ids]


def assert_equal(one: Batch, other: Batch) -> None:
    """Two batches are the same, to the last bit."""
    assert (one.step, one.kind, one.ids) == (other.step, other.kind, other.ids)
    for name in ("video", "frames", "text", "mask", "masked", "labels", "boxes", "answers"):
        first, second = getattr(one, name), getattr(other, name)
        assert (first is None) == (second is None), name
        assert first is None or torch.equal(first, second), name


@settings(max_examples=30)
@given(st.integers(1, 12), st.integers(1, 4), st.integers(1, 3), st.booleans(), st.integers(0, 3))
def test_an_epoch_shows_each_example_exactly_once_over_any_number_of_ranks(
    corpus, steps_of, count, ranks, per_rank, together, seed
):
    overrides = {"batch_size": ranks * per_rank, "group_batches": together, "seed": seed}
    steps = -(-3 * count // (ranks * per_rank))
    corpora = {"a": corpus(count, group=2)}
    all_ranks = [steps_of(corpora, steps, rank=rank, ranks=ranks, **overrides) for rank in range(ranks)]
    order = [name for step in range(steps) for data in all_ranks for name in data[step].ids]
    everything = {f"v{n}" for n in range(count)}
    for epoch in range(3):
        assert set(order[epoch * count : (epoch + 1) * count]) == everything


@settings(max_examples=10)
@given(st.sampled_from([1, 2, 4, 8]), st.integers(0, 3))
def test_the_batches_of_the_ranks_are_together_that_of_one(clips, steps_of, ranks, step):
    overrides = {"mlm": 0.3}
    whole = steps_of({"clips": clips}, **overrides)[step]
    parts = [steps_of({"clips": clips}, rank=rank, ranks=ranks, **overrides)[step] for rank in range(ranks)]
    assert [name for part in parts for name in part.ids] == whole.ids
    for name in ("video", "frames", "boxes"):
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))
    for name in ("text", "masked", "labels"):  # as long as the longest text of the rank
        tokens = [row[mask > 0] for part in parts for row, mask in zip(getattr(part, name), part.mask, strict=True)]
        for actual, row, mask in zip(tokens, getattr(whole, name), whole.mask, strict=True):
            assert torch.equal(actual, row[mask > 0])


def test_a_step_is_the_same_whoever_asks_and_in_whatever_order(clips, stills, steps_of):
    corpora = {"clips": clips, "stills": stills}
    first = steps_of(corpora, 8, mlm=0.3)
    once = [first[step] for step in range(8)]
    second = steps_of(corpora, 8, mlm=0.3)
    for step in (5, 0, 7, 7, 3, 1):
        assert_equal(second[step], once[step])


def test_the_loader_goes_on_from_any_step(clips, steps_of, resources):
    data = steps_of({"clips": clips}, 6)
    loaded = list(data.loader(2, resources, torch.device("cpu")))
    assert [batch.step for batch in loaded] == [2, 3, 4, 5]
    for batch in loaded:
        assert_equal(batch, data[batch.step])


def test_another_seed_is_another_run(clips, steps_of):
    assert shown(steps_of({"clips": clips}, seed=1)) != shown(steps_of({"clips": clips}, seed=2))


def test_batches_are_of_one_kind(corpus_of, tmp_path, steps_of):
    mixed = corpus_of(tmp_path, rows(9, prefix="v") + rows(7, kind="image", prefix="i"))
    data = steps_of({"mixed": mixed}, 30)
    kinds = Counter()
    for step in range(30):
        batch = data[step]
        assert {name[0] for name in batch.ids} == {batch.kind[0]}
        kinds[batch.kind] += 1
    assert set(kinds) == {"video", "image"}


def test_every_rank_takes_the_same_kind_at_each_step(clips, stills, steps_of):
    one, other = (steps_of({"clips": clips, "stills": stills}, 12, rank=rank, ranks=2) for rank in (0, 1))
    assert [one[s].kind for s in range(12)] == [other[s].kind for s in range(12)]


def test_an_image_is_a_clip_that_stands_still(stills, steps_of):
    batch = steps_of({"stills": stills})[0]
    assert batch.kind == "image"
    assert batch.frames.shape[1] == 4
    assert (batch.frames == batch.frames[:, :1]).all()


def test_groups_stand_together_where_asked(corpus, steps_of):
    data = steps_of({"a": corpus(12, group=3)}, 6, group_batches=True, batch_size=6)
    order = shown(data)
    for start in range(0, 36, 3):
        assert len({int(name[1:]) // 3 for name in order[start : start + 3]}) == 1
    assert order[:12] != order[12:24] != order[24:]


def test_twins_are_in_one_batch(lessons, steps_of):
    data = steps_of({"lessons": lessons}, 3, group_batches=True, batch_size=4)
    for step in range(3):
        names = set(data[step].ids)
        assert {name.removesuffix("-back") for name in names} <= names


def test_pairs_are_videos_times_captions(corpus_of, tmp_path, steps_of, tokenizer):
    counts = [2, 1, 0, 3]
    corpus = corpus_of(
        tmp_path,
        [{"id": f"v{n}", "captions": [f"{word} ball" for word in WORDS[:k]]} for n, k in enumerate(counts)],
    )
    data = steps_of({"a": corpus}, 1, "caption", batch_size=6)
    assert (len(data.sources[0]), data.skipped) == (6, 1)
    batch = data[0]
    pairs = Counter(zip(batch.ids, map(tokenizer.decode, batch.text.tolist()), strict=True))
    expected = {(f"v{n}", f"{word} ball") for n, k in enumerate(counts) for word in WORDS[:k]}
    assert pairs == Counter(expected)
    assert [int(v) for v in batch.video] == [int(name[1:]) for name in batch.ids]


def test_a_sample_is_shown_with_each_of_its_captions_in_time(corpus, steps_of):
    data = steps_of({"a": corpus(1, captions=3)}, 30, batch_size=1)
    texts = Counter(tuple(data[step].text[0].tolist()) for step in range(30))
    assert len(texts) == 3


@pytest.mark.parametrize("sampling", ["halves", "random"])
def test_pre_training_draws_from_both_halves_of_a_clip(tmp_path, steps_of, sampling):
    """Of 8 frames, each of a brightness of its own, always two of the first four and two of the last."""
    frames = np.stack([np.full((8, 8, 3), 30 * n, np.uint8) for n in range(8)])
    with ShardWriter(tmp_path / "all.tar", 95) as writer:
        for n in range(8):
            row = Row(id=f"v{n}", path=Path("a"), kind="video", split="train", group=f"v{n}", captions=("a ball",))
            writer.write(row, Clip(frames, 1.0, 8, 8))
    pq.write_table(index_shard(tmp_path / "all.tar"), tmp_path / "index.parquet")
    data = steps_of({"a": tmp_path}, 6, sampling=sampling)
    drawn = torch.cat([data[step].frames for step in range(6)]).float().mean(dim=(2, 3, 4)).div(30).round()
    early = (drawn < 4).sum(1)
    assert (early == 2).all() == (sampling == "halves")
    assert len({tuple(row) for row in drawn.tolist()}) > 10
    assert (drawn.diff(dim=1) > 0).all()  # in order, none twice


def test_samples_without_a_text_are_left_out_and_counted(corpus_of, tmp_path, steps_of):
    asked = [{"question": "how many balls are there?", "answer": "two", "type": "how"}]
    corpus = corpus_of(tmp_path, [*rows(3), *rows(2, captions=0, prefix="q", questions=asked)])
    steps = steps_of({"a": corpus}, 3, batch_size=3)
    assert (set(shown(steps)), steps.skipped) == ({"v0", "v1", "v2"}, 2)
    questions = steps_of({"a": corpus}, 3, "question", batch_size=2, answers={"two": 7})
    assert (set(shown(questions)), questions.skipped) == ({"q0", "q1"}, 3)
    assert questions[0].answers.tolist() == [7, 7]
    silent = corpus_of(tmp_path / "silent", rows(4, captions=0, prefix="s", questions=asked))
    both = steps_of({"a": corpus, "b": silent}, 3, batch_size=3)
    assert (set(shown(both)), both.skipped) == ({"v0", "v1", "v2"}, 2 + 4)  # a corpus without any is counted too


def test_an_answer_that_cannot_be_given_is_none(corpus_of, tmp_path, steps_of):
    asked = [{"question": "how many?", "answer": "nine", "type": "how"}]
    corpus = corpus_of(tmp_path, rows(2, questions=asked))
    assert steps_of({"a": corpus}, 1, "question", batch_size=2, answers={"two": 0})[0].answers.tolist() == [-100, -100]


def test_only_training_samples_are_shown(clips, steps_of):
    assert {name.split("-")[0] for name in shown(steps_of({"clips": clips}, 10))} == {"train"}


def test_phases_follow_each_other_with_their_lengths(corpus, steps_of):
    corpora = {"a": corpus(5, prefix="a"), "b": corpus(6, prefix="b"), "c": corpus(4, prefix="c", kind="image")}
    phases = [
        {"corpora": ("a",), "steps": 3},
        {"corpora": ("b",), "steps": 4},
        {"corpora": ("c", "b"), "weights": (1e9, 1), "epochs": 2},
    ]
    data = steps_of(corpora, phases=phases, batch_size=5)
    letters = "".join(data[step].ids[0][0] for step in range(len(data)))
    assert letters == "aaa" + "bbbb" + "cccc"  # 2 epochs x (4 + 6 examples) / 5


def test_a_corpus_goes_on_where_an_earlier_phase_left_it(corpus, steps_of):
    phases = [{"corpora": ("a",), "steps": 1}, {"corpora": ("a",), "steps": 1}]
    data = steps_of({"a": corpus(6)}, phases=phases, batch_size=3)
    assert sorted(shown(data)) == [f"v{n}" for n in range(6)]


def test_weights_are_shares_of_the_steps_and_else_sizes_are(corpus, steps_of):
    corpora = {"a": corpus(4, prefix="a"), "b": corpus(12, prefix="b")}
    by_size = steps_of(corpora, 2000)
    assert (by_size.source_of == 0).mean() == pytest.approx(0.25, abs=0.03)
    phases = [{"corpora": ("a", "b"), "weights": (3, 1), "steps": 2000}]
    by_weight = steps_of(corpora, phases=phases)
    assert (by_weight.source_of == 0).mean() == pytest.approx(0.75, abs=0.03)


@pytest.mark.parametrize(("epochs", "batch_size", "steps"), [(1, 4, 3), (2, 4, 6), (0.5, 3, 2), (0.01, 12, 1)])
def test_epochs_are_passes_over_the_examples(epochs, batch_size, steps, corpus, steps_of):
    phases = [{"corpora": ("a",), "epochs": epochs}]
    assert len(steps_of({"a": corpus(12)}, phases=phases, batch_size=batch_size)) == steps


@pytest.mark.parametrize(
    "wrong",
    [
        {"corpora": ("a",)},
        {"corpora": ("a",), "steps": 1, "epochs": 1},
        {"corpora": (), "steps": 1},
        {"corpora": ("a", "b"), "weights": (1,), "steps": 1},
        {"corpora": ("a", "b"), "weights": (0, 0), "steps": 1},
        {"corpora": ("a", "b"), "weights": (2, -1), "steps": 1},
    ],
)
def test_phases_that_make_no_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="Phase"):
        Phase(**wrong)


@pytest.mark.parametrize(("ranks", "accumulation_steps"), [(3, 1), (1, 3), (2, 8)])
def test_a_batch_that_does_not_divide_is_a_mistake(ranks, accumulation_steps, corpus, steps_of):
    with pytest.raises(
        InputError,
        match=f"batch_size 8 is not a multiple of {ranks} processes x {accumulation_steps} accumulation_steps",
    ):
        steps_of({"a": corpus(4)}, ranks=ranks, accumulation_steps=accumulation_steps)


def test_pools_of_negatives_divide_the_batch_and_are_whole_on_every_number_of_processes():
    wanted = {
        "phases": [{"corpora": ["a"], "steps": 1}],
        "batch_size": 48,
        "accumulation_steps": 2,
        "negative_pool_size": 8,
    }
    config = MatchingConfig.model_validate(wanted)  # 24 pairs at a time
    for ranks in (1, 3, 6, 12, 24):
        config.check_division(ranks)
    with pytest.raises(InputError, match="negative_pool_size 8 and the 12 pairs per process and micro-batch"):
        config.check_division(2)
    with pytest.raises(InputError, match="is not a multiple of 5 processes"):
        config.check_division(5)
    with pytest.raises(
        ValidationError, match="negative_pool_size 16 does not divide batch_size / accumulation_steps = 24"
    ):
        MatchingConfig.model_validate(wanted | {"negative_pool_size": 16})


def test_a_phase_without_examples_is_a_mistake(corpus, steps_of):
    with pytest.raises(InputError, match="no training examples with a caption in a"):
        steps_of({"a": corpus(3, captions=0)})
    with pytest.raises(InputError, match="no training examples with a question in a"):
        steps_of({"a": corpus(3)}, unit="question")


@pytest.mark.parametrize("parts", [1, 2, 4])
def test_the_parts_of_a_batch_are_together_the_batch(parts, clips, steps_of):
    batch = steps_of({"clips": clips}, mlm=0.3)[0]
    split = batch.split(parts)
    assert [len(part.ids) for part in split] == [8 // parts] * parts
    assert [name for part in split for name in part.ids] == batch.ids
    for name in ("video", "frames", "boxes"):
        assert torch.equal(torch.cat([getattr(part, name) for part in split]), getattr(batch, name))
    for name, filler in (("text", batch.text[batch.mask == 0][:1]), ("mask", 0), ("masked", 0), ("labels", -100)):
        rows = [row for part in split for row in getattr(part, name)]
        for row, whole in zip(rows, getattr(batch, name), strict=True):
            assert torch.equal(row, whole[: len(row)])
            assert (whole[len(row) :] == filler).all()


def test_a_part_is_padded_to_its_own_longest_text(corpus_of, tmp_path, steps_of):
    """And on several ranks to the one length of all batches."""
    captions = ["a ball moves to the left of a box and a star", "a ball"]
    rows = [{"id": f"v{n}", "captions": [captions[n % 2]]} for n in range(8)]
    corpora = {"a": corpus_of(tmp_path, rows)}
    data = steps_of(corpora, 8, accumulation_steps=8, mlm=0.3)
    widths = {part.text.shape[1] for step in range(8) for part in data[step].split(8)}
    assert len(widths) == 2
    for part in data[0].split(8):
        longest = int(part.mask.sum())
        assert {tensor.shape for tensor in (part.text, part.mask, part.masked, part.labels)} == {part.text.shape}
        assert part.text.shape[1] == -(-longest // 8) * 8
    apart = steps_of(corpora, 8, accumulation_steps=4, ranks=2)
    assert {part.text.shape[1] for step in range(8) for part in apart[step].split(4)} == {24}


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_an_accumulated_part_holds_the_same_examples_on_any_number_of_ranks(ranks, clips, steps_of):
    """What is contrasted with what must not depend on how many processes share a batch."""
    whole = steps_of({"clips": clips}, accumulation_steps=2)[0].split(2)
    parts = [
        steps_of({"clips": clips}, accumulation_steps=2, rank=rank, ranks=ranks)[0].split(2) for rank in range(ranks)
    ]
    for number, one in enumerate(whole):
        assert [name for rank in parts for name in rank[number].ids] == one.ids


def test_texts_are_padded_with_the_tokenizers_own_padding(corpus_of, tmp_path, training):
    """Not with the id 0, which is a word in a tokenizer that puts [PAD] elsewhere."""
    words = ["a", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "ball", "red", "big", "and", "or", "so", "on"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = load_tokenizer(str(tmp_path / "vocab.txt"))
    rows = [{"id": "short", "captions": ["a"]}, {"id": "long", "captions": ["a red ball and a big red ball"]}]
    corpora = {"a": corpus_of(tmp_path / "corpus", rows)}
    batch = TrainingDataset(training(corpora, 1, batch_size=2), corpora, tokenizer, "sample", 4, 8, 4, 0.3)[0]
    for tokens in (batch.text, batch.masked):
        assert set(tokens[batch.mask == 0].tolist()) == {1}


def test_masked_words_are_words_and_labels_are_what_they_were(clips, steps_of, tokenizer):
    data = steps_of({"clips": clips}, 4, mlm=0.9)
    for step in range(4):
        batch = data[step]
        chosen = batch.labels != -100
        assert chosen.any()
        assert torch.equal(batch.labels[chosen], batch.text[chosen])
        assert torch.equal(batch.masked[~chosen], batch.text[~chosen])
        ends = [tokenizer.token_to_id(t) for t in ("[CLS]", "[SEP]", "[PAD]")]
        assert not torch.isin(batch.text[chosen], torch.tensor(ends)).any()


def test_texts_are_cut_to_the_length_and_end_as_texts_do(clips, steps_of, tokenizer):
    batch = steps_of({"clips": clips}, max_text_tokens=6)[0]
    assert batch.text.shape == (8, 8)  # 6, rounded up so that shapes are few
    for row, mask in zip(batch.text, batch.mask, strict=True):
        words = row[mask > 0].tolist()
        assert len(words) <= 6
        assert (words[0], words[-1]) == (tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]"))
        assert set(row[mask == 0].tolist()) <= {tokenizer.token_to_id("[PAD]")}


def test_what_the_text_says_decides_on_the_flip_and_so_do_answers(clips, stills, steps_of, monkeypatch):
    texts = {"video": [], "image": []}
    monkeypatch.setattr(examples, "augment_video", lambda frames, text, rng: texts["video"].append(text) or frames)
    monkeypatch.setattr(
        examples, "augment_image", lambda frame, size, text, rng: texts["image"].append(text) or frame[:size, :size]
    )
    asked = steps_of({"clips": clips}, 3, unit="question", answers={"left": 0}, augmentation="official")
    assert asked[0].frames.shape[-2:] == (35, 35)  # augmented after the crop, 0.875 of 40
    assert steps_of({"stills": stills}, 1, augmentation="official")[0].frames.shape[-2:] == (8, 8)
    for step in (1, 2):
        assert asked[step].kind == "video"
    assert {text.split("? ")[-1] for text in texts["video"]} & {"left", "right", "up", "down"}
    assert texts["image"]


def test_a_clip_is_cropped_before_it_is_augmented(clips, steps_of, monkeypatch):
    """As in the official code: what an operation moves in from outside is grey, not the frame beyond the crop."""
    seen = []
    monkeypatch.setattr(examples, "augment_video", lambda frames, text, rng: seen.append(frames) or frames)
    batch = steps_of({"clips": clips}, 1, augmentation="official", random_crop=0.5)[0]
    assert {frames.shape for frames in seen} == {(4, 20, 20, 3)}
    assert batch.frames.shape == (8, 4, 3, 20, 20)


def test_images_of_any_shape_make_a_batch(tmp_path, steps_of):
    """They are stored with their aspect ratio, and resized as they are read; the crop is a share of both sides."""
    writer = ShardWriter(tmp_path / "all.tar", 95)
    for number, (height, width) in enumerate([(40, 60), (90, 30), (8, 8)]):
        frame = np.zeros((1, height, width, 3), np.uint8)
        frame[:, : height // 2, :, 0] = 255  # red above
        frame[:, :, : width // 2, 2] = 255  # blue on the left
        name = str(number)
        row = Row(id=name, path=tmp_path / name, kind="image", split="train", captions=("a",), group=name)
        writer.write(row, Clip(frame, 0.0, width, height))
    writer.close()
    pq.write_table(index_shard(tmp_path / "all.tar"), tmp_path / "index.parquet")
    batch = steps_of({"a": tmp_path}, 1, batch_size=3, random_crop=1.0)[0]
    assert batch.frames.shape == (3, 4, 3, 8, 8)
    quarters = batch.frames[:, :, :, 1::4, 1::4].float()  # of each quarter a pixel
    assert (quarters[:, :, 0] > 128).tolist() == [[[[True, True], [False, False]]] * 4] * 3
    assert (quarters[:, :, 2] > 128).tolist() == [[[[True, False], [True, False]]] * 4] * 3
    assert steps_of({"a": tmp_path}, 1, batch_size=3, random_crop=0.5)[0].frames.shape == (3, 4, 3, 8, 8)
    assert steps_of({"a": tmp_path}, 1, batch_size=3, augmentation="official")[0].frames.shape == (3, 4, 3, 8, 8)


def test_the_augmentation_can_be_looked_at(clips, stills, steps_of, tmp_path):
    """pictures/augmentation.png: each operation by itself, then examples as they are shown, of videos and images."""
    data = steps_of({"clips": clips, "stills": stills}, augmentation="official")
    data.draw_augmentation(tmp_path / "pictures" / "augmentation.png")
    with Image.open(tmp_path / "pictures" / "augmentation.png") as picture:
        assert picture.width > 3 * 4 * 170
        assert picture.height > 8 * 170
        assert picture.getcolors(1000) is None  # frames in colour, not an empty page
    broken(clips, tmp_path / "broken", 1)
    steps_of({"clips": tmp_path / "broken"}).draw_augmentation(tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()  # its first sample is corrupt; training logs it


def broken(corpus: Path, to: Path, count: int) -> list[str]:
    """A copy of a corpus in which the first frames of `count` training samples are corrupt; their ids."""
    shutil.copytree(corpus, to)
    rows = [row for row in read_index(to).to_pylist() if row["split"] == "train"][:count]
    for row in rows:
        content = bytearray((to / row["shard"]).read_bytes())
        for offset, size in zip(row["frame_offsets"], row["frame_sizes"], strict=True):
            content[offset : offset + min(size, 64)] = bytes(min(size, 64))
        (to / row["shard"]).write_bytes(content)
    return [row["id"] for row in rows]


def test_a_corrupt_sample_is_logged_and_replaced_by_the_next_one(clips, steps_of, tmp_path):
    """The official code puts another one there without a word (departure 7)."""
    (lost,) = broken(clips, tmp_path / "broken", 1)
    whole, mended = (steps_of({"clips": folder}, 30) for folder in (clips, tmp_path / "broken"))
    replaced = 0
    for one, other in zip(map(whole.__getitem__, range(30)), map(mended.__getitem__, range(30)), strict=True):
        gone = [place for place, name in enumerate(one.ids) if name == lost]
        assert len(other.unreadable) == len(gone)
        assert all(f": {lost}, frame " in line for line in other.unreadable)
        assert lost not in other.ids
        assert [n for p, n in enumerate(other.ids) if p not in gone] == [
            n for p, n in enumerate(one.ids) if p not in gone
        ]
        replaced += len(gone)
    assert replaced > 2


def test_a_corpus_of_which_nothing_can_be_read_is_a_mistake(clips, steps_of, tmp_path):
    shutil.copytree(clips, tmp_path / "broken")
    for shard in (tmp_path / "broken").glob("*.tar"):
        shard.write_bytes(b"")
    with pytest.raises(InputError, match=r"consecutive samples cannot be read, the last: .*truncated"):
        steps_of({"clips": tmp_path / "broken"})[0]


def test_a_corrupt_video_with_many_captions_is_one_unreadable_example(clips, steps_of, tmp_path):
    """The next example may be the same video with its next caption: the next sample is shown."""
    (lost,) = broken(clips, tmp_path / "broken", 1)
    data = steps_of({"clips": tmp_path / "broken"}, 30, unit="caption")
    batches = [data[step] for step in range(30)]
    assert lost not in {name for batch in batches for name in batch.ids}
    whole = steps_of({"clips": clips}, 30, unit="caption")
    assert sum(len(b.unreadable) for b in batches) == sum(whole[step].ids.count(lost) for step in range(30)) > 0


def test_a_mistake_in_a_loading_process_is_the_line_it_was(clips, steps_of, tmp_path, monkeypatch, resources):
    shutil.copytree(clips, tmp_path / "broken")
    for shard in (tmp_path / "broken").glob("*.tar"):
        shard.write_bytes(b"")
    in_process(monkeypatch)
    data = steps_of({"clips": tmp_path / "broken"})
    with pytest.raises(InputError) as mistake:
        next(data.loader(0, resources, torch.device("cpu")))
    assert "\n" not in str(mistake.value)


def in_process(monkeypatch) -> None:
    """One loading process, as where there is a GPU."""
    loader = examples.DataLoader
    more = {"num_workers": 1, "prefetch_factor": 1}
    monkeypatch.setattr(examples, "DataLoader", lambda *a, **k: loader(*a, **k | more))


def test_loading_processes_heed_no_signal_of_their_group(clips, steps_of, monkeypatch, resources):
    in_process(monkeypatch)
    others = set(multiprocessing.active_children())
    batches = steps_of({"clips": clips}, 20).loader(0, resources, torch.device("cpu"))
    next(batches)
    (loading,) = set(multiprocessing.active_children()) - others
    os.kill(loading.pid, signal.SIGTERM)
    assert [batch.step for batch in batches] == list(range(1, 20))


def loaded(data: TrainingDataset, first: int, last: int, workers: int) -> list[Batch]:
    """Steps `first` to `last` as loaded by so many processes, as where there is a GPU; the rest is left, as by a run
    that ends in between."""
    more = {"num_workers": workers, "prefetch_factor": 2 if workers else None}
    loader = examples.DataLoader
    with mock.patch.object(examples, "DataLoader", lambda *a, **k: loader(*a, **k | more)):
        batches = data.loader(first, Resources(workers=1), torch.device("cpu"))
        return list(itertools.islice(batches, last - first))


LIVES = st.lists(st.tuples(st.integers(0, 10), st.sampled_from([0, 1, 3])), max_size=3)


def assert_lives_show_all(corpora, steps_of, ranks: int, per_rank: int, together: bool, seed: int, lives) -> None:
    """A run that ends and goes on at any steps, each life with any number of loading processes, shows on every rank
    what an uninterrupted one does; and every source's examples in its batches, each once before any comes again."""
    overrides = {"batch_size": ranks * per_rank, "group_batches": together, "seed": seed, "mlm": 0.3}
    ends = [*sorted(end for end, _ in lives), 10]
    workers = [count for _, count in lives] + [0]
    shown: dict[str, list[str]] = {kind: [] for kind in ("video", "image")}
    whole = [steps_of(corpora, 10, rank=rank, ranks=ranks, **overrides) for rank in range(ranks)]
    for rank in range(ranks):
        actual: list[Batch] = []
        for end, count in zip(ends, workers, strict=True):
            life = steps_of(corpora, 10, rank=rank, ranks=ranks, **overrides)  # a fresh process has no state
            actual += loaded(life, len(actual), end, count)
        for step in range(10):
            assert_equal(actual[step], whole[rank][step])
    for step in range(10):
        batches = [data[step] for data in whole]
        assert len({batch.kind for batch in batches}) == 1
        shown[batches[0].kind] += [name for batch in batches for name in batch.ids]
    for kind, count in (("video", 7), ("image", 5)):
        for epoch in range(0, len(shown[kind]), count):
            once = shown[kind][epoch : epoch + count]
            assert len(set(once)) == len(once), f"epoch {epoch // count}: one twice before all were there"


@pytest.fixture(scope="module")
def two_kinds(corpus_of, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("two_kinds")
    mixed = rows(7, prefix="v", captions=2, group=2) + rows(5, kind="image", prefix="i")
    return {"mixed": corpus_of(folder / "mixed", mixed)}


RUNS = (st.integers(1, 3), st.integers(1, 3), st.booleans(), st.integers(0, 3), LIVES)


@settings(max_examples=8)
@given(*RUNS)
def test_ranks_workers_and_lives_neither_lose_nor_repeat_an_example(
    two_kinds, steps_of, ranks, each, together, seed, lives
):
    assert_lives_show_all(two_kinds, steps_of, ranks, each, together, seed, lives)


@pytest.mark.long
@settings(max_examples=150)
@given(*RUNS)
def test_many_ranks_workers_and_lives(two_kinds, steps_of, ranks, each, together, seed, lives):
    assert_lives_show_all(two_kinds, steps_of, ranks, each, together, seed, lives)


@settings(max_examples=20)
@given(st.floats(0.1, 0.9), st.integers(0, 5))
def test_two_kinds_are_mixed_by_batch_in_the_ratio_asked(corpus, steps_of, share, seed):
    corpora = {"v": corpus(6), "i": corpus(4, kind="image", prefix="i")}
    phase = Phase(corpora=("v", "i"), weights=(share, 1 - share), steps=2000)
    data = steps_of(corpora, phases=[phase], seed=seed)
    videos = sum(data.sources[number].kind == "video" for number in data.source_of) / len(data)
    assert abs(videos - share) < 5 * (share * (1 - share) / 2000) ** 0.5
