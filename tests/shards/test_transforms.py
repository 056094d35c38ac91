"""Which frames of a clip and samples are drawn; crops and resizing of frames, and the official
augmentation."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from alpro.shards import sampling
from alpro.shards import transforms as module
from alpro.shards.sampling import frames_at_random, frames_between, frames_in_halves, grouped_order
from alpro.shards.transforms import (
    SIDES,
    augment_image,
    augment_video,
    crop_box,
    random_crop,
    squash,
)

SCALE = (0.2, 1.0)
RATIO = (3 / 4, 4 / 3)


def test_a_random_crop_is_the_same_place_in_every_frame():
    frames = np.arange(120).reshape(1, 10, 12, 1).repeat(3, axis=3).repeat(5, axis=0)
    corners = set()
    for seed in range(40):
        cropped = random_crop(frames, 0.5, np.random.default_rng(seed))
        assert cropped.shape == (5, 5, 6, 3)
        assert (cropped == cropped[:1, ..., :1]).all()
        first = cropped[0, ..., 0]
        assert np.array_equal(first, first[0, 0] + np.arange(5)[:, None] * 12 + np.arange(6))
        corners.add(divmod(int(first[0, 0]), 12))
    rows, columns = zip(*corners, strict=True)
    assert {min(rows), max(rows), min(columns), max(columns)} == {0, 5, 6}
    assert random_crop(frames, 1.0, np.random.default_rng(0)).shape == (5, 10, 12, 3)


def test_squashing_ignores_the_aspect_ratio_and_keeps_the_target_size():
    frames = np.zeros((2, 10, 30, 3), np.uint8)
    frames[:, :, 15:] = 255
    squashed = squash(frames, 10)
    assert squashed.shape == (2, 10, 10, 3)
    assert (squashed[:, :, :3] < 10).all()
    assert (squashed[:, :, 7:] > 245).all()
    assert squash(squashed, 10) is squashed


def test_a_crop_has_the_drawn_area_and_aspect_ratio():
    """Of an image twice as wide as it is high. No draw is forced into the image: what does not fit
    is drawn again."""
    areas = []
    ratios = []
    heights = []
    for seed in range(2000):
        left, top, width, height = crop_box(400, 200, np.random.default_rng(seed), SCALE, RATIO)
        assert 0 <= left <= 400 - width
        assert 0 <= top <= 200 - height
        areas.append(width * height / 80_000)
        ratios.append(width / height)
        heights.append(height)
    assert 0.19 < min(areas) < 0.21
    assert 0.73 < min(ratios) < 0.76
    assert 1.31 < max(ratios) < 1.36
    assert (
        np.mean(np.array(heights) == 200) < 0.05
    )  # cut to fit, a quarter of the crops would be as high as the image
    for width, height, box in ((400, 10, (193, 0, 13, 10)), (10, 400, (0, 193, 10, 13))):
        drawn = {
            crop_box(width, height, np.random.default_rng(seed), (0.9, 1.0), RATIO)
            for seed in range(20)
        }
        assert drawn == {box}  # if nothing fits, the largest central crop


def test_a_resized_crop_has_the_pixels_of_the_crop_box():
    """As in torchvision: only the crop is resized, bicubically."""
    frame = np.random.default_rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    for seed in range(5):
        left, top, width, height = crop_box(90, 60, np.random.default_rng(seed), SCALE, RATIO)
        cut = Image.fromarray(frame[top : top + height, left : left + width])
        expected = np.asarray(cut.resize((32, 32), Image.Resampling.BICUBIC))
        result = module.random_resized_crop(frame, 32, np.random.default_rng(seed))
        assert np.array_equal(result, expected)


TEXT = "a dog runs"


def gradient(frames: int = 3, size: int = 24) -> np.ndarray:
    """A picture that shows which way round it is."""
    rows, columns = np.mgrid[0:size, 0:size] * (255 // size)
    one = np.stack([columns, rows, (columns + rows) // 2], axis=-1).astype(np.uint8)
    return np.repeat(one[None], frames, axis=0)


def augmented(kind: str, text: str, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    if kind == "video":
        return augment_video(gradient(), text, rng)
    return augment_image(gradient(1)[0], 24, text, rng)[None]


@pytest.mark.parametrize("kind", ["video", "image"])
def test_every_frame_of_a_clip_is_changed_alike_and_another_clip_otherwise(kind):
    results = []
    for seed in range(20):
        done = augmented(kind, TEXT, seed)
        assert done.shape[1:] == (24, 24, 3)
        assert done.dtype == np.uint8
        assert all(np.array_equal(frame, done[0]) for frame in done)
        assert np.array_equal(done, augmented(kind, TEXT, seed))
        results.append(done[0].tobytes())
    assert len(set(results)) > 5


def test_a_side_in_the_text_forbids_the_flip(monkeypatch):
    """Of videos the operation, of images the flip behind the crop."""
    assert module.VIDEO_OPERATIONS[-1] is module.mirror
    flips = []
    monkeypatch.setattr(
        module, "VIDEO_OPERATIONS", [*[lambda p, s: p] * 3, lambda p, s: flips.append(1) or p]
    )
    monkeypatch.setattr(module, "IMAGE_OPERATIONS", [lambda p, s: p])
    monkeypatch.setattr(module, "random_resized_crop", lambda frame, size, rng: frame)

    def flipped(kind: str, text: str) -> int:
        flips.clear()
        done = [augmented(kind, text, seed) for seed in range(20)]
        return len(flips) + sum(not np.array_equal(one[0], gradient()[0]) for one in done)

    for kind in ("video", "image"):
        for text in ("it goes to the left", "the right-hand door", "It moves leftwards."):
            assert flipped(kind, text) == 0
        assert flipped(kind, "a bright leftover light") > 5
    for text in (
        "Rightside up",
        "the left-hander",
        "on the leftmost",
        "it turns clockwise",
        "anti-clockwise",
    ):
        assert SIDES.search(text)
    for text in ("brightly leftover", "an upright clock", "clockwork", "he writes"):
        assert not SIDES.search(text)


def counting(count: int, applied: list[tuple[int, float]]) -> list:
    """So many operations that note their number and strength, and change nothing."""
    return [lambda p, s, n=number: applied.append((n, s)) or p for number in range(count)]


def test_a_clip_gets_two_different_operations_always(monkeypatch):
    """As in the official code: without replacement, both applied, to one side; every pair is
    drawn."""
    applied: list[tuple[int, float]] = []
    monkeypatch.setattr(module, "VIDEO_OPERATIONS", counting(10, applied))
    pairs = set()
    for seed in range(500):
        applied.clear()
        augment_video(gradient(2), TEXT, np.random.default_rng(seed))
        first, second = applied[:2]
        assert applied == [first, second] * 2  # in every frame
        assert first[0] != second[0]
        assert {first[1], second[1]} == {0.5}
        pairs.add((first[0], second[0]))
    assert len(pairs) > 80  # of 90


def test_an_image_gets_each_of_two_operations_in_half_of_the_cases(monkeypatch):
    """As in the official code: with replacement, to one side."""
    applied: list[tuple[int, float]] = []
    monkeypatch.setattr(module, "IMAGE_OPERATIONS", counting(8, applied))
    counts = np.zeros(3)
    twice = 0
    for seed in range(600):
        applied.clear()
        augment_image(gradient(1)[0], 24, TEXT, np.random.default_rng(seed))
        counts[len(applied)] += 1
        twice += len(applied) == 2 and applied[0] == applied[1]
        assert {strength for _, strength in applied} <= {0.7}
    assert counts / 600 == pytest.approx([0.25, 0.5, 0.25], abs=0.07)
    assert 5 < twice < 40  # an eighth of a quarter


def moved(frame: np.ndarray) -> tuple[float, float]:
    """Where the bright dot of a frame is: its column and row."""
    rows, columns = np.nonzero(frame[..., 0] > 200)
    return columns.mean(), rows.mean()


def test_each_operation_does_what_its_name_says_to_the_official_side():
    """A dot up and to the right of the middle. By the official code at level 5 of 10: 5 pixels, a
    shear of 0.15 from the upper left corner, 15 degrees counter-clockwise."""
    plain = [
        "identity",
        "brightness",
        "sharpness",
        "shear_x",
        "shear_y",
        "translate_x",
        "translate_y",
        "rotate",
    ]
    assert [operation.__name__ for operation in module.IMAGE_OPERATIONS] == plain
    assert [operation.__name__ for operation in module.VIDEO_OPERATIONS] == [
        *plain,
        "contrast",
        "mirror",
    ]
    dot = np.full((2, 40, 40, 3), 60, np.uint8)
    dot[:, 8:12, 28:32] = 255
    strength = module.VIDEO_STRENGTH
    operations = module.VIDEO_OPERATIONS
    done = {
        op.__name__: np.stack([module.apply([op], frame, strength) for frame in dot])
        for op in operations
    }
    for frames in done.values():
        assert frames.shape == dot.shape
        assert np.array_equal(frames[0], frames[1])
    for name in ("identity", "brightness", "contrast", "sharpness"):  # at level 5 a factor of 1
        assert np.abs(done[name].astype(int) - dot).max() <= 1, name
    column, row = moved(dot[0])
    assert moved(done["translate_x"][0]) == (column - 5, row)
    assert moved(done["translate_y"][0]) == (column, row - 5)
    assert moved(done["mirror"][0]) == (39 - column, row)
    assert moved(done["shear_x"][0]) == pytest.approx((column + 0.15 * row, row), abs=0.6)
    assert moved(done["shear_y"][0]) == pytest.approx((column, row + 0.15 * column), abs=0.6)
    before, after = (
        np.degrees(np.arctan2(19.5 - y, x - 19.5))
        for x, y in (moved(dot[0]), moved(done["rotate"][0]))
    )
    assert after - before == pytest.approx(15, abs=3)


few = settings(max_examples=50, deadline=None)
available = st.integers(1, 60)
seeds = st.integers(0, 2**31)


@few
@given(available, st.integers(1, 20))
def test_segments_are_ordered_equal_and_repeat_only_if_there_are_too_few_frames(
    available: int, count: int
):
    starts = sampling.segment_starts(available, count)
    assert len(starts) == count
    assert starts[0] == 0
    assert starts[-1] < available
    steps = np.diff([*starts, available])
    assert steps.min() >= 0
    assert steps.max() - steps.min() <= 1
    assert (len(set(starts)) == count) == (available >= count)


def test_frames_between_against_a_table():
    tenths = np.arange(10) / 10
    pause = np.array([0.0, 0.1, 0.2, 10.2, 10.3])
    cases = [
        (tenths, None, None, (0, 10)),
        (tenths, 0.2, 0.5, (2, 5)),
        (tenths, 0.24, 0.46, (2, 5)),
    ]  # the nearest
    cases += [
        (tenths, 0.26, 0.44, (3, 4)),
        (tenths, 0.61, 0.63, (6, 7)),
        (tenths, 0.5, 0.5, (5, 5)),
    ]  # short ones
    cases += [(tenths, 0.94, None, (9, 10)), (tenths, 0.5, 7.0, (5, 10))]
    cases += [(tenths, 0.96, None, (10, 10))]  # half a frame and more behind the last
    cases += [
        (pause, 4.0, 6.0, (2, 3)),
        (pause, 6.0, 10.3, (3, 4)),
    ]  # what is shown during the pause
    cases += [(tenths[:1], 0.0, 0.2, (0, 1)), (tenths[:1], 3.0, None, (1, 1))]
    for times, start, end, expected in cases:
        assert frames_between(times, start, end) == expected


def test_the_last_frame_lasts_as_long_as_most_of_the_16_before_it():
    for steps, seconds in (
        ([1.0] * 20 + [0.1] * 16, 0.1),
        ([0.1, 0.1, 5.0], 0.1),
        ([2.0], 2.0),
        ([], 1.0),
    ):
        assert sampling.last_frame_seconds(np.cumsum([0.0, *steps])) == pytest.approx(seconds)


@few
@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=30),
    st.lists(st.floats(0, 5), min_size=1, max_size=5),
)
def test_consecutive_windows_partition_the_frames(steps: list[int], cuts: list[float]):
    times = np.concatenate([[0.0], np.cumsum(steps) / 1000])
    cuts = sorted({round(cut, 2) for cut in cuts if cut < times[-1]})
    bounds = [None, *cuts, None]
    windows = [frames_between(times, start, end) for start, end in pairwise(bounds)]
    for start, (first, _) in zip(bounds, windows, strict=False):
        if start is not None:
            assert abs(times[first] - start) <= np.abs(times - start).min() + 2e-6
    # One shorter than a frame has the frame nearest to its start, which the next has too.
    lengths = [last - first for first, last in windows]
    assert windows[0][0] == 0
    assert windows[-1][1] == len(times)
    for (_, last), (first, _), length in zip(windows, windows[1:], lengths, strict=False):
        assert first == last or (length == 1 and first == last - 1)


@few
@given(st.sampled_from([frames_in_halves, frames_at_random]), available, st.integers(1, 20), seeds)
def test_drawn_frames_are_ordered_and_repeat_only_if_there_are_too_few(
    draw, available: int, count: int, seed: int
):
    """Half of them are from each half of the clip, or from anywhere."""
    frames = draw(available, count, np.random.default_rng(seed))
    assert frames == sorted(frames)
    assert len(frames) == count
    assert set(frames) <= set(range(available))
    if available >= count:
        assert len(set(frames)) == count
    if available >= count > 1 and draw is frames_in_halves:
        early = (available + count % 2) // 2  # if odd, the extra frame is from the first half
        assert sum(frame < early for frame in frames) == count - count // 2


@pytest.mark.parametrize("count", [1, 4])
def test_all_frames_are_sampled_over_time(count):
    rng = np.random.default_rng(0)
    drawn = [frames_in_halves(10, count, rng) for _ in range(1200 // count)]
    counts = np.bincount(np.ravel(drawn), minlength=10)
    # 1,200 draws of 10 frames: 120 each, standard deviation 8.5 (two of five in a half: sqrt(300 *
    # .4 * .6)) or 10.4.
    assert np.abs(counts - 120).max() < 35


@few
@given(st.lists(st.integers(-3, 8), min_size=1, max_size=40), seeds)
def test_a_grouped_order_is_a_permutation_with_adjacent_groups(groups: list[int], seed: int):
    order = grouped_order(np.array(groups), np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(len(groups)))
    ordered = np.array(groups)[order]
    assert (np.diff(ordered) != 0).sum() + 1 == len(set(groups))
    assert np.array_equal(order, grouped_order(np.array(groups), np.random.default_rng(seed)))


def test_groups_and_their_members_are_shuffled_each_time():
    groups = np.repeat(np.arange(10), 4)
    rng = np.random.default_rng(0)
    first = grouped_order(groups, rng)
    second = grouped_order(groups, rng)
    assert groups[first].tolist() != groups[second].tolist()
    members = [
        order[groups[order] == 0].tolist()
        for order in (grouped_order(groups, rng) for _ in range(5))
    ]
    assert len({tuple(m) for m in members}) > 1
