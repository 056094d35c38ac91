"""Which examples a batch has: a function of the seed and the step."""

import itertools
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from alpro.errors import InputError
from alpro.stages.execution.interface import Resources
from alpro.stages.training.batch import Batch
from alpro.stages.training.config import MatchingConfig, Phase
from alpro.stages.training.dataset import TrainingDataset
from tests.stages.training.conftest import loading_processes, sample_rows


def sample_ids(data: TrainingDataset) -> list[str]:
    """The samples of all batches, in order."""
    return [name for step in range(len(data)) for name in data[step].ids]


def assert_equal(one: Batch, other: Batch) -> None:
    """Two batches are the same, to the last bit."""
    assert (one.step, one.kind, one.ids) == (other.step, other.kind, other.ids)
    for name in ("video", "frames", "text", "mask", "masked", "labels", "boxes", "answers"):
        first = getattr(one, name)
        second = getattr(other, name)
        assert (first is None) == (second is None), name
        assert first is None or torch.equal(first, second), name


@settings(max_examples=16)
@given(
    st.sampled_from([(1, 1), (2, 1), (4, 1), (8, 1), (1, 2), (1, 4), (2, 2), (4, 2), (2, 4)]),
    st.integers(0, 3),
)
def test_the_micro_batches_of_all_ranks_add_up_to_the_batch_of_one_process(
    clips, steps_of, shape, step
):
    """What is contrasted with what does not depend on how many processes share a batch."""
    ranks, parts = shape
    config = {"mlm": 0.3, "crops": 0.5, "accumulation_steps": parts}
    whole = steps_of({"clips": clips}, **config)[step]
    batches = [
        steps_of({"clips": clips}, rank=rank, ranks=ranks, **config)[step] for rank in range(ranks)
    ]
    of_ranks = [batch.split(parts) for batch in batches]
    found = [own[part] for part in range(parts) for own in of_ranks]
    assert [len(part.ids) for part in found] == [8 // ranks // parts] * ranks * parts
    assert [name for part in found for name in part.ids] == whole.ids
    for name in ("video", "frames", "boxes"):
        assert torch.equal(torch.cat([getattr(part, name) for part in found]), getattr(whole, name))
    for name, filler in (
        ("text", 0),
        ("mask", 0),
        ("masked", 0),
        ("labels", -100),
    ):  # each as long as its longest text
        rows = [row for part in found for row in getattr(part, name)]
        for row, expected in zip(rows, getattr(whole, name), strict=True):
            length = min(len(row), len(expected))
            assert torch.equal(row[:length], expected[:length])
            assert all((rest == filler).all() for rest in (row[length:], expected[length:]))


def test_an_image_is_a_still_clip_or_one_frame(stills, steps_of):
    clip, frame = (
        steps_of({"stills": stills}, 1, repeat_images=repeat)[0].frames for repeat in (True, False)
    )
    assert clip.shape[1] == 4
    assert torch.equal(clip[:, :1], frame)
    assert torch.equal(clip, frame.expand_as(clip))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_examples_shows_a_crop_and_the_rest_is_unchanged(clips, steps_of, share):
    data = steps_of({"clips": clips}, 40, crops=share)
    plain = steps_of({"clips": clips}, 40)
    boxes = []
    for step in range(40):
        batch = data[step]
        boxes += [] if batch.boxes is None else batch.boxes.tolist()
        assert_equal(replace(batch, boxes=None, uniforms=None), replace(plain[step], uniforms=None))
    crops = [width * height / 16 for _, _, width, height in boxes if (width, height) != (4, 4)]
    assert all(0.5 < area <= 0.75 for area in crops)
    assert len(crops) / max(1, len(boxes)) == pytest.approx(
        share, abs=0.12
    )  # four standard deviations


def test_phases_differ_in_grouping(corpus, steps_of):
    phases = [
        {"corpora": ("a",), "steps": 6, "group_batches": grouped} for grouped in (True, False)
    ]
    data = steps_of({"a": corpus(12, group=3)}, phases=phases, batch_size=6)
    order = [int(name[1:]) // 3 for name in sample_ids(data)]
    apart = [len(set(order[start : start + 3])) for start in range(0, 72, 3)]
    assert (set(apart[:12]), max(apart[12:]) > 1) == ({1}, True)
    assert order[:12] != order[12:24] != order[24:36]


def test_pairs_are_videos_times_captions(corpus_of, tmp_path, steps_of, tokenizer):
    counts = [2, 1, 0, 3]
    words = ("left", "right", "up")
    rows = [
        {"id": f"v{n}", "captions": [f"{word} ball" for word in words[:k]]}
        for n, k in enumerate(counts)
    ]
    data = steps_of({"a": corpus_of(tmp_path, rows)}, 1, "caption", batch_size=6)
    assert (len(data.sources[0]), data.skipped) == (6, 1)
    batch = data[0]
    pairs = Counter(zip(batch.ids, map(tokenizer.decode, batch.text.tolist()), strict=True))
    expected = {(f"v{n}", f"{word} ball") for n, k in enumerate(counts) for word in words[:k]}
    assert pairs == Counter(expected)
    assert [int(v) for v in batch.video] == [int(name[1:]) for name in batch.ids]


def test_samples_without_a_text_are_left_out_and_counted(corpus_of, tmp_path, steps_of, tokenizer):
    question = [{"question": "how many balls are there?", "answer": "two", "type": "how"}]
    corpus = corpus_of(
        tmp_path, [*sample_rows(3), *sample_rows(2, captions=0, prefix="q", questions=question)]
    )
    steps = steps_of({"a": corpus}, 3, batch_size=3)
    assert (set(sample_ids(steps)), steps.skipped) == ({"v0", "v1", "v2"}, 2)
    questions = steps_of({"a": corpus}, 3, "question", batch_size=2, answers=(*"abcdefg", "two"))
    assert (set(sample_ids(questions)), questions.skipped) == ({"q0", "q1"}, 3)
    assert questions[0].answers.tolist() == [7, 7]
    asked = tokenizer.encode(question[0]["question"]).ids  # without the answer
    assert questions[0].text[0, : len(asked)].tolist() == asked
    unknown = steps_of({"a": corpus}, 3, "question", batch_size=2, answers=("nine",))
    assert unknown[0].answers.tolist() == [-100, -100]
    silent = corpus_of(
        tmp_path / "silent", sample_rows(4, captions=0, prefix="s", questions=question)
    )
    both = steps_of({"a": corpus, "b": silent}, 3, batch_size=3)
    assert (set(sample_ids(both)), both.skipped) == (
        {"v0", "v1", "v2"},
        2 + 4,
    )  # a corpus without any is counted too


def test_only_the_training_split_is_used_in_an_order_of_the_seed(clips, steps_of):
    one, other = (steps_of({"clips": clips}, 10, seed=seed) for seed in (1, 2))

    assert sample_ids(one) != sample_ids(other)
    assert {name.split("-")[0] for name in sample_ids(one) + sample_ids(other)} == {"train"}


def test_the_random_numbers_of_an_example_follow_from_the_seed(clips, steps_of):
    one, other = (steps_of({"clips": clips}, 10, seed=seed, mlm=0.3) for seed in (1, 2))

    examples = [data.example(data.sources[0], 0, 3) for data in (one, other)]

    for name in ("frames", "masked", "box", "uniforms"):
        assert not np.array_equal(*(example[name] for example in examples)), name


def test_phases_follow_each_other_with_their_lengths(corpus, steps_of):
    corpora = {
        "a": corpus(5, prefix="a"),
        "b": corpus(6, prefix="b"),
        "c": corpus(4, prefix="c", kind="image"),
    }
    phases = [
        {"corpora": ("a",), "steps": 3},
        {"corpora": ("b",), "steps": 4},
        {"corpora": ("c", "b"), "weights": (1e9, 1), "epochs": 2},
    ]
    data = steps_of(corpora, phases=phases, batch_size=5)
    letters = "".join(data[step].ids[0][0] for step in range(len(data)))
    assert letters == "aaa" + "bbbb" + "cccc"  # 2 epochs x (4 + 6 examples) / 5
    for epochs, batch_size, steps in ((0.5, 3, 2), (0.7, 5, 2), (0.01, 12, 1)):
        phases = [{"corpora": ("a",), "epochs": epochs}]
        assert len(steps_of({"a": corpus(12)}, phases=phases, batch_size=batch_size)) == steps
    phases = [{"corpora": ("a",), "steps": 1}] * 2
    data = steps_of({"a": corpus(6)}, phases=phases, batch_size=3)
    assert sorted(sample_ids(data)) == [f"v{n}" for n in range(6)]  # the second continues the epoch


def test_corpora_have_steps_by_weight_or_by_size(corpus, two_kinds, steps_of):
    corpora = {"a": corpus(4, prefix="a"), "b": corpus(12, prefix="b")}
    by_size = steps_of(corpora, 2000)
    assert (by_size.step_sources == 0).mean() == pytest.approx(0.25, abs=0.03)
    corpora = {
        **two_kinds,
        "b": corpus(40, prefix="b"),
    }  # 7 videos and 5 images share the weight of their corpus
    by_weight = steps_of(
        corpora, phases=[{"corpora": ("mixed", "b"), "weights": (3, 1), "steps": 2000}]
    )
    shares = [(by_weight.step_sources == number).mean() for number in range(3)]
    assert shares == pytest.approx([0.75 * 7 / 12, 0.75 * 5 / 12, 0.25], abs=0.03)


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
def test_invalid_phases_are_refused(wrong):
    with pytest.raises(ValueError, match="Phase"):
        Phase(**wrong)


def test_pools_of_negatives_divide_the_batch_and_are_whole_on_every_number_of_processes():
    wanted = {"phases": [{"corpora": ["a"], "steps": 1}], "batch_size": 48, "accumulation_steps": 2}
    wanted["negative_pool_size"] = 8
    config = MatchingConfig.model_validate(wanted)  # 24 pairs at a time
    for ranks in (1, 3, 6, 12, 24):
        config.check_division(ranks)
    with pytest.raises(
        InputError, match="negative_pool_size 8 and the 12 pairs per process and micro-batch"
    ):
        config.check_division(2)
    for ranks, parts in ((5, 2), (1, 7), (2, 48)):
        with pytest.raises(
            InputError,
            match=f"48 is not a multiple of {ranks} processes x {parts} accumulation_steps",
        ):
            config.model_copy(update={"accumulation_steps": parts}).check_division(ranks)
    with pytest.raises(
        ValidationError,
        match="negative_pool_size 16 does not divide batch_size / accumulation_steps = 24",
    ):
        MatchingConfig.model_validate(wanted | {"negative_pool_size": 16})


def test_a_phase_without_examples_and_ranks_that_do_not_divide_a_batch_are_errors(corpus, steps_of):
    with pytest.raises(InputError, match="no training examples with a caption in a"):
        steps_of({"a": corpus(3, captions=0)})
    with pytest.raises(InputError, match="no training examples with a question in a"):
        steps_of({"a": corpus(3)}, unit="question")
    with pytest.raises(InputError, match="batch_size 8 is not a multiple of 3 processes"):
        steps_of({"a": corpus(4)}, ranks=3)


def loaded(data: TrainingDataset, first: int, last: int, workers: int) -> list[Batch]:
    """Steps `first` to `last` as loaded by so many processes; the rest is left, as by a run that
    ends in between."""
    with loading_processes(workers):
        batches = data.loader(first, Resources(workers=1), torch.device("cpu"))
        return list(itertools.islice(batches, last - first))


@pytest.fixture(scope="module")
def two_kinds(corpus_of, tmp_path_factory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("two_kinds")
    mixed = sample_rows(7, prefix="v", captions=2, group=2) + sample_rows(
        5, kind="image", prefix="i"
    )
    return {"mixed": corpus_of(folder / "mixed", mixed)}


@settings(max_examples=8)
@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.booleans(),
    st.integers(0, 3),
    st.lists(st.tuples(st.integers(0, 10), st.sampled_from([0, 1, 3])), max_size=3),
)
def test_ranks_workers_and_restarts_neither_lose_nor_repeat_an_example(
    two_kinds, steps_of, ranks, per_rank, together, seed, restarts
):
    """A run that is restarted at any steps, with any number of loading processes each time, has on
    every rank the batches of an uninterrupted run; and each example of a source is used once before
    any is used again."""
    overrides = {
        "batch_size": ranks * per_rank,
        "group_batches": together,
        "seed": seed,
        "mlm": 0.3,
    }
    ends = [*sorted(end for end, _ in restarts), 10]
    workers = [count for _, count in restarts] + [0]
    seen: dict[str, list[str]] = {kind: [] for kind in ("video", "image")}
    whole = [steps_of(two_kinds, 10, rank=rank, ranks=ranks, **overrides) for rank in range(ranks)]
    for rank in range(ranks):
        actual: list[Batch] = []
        for end, count in zip(ends, workers, strict=True):
            data = steps_of(
                two_kinds, 10, rank=rank, ranks=ranks, **overrides
            )  # a fresh process has no state
            actual += loaded(data, len(actual), end, count)
        for step in range(10):
            assert_equal(actual[step], whole[rank][step])
    for step in range(10):
        batches = [data[step] for data in whole]
        assert len({batch.kind for batch in batches}) == 1
        seen[batches[0].kind] += [name for batch in batches for name in batch.ids]
    for kind, count in (("video", 7), ("image", 5)):
        for epoch in range(0, len(seen[kind]), count):
            once = seen[kind][epoch : epoch + count]
            assert len(set(once)) == len(once), f"epoch {epoch // count}: a sample twice"
