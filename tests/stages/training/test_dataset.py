"""Which examples a batch has: a function of the seed and the step."""

from dataclasses import replace
from itertools import chain, islice
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from torch.nn.utils.rnn import pad_sequence

from alpro.errors import InputError
from alpro.stages.execution.interface import Resources
from alpro.stages.training.config import MatchingConfig, Phase, TrainingConfig
from tests.stages.training.conftest import loading_processes, sample_rows


def sample_ids(data):
    """The samples of all batches, in order."""
    return list(chain(*(data[step].ids for step in range(len(data)))))


def assert_equal(one, other):
    """Two batches are the same, to the last bit."""
    for name, value in vars(one).items():
        same = getattr(other, name)
        is_tensor = isinstance(value, torch.Tensor)
        assert torch.equal(value, same) if is_tensor else value == same, name


@settings(max_examples=16)
@given(
    st.sampled_from([(1, 1), (2, 1), (8, 1), (1, 4), (2, 2), (4, 2)]),
    st.integers(0, 3),
    st.sampled_from(get_args(TrainingConfig.model_fields["augmentation"].annotation)),
)
def test_the_micro_batches_of_all_ranks_add_up_to_the_batch_of_one_process(
    clips, stills, steps_of, shape, step, augmentation
):
    """What is contrasted with what, and how it is augmented, does not depend on how many processes
    share a batch."""
    ranks, count = shape
    corpora = {"clips": clips, "stills": stills}
    config = {
        "mlm": 0.3,
        "crops": 0.5,
        "accumulation_steps": count,
        "augmentation": augmentation,
    }
    whole = steps_of(corpora, **config)[step]

    micro_batches = []
    for rank in range(ranks):
        batch = steps_of(corpora, rank=rank, ranks=ranks, **config)[step]
        micro_batches.append(batch.split(count))
    # The first micro-batch of every rank, then the second, and so on.
    parts = list(chain(*zip(*micro_batches, strict=True)))

    assert {len(part.ids) for part in parts} == {8 // len(parts)}
    assert list(chain(*(part.ids for part in parts))) == whole.ids
    for name in ("video", "frames", "boxes"):
        joined = torch.cat([getattr(part, name) for part in parts])
        assert torch.equal(joined, getattr(whole, name))
    # Each is as long as the longest text of its micro-batch.
    for name, filler in {"text": 0, "mask": 0, "masked": 0, "labels": -100}.items():
        rows = list(chain(*(getattr(part, name) for part in parts)))
        pairs = [*rows, *getattr(whole, name)]
        padded = pad_sequence(pairs, batch_first=True, padding_value=filler)
        assert torch.equal(padded[:8], padded[8:])


def test_an_image_is_a_still_clip_or_one_frame(stills, steps_of):
    clip = steps_of({"stills": stills}, 1, repeat_images=True)[0].frames
    frame = steps_of({"stills": stills}, 1, repeat_images=False)[0].frames

    assert clip.shape[1] == 4
    assert frame.shape[1] == 1
    assert torch.equal(clip, frame.expand_as(clip))


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_a_share_of_the_examples_shows_a_crop_and_the_rest_is_unchanged(
    clips, steps_of, share
):
    data = steps_of({"clips": clips}, 40, crops=share)
    plain = steps_of({"clips": clips}, 40)
    boxes = []
    for step in range(40):
        batch = data[step]
        boxes += [] if batch.boxes is None else batch.boxes.tolist()
        assert_equal(
            replace(batch, boxes=None, uniforms=None),
            replace(plain[step], uniforms=None),
        )
    areas = [width * height / 16 for _, _, width, height in boxes]
    crops = [area for area in areas if area < 1]
    assert all(0.5 < area <= 0.75 for area in crops)
    # Four standard deviations.
    assert len(crops) / max(1, len(boxes)) == pytest.approx(share, abs=0.12)


def test_phases_differ_in_grouping(corpus, steps_of):
    phase = {"corpora": ("a",), "steps": 6}
    phases = [phase | {"group_batches": True}, phase | {"group_batches": False}]

    data = steps_of({"a": corpus(12, group=3)}, phases=phases, batch_size=6)

    groups = [int(name[1:]) // 3 for name in sample_ids(data)]
    together = [len(set(groups[start : start + 3])) == 1 for start in range(0, 72, 3)]
    assert all(together[:12])
    assert not all(together[12:])
    assert groups[:12] != groups[12:24] != groups[24:36]


def test_pairs_are_videos_times_captions(corpus_of, tmp_path, steps_of, tokenizer):
    captions = {"v0": ["left ball", "right ball"], "v1": ["left ball"], "v2": []}
    captions["v3"] = ["left ball", "right ball", "up ball"]
    rows = [{"id": name, "captions": texts} for name, texts in captions.items()]

    data = steps_of({"a": corpus_of(tmp_path, rows)}, 1, "caption", batch_size=6)

    assert len(data.sources[0]) == 6
    assert data.skipped == 1
    batch = data[0]
    pairs = zip(batch.ids, map(tokenizer.decode, batch.text.tolist()), strict=True)
    expected = [(name, text) for name, texts in captions.items() for text in texts]
    assert sorted(pairs) == expected
    assert [f"v{int(number)}" for number in batch.video] == batch.ids


def test_samples_without_a_text_are_left_out_and_counted(
    corpus_of, tmp_path, steps_of, tokenizer
):
    question = [
        {"question": "how many balls are there?", "answer": "two", "type": "how"}
    ]
    asked = sample_rows(2, captions=0, prefix="q", questions=question)
    mixed = corpus_of(tmp_path / "mixed", [*sample_rows(3), *asked])
    silent = corpus_of(tmp_path / "silent", asked)

    captions = steps_of({"a": mixed, "b": silent}, 3, batch_size=3)
    questions = steps_of(
        {"a": mixed}, 3, "question", batch_size=2, answers=(*"abcdefg", "two")
    )
    unknown = steps_of({"a": mixed}, 3, "question", batch_size=2, answers=("nine",))

    assert set(sample_ids(captions)) == {"v0", "v1", "v2"}
    assert captions.skipped == 2 + 2  # a corpus without any is counted too
    assert set(sample_ids(questions)) == {"q0", "q1"}
    assert questions.skipped == 3
    assert questions[0].answers.tolist() == [7, 7]
    ids = tokenizer.encode(question[0]["question"]).ids  # without the answer
    assert questions[0].text[0, : len(ids)].tolist() == ids
    assert unknown[0].answers.tolist() == [-100, -100]


def test_the_order_and_the_random_numbers_of_training_examples_follow_from_the_seed(
    clips, steps_of
):
    one, other = (steps_of({"clips": clips}, 10, seed=seed, mlm=0.3) for seed in (1, 2))
    assert sample_ids(one) != sample_ids(other)
    assert all(name.startswith("train-") for name in sample_ids(one))

    examples = [data.example(data.sources[0], 0, 3) for data in (one, other)]
    for name in ("frames", "masked", "box", "uniforms"):
        assert not np.array_equal(*(example[name] for example in examples)), name


def test_phases_follow_each_other_with_their_lengths(corpus, steps_of):
    corpora = {"a": corpus(5, prefix="a"), "b": corpus(6, prefix="b")}
    corpora["c"] = corpus(4, prefix="c", kind="image")
    phases = [
        {"corpora": ("a",), "steps": 3},
        {"corpora": ("b",), "steps": 4},
        {"corpora": ("c", "b"), "weights": (1e9, 1), "epochs": 2},
    ]
    data = steps_of(corpora, phases=phases, batch_size=5)
    first_ids = [data[step].ids[0] for step in range(len(data))]
    letters = "".join(name[0] for name in first_ids)
    assert letters == "aaa" + "bbbb" + "cccc"  # 2 epochs x (4 + 6 examples) / 5

    for epochs, batch_size, steps in ((0.5, 3, 2), (0.7, 5, 2), (0.01, 12, 1)):
        phases = [{"corpora": ("a",), "epochs": epochs}]
        assert (
            len(steps_of({"a": corpus(12)}, phases=phases, batch_size=batch_size))
            == steps
        )

    phases = [{"corpora": ("a",), "steps": 1}] * 2
    data = steps_of({"a": corpus(6)}, phases=phases, batch_size=3)
    # The second continues the epoch.
    assert sorted(sample_ids(data)) == [f"v{n}" for n in range(6)]


def test_corpora_have_steps_by_weight_or_by_size(corpus, two_kinds, steps_of):
    corpora = {"a": corpus(4, prefix="a"), "b": corpus(12, prefix="b")}
    by_size = steps_of(corpora, 2000)
    assert (by_size.step_sources == 0).mean() == pytest.approx(0.25, abs=0.03)

    # 7 videos and 5 images share the weight of their corpus.
    corpora = two_kinds | {"b": corpus(40, prefix="b")}
    phase = {"corpora": ("mixed", "b"), "weights": (3, 1), "steps": 2000}
    by_weight = steps_of(corpora, phases=[phase])
    shares = [(by_weight.step_sources == number).mean() for number in range(3)]
    assert shares == pytest.approx([0.75 * 7 / 12, 0.75 * 5 / 12, 0.25], abs=0.03)


@pytest.mark.parametrize(
    "wrong",
    [
        {"corpora": ("a",)},
        {"corpora": ("a",), "steps": 1, "epochs": 1},
        {"corpora": (), "steps": 1},
        {"corpora": ("a", "b"), "weights": (1,), "steps": 1},
        {"corpora": ("a", "b"), "weights": (2, -1), "steps": 1},
    ],
)
def test_invalid_phases_are_refused(wrong):
    with pytest.raises(ValueError, match="Phase"):
        Phase(**wrong)


def test_pools_of_negatives_divide_the_batch_and_are_whole_on_every_number_of_processes():
    def config(pool, parts=2):
        phases = [{"corpora": ["a"], "steps": 1}]
        sizes = {
            "batch_size": 48,
            "accumulation_steps": parts,
            "negative_pool_size": pool,
        }
        return MatchingConfig(phases=phases, **sizes)

    for ranks in (1, 3, 6, 12, 24):  # 24 pairs at a time
        config(8).check_division(ranks)
    with pytest.raises(
        InputError, match="negative_pool_size 8 and the 12 pairs per process"
    ):
        config(8).check_division(2)
    with pytest.raises(
        InputError, match="48 is not a multiple of 10 = 5 processes x 2 accumulation"
    ):
        config(8).check_division(5)
    with pytest.raises(ValidationError, match="negative_pool_size 16 does not divide"):
        config(16)


def test_a_phase_without_examples_is_an_error(corpus, steps_of):
    with pytest.raises(InputError, match="no training examples with captions in a"):
        steps_of({"a": corpus(3, captions=0)})
    with pytest.raises(InputError, match="no training examples with questions in a"):
        steps_of({"a": corpus(3)}, unit="question")


def loaded(data, first, last, workers):
    """Steps `first` to `last` as loaded by so many processes; the rest is left, as by a run that
    ends in between."""
    with loading_processes(workers):
        batches = data.loader(first, Resources(workers=1), torch.device("cpu"))
        return list(islice(batches, last - first))


@pytest.fixture(scope="module")
def two_kinds(corpus_of, tmp_path_factory):
    videos = sample_rows(7, captions=2, group=2)
    images = sample_rows(5, kind="image", prefix="i")
    return {"mixed": corpus_of(tmp_path_factory.mktemp("mixed"), videos + images)}


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
    config = {
        "batch_size": max(2, ranks * per_rank),
        "group_batches": together,
        "seed": seed,
        "mlm": 0.3,
    }
    ends = [*sorted(end for end, _ in restarts), 10]
    workers = [count for _, count in restarts] + [0]

    def new_data(rank):
        return steps_of(two_kinds, 10, rank=rank, ranks=ranks, **config)

    whole = [new_data(rank) for rank in range(ranks)]
    for rank, uninterrupted in enumerate(whole):
        actual = []
        for end, count in zip(ends, workers, strict=True):
            # A fresh process has no state.
            actual += loaded(new_data(rank), len(actual), end, count)
        for step, batch in enumerate(actual):
            assert_equal(batch, uninterrupted[step])
        assert len(actual) == 10

    seen = {"video": [], "image": []}
    for step in range(10):
        batches = [data[step] for data in whole]
        (kind,) = {batch.kind for batch in batches}
        seen[kind] += chain(*(batch.ids for batch in batches))
    for kind, count in {"video": 7, "image": 5}.items():
        for epoch in range(0, len(seen[kind]), count):
            once = seen[kind][epoch : epoch + count]
            assert len(set(once)) == len(once), (
                f"epoch {epoch // count}: a sample twice"
            )
