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
from alpro.shards.sampling import (
    frames_at_random,
    frames_between,
    frames_in_halves,
    grouped_order,
)
from alpro.shards.transforms import (
    augment_image,
    augment_video,
    crop_box,
    random_crop,
    squash,
)


def rng(seed):
    return np.random.default_rng(seed)


def test_a_random_crop_is_the_same_place_in_every_frame():
    numbers = np.arange(120).reshape(10, 12)
    frames = np.broadcast_to(numbers[..., None], (5, 10, 12, 3))
    corners = set()
    for seed in range(40):
        cropped = random_crop(frames, 0.5, rng(seed))

        top, left = divmod(int(cropped[0, 0, 0, 0]), 12)
        expected = frames[:, top : top + 5, left : left + 6]
        assert np.array_equal(cropped, expected)
        corners.add((top, left))

    tops, lefts = zip(*corners, strict=True)
    assert (min(tops), max(tops)) == (0, 5)
    assert (min(lefts), max(lefts)) == (0, 6)
    assert random_crop(frames, 1.0, rng(0)).shape == frames.shape


def test_a_crop_has_the_drawn_area_and_aspect_ratio():
    """Of an image twice as wide as it is high. No draw is forced into the image: what does not fit
    is drawn again, else a quarter of the crops would be as high as the image."""
    boxes = np.array([crop_box(400, 200, rng(seed)) for seed in range(2000)])
    left, top, width, height = boxes.T

    assert boxes.min() >= 0
    assert (left + width).max() <= 400
    assert (top + height).max() <= 200
    assert (width * height / 80_000).min() == pytest.approx(0.2, abs=0.01)
    assert (width / height).min() == pytest.approx(0.75, abs=0.02)
    assert (width / height).max() == pytest.approx(1.33, abs=0.03)
    assert np.mean(height == 200) < 0.05


@pytest.mark.parametrize(
    ("size", "box"),
    [
        ((400, 10), (193, 0, 13, 10)),
        ((10, 400), (0, 193, 10, 13)),
    ],
)
def test_the_largest_central_crop_is_used_if_nothing_fits(size, box):
    assert {crop_box(*size, rng(seed), (0.9, 1.0)) for seed in range(20)} == {box}


def test_a_resized_crop_has_the_pixels_of_the_crop_box():
    """As in torchvision: only the crop is resized, bicubically."""
    frame = rng(0).integers(0, 256, (60, 90, 3), np.uint8)
    for seed in range(5):
        left, top, width, height = crop_box(90, 60, rng(seed))
        cut = Image.fromarray(frame[top : top + height, left : left + width])
        expected = np.asarray(cut.resize((32, 32), Image.Resampling.BICUBIC))
        assert np.array_equal(
            module.random_resized_crop(frame, 32, rng(seed)), expected
        )


TEXT = "a dog runs"


def gradient(frames=3):
    """A picture that shows which way round it is."""
    rows, columns = np.mgrid[0:24, 0:24] * 10
    one = np.stack([columns, rows, (columns + rows) // 2], axis=-1).astype(np.uint8)
    return np.repeat(one[None], frames, axis=0)


def augmented(kind, text, seed):
    if kind == "video":
        return augment_video(gradient(), text, rng(seed))
    return augment_image(gradient(1)[0], 24, text, rng(seed))[None]


@pytest.mark.parametrize("kind", ["video", "image"])
def test_every_frame_of_a_clip_is_changed_alike_and_another_clip_otherwise(kind):
    results = set()
    for seed in range(20):
        done = augmented(kind, TEXT, seed)

        assert done.shape[1:] == (24, 24, 3)
        assert done.dtype == np.uint8
        assert (done == done[0]).all()
        assert np.array_equal(done, augmented(kind, TEXT, seed))
        results.add(done[0].tobytes())
    assert len(results) > 5


@pytest.mark.parametrize("kind", ["video", "image"])
def test_a_side_in_the_text_forbids_the_flip(monkeypatch, kind):
    """Of videos the last operation, of images the flip after the crop."""
    assert module.VIDEO_OPERATIONS[-1] is module.mirror
    flips = []

    def keep(picture, strength):
        return picture

    def flip(picture, strength):
        flips.append(picture)
        return picture

    monkeypatch.setattr(module, "VIDEO_OPERATIONS", [keep, keep, keep, flip])
    monkeypatch.setattr(module, "IMAGE_OPERATIONS", [keep])
    monkeypatch.setattr(module, "random_resized_crop", lambda frame, size, rng: frame)

    def count_flips(text):
        flips.clear()
        done = [augmented(kind, text, seed) for seed in range(20)]
        return len(flips) + sum(
            not np.array_equal(one[0], gradient()[0]) for one in done
        )

    for text in ("it goes to the left", "the right-hand door", "It moves leftwards."):
        assert count_flips(text) == 0
    assert count_flips("a bright leftover light") > 5


def record(count, applied):
    """So many operations that record their number and strength, and change nothing."""
    return [
        lambda p, s, n=number: applied.append((n, s)) or p for number in range(count)
    ]


def test_a_clip_gets_two_different_operations_always(monkeypatch):
    """As in the official code: without replacement, both applied, to one side; every pair is
    drawn."""
    applied = []
    monkeypatch.setattr(module, "VIDEO_OPERATIONS", record(10, applied))
    pairs = set()
    for seed in range(500):
        applied.clear()
        augment_video(gradient(2), TEXT, rng(seed))

        first_frame = applied[:2]
        assert applied[2:] == first_frame
        assert {strength for _, strength in applied} == {0.5}
        pairs.add(tuple(number for number, _ in first_frame))
    assert all(first != second for first, second in pairs)
    assert len(pairs) > 80  # 90 would be all


def test_an_image_gets_each_of_two_operations_in_half_of_the_cases(monkeypatch):
    """As in the official code: with replacement, to one side."""
    applied = []
    monkeypatch.setattr(module, "IMAGE_OPERATIONS", record(8, applied))
    counts = np.zeros(3)
    repeated = 0
    for seed in range(600):
        applied.clear()
        augment_image(gradient(1)[0], 24, TEXT, rng(seed))
        counts[len(applied)] += 1
        repeated += len(applied) == 2 and applied[0] == applied[1]
        assert {strength for _, strength in applied} <= {0.7}
    assert counts / 600 == pytest.approx([0.25, 0.5, 0.25], abs=0.07)
    assert 5 < repeated < 40  # an eighth of a quarter


def moved(frame):
    """Where the bright dot of a frame is: its column and row."""
    rows, columns = np.nonzero(frame[..., 0] > 200)
    return columns.mean(), rows.mean()


def test_each_operation_does_what_its_name_says_to_the_official_side():
    """A dot up and to the right of the middle. By the official code at level 5 of 10: 5 pixels, a
    shear of 0.15 from the upper left corner, 15 degrees counter-clockwise."""
    names = [
        "identity",
        "brightness",
        "sharpness",
        "shear_x",
        "shear_y",
        "translate_x",
        "translate_y",
        "rotate",
    ]
    assert [operation.__name__ for operation in module.IMAGE_OPERATIONS] == names
    dot = np.full((40, 40, 3), 60, np.uint8)
    dot[8:12, 28:32] = 255
    column, row = moved(dot)

    done = {
        operation.__name__: module.apply([operation], dot, module.VIDEO_STRENGTH)
        for operation in module.VIDEO_OPERATIONS
    }

    assert list(done) == [*names, "contrast", "mirror"]
    # At level 5 a factor of 1.
    for name in ("identity", "brightness", "contrast", "sharpness"):
        assert np.abs(done[name].astype(int) - dot).max() <= 1, name
    assert moved(done["translate_x"]) == (column - 5, row)
    assert moved(done["translate_y"]) == (column, row - 5)
    assert moved(done["mirror"]) == (39 - column, row)
    assert moved(done["shear_x"]) == pytest.approx((column + 0.15 * row, row), abs=0.6)
    assert moved(done["shear_y"]) == pytest.approx(
        (column, row + 0.15 * column), abs=0.6
    )
    rotated_column, rotated_row = moved(done["rotate"])
    before = np.arctan2(19.5 - row, column - 19.5)
    after = np.arctan2(19.5 - rotated_row, rotated_column - 19.5)
    assert np.degrees(after - before) == pytest.approx(15, abs=3)


few = settings(max_examples=50)
available = st.integers(1, 60)
seeds = st.integers(0, 2**31)


TENTHS = np.arange(10) / 10
PAUSE = np.array([0.0, 0.1, 0.2, 10.2, 10.3])


@pytest.mark.parametrize(
    ("times", "start", "end", "expected"),
    [
        (TENTHS, 0.24, 0.46, (2, 5)),  # the nearest
        (TENTHS, 0.26, 0.44, (3, 4)),
        (TENTHS, 0.61, 0.63, (6, 7)),  # short ones
        (TENTHS, 0.5, 0.5, (5, 5)),
        (TENTHS, 0.94, None, (9, 10)),
        (TENTHS, 0.96, None, (10, 10)),  # half a frame and more after the last
        (PAUSE, 4.0, 6.0, (2, 3)),  # what is shown during the pause
        (TENTHS[:1], 3.0, None, (1, 1)),
    ],
)
def test_frames_between_against_a_table(times, start, end, expected):
    assert frames_between(times, start, end) == expected


@pytest.mark.parametrize(
    ("steps", "seconds"),
    [
        ([1.0] * 20 + [0.1] * 16, 0.1),
        ([0.1, 0.1, 5.0], 0.1),
        ([2.0], 2.0),
        ([], 1.0),
    ],
)
def test_the_last_frame_lasts_as_long_as_most_of_the_16_before_it(steps, seconds):
    assert sampling.last_frame_seconds(np.cumsum([0.0, *steps])) == pytest.approx(
        seconds
    )


@few
@given(
    st.lists(st.integers(1, 400), min_size=1, max_size=30),
    st.lists(st.floats(0, 5), min_size=1, max_size=5),
)
def test_consecutive_windows_partition_the_frames(steps, cuts):
    times = np.concatenate([[0.0], np.cumsum(steps) / 1000])
    cuts = sorted({round(cut, 2) for cut in cuts if cut < times[-1]})

    windows = [
        frames_between(times, *bounds) for bounds in pairwise([None, *cuts, None])
    ]

    for start, (first, _) in zip(cuts, windows[1:], strict=True):
        assert abs(times[first] - start) <= np.abs(times - start).min() + 2e-6
    assert windows[0][0] == 0
    assert windows[-1][1] == len(times)
    for (before, last), (first, _) in pairwise(windows):
        # One shorter than a frame has the frame nearest to its start, which the next has too.
        assert first == last or (before == first == last - 1)


@few
@given(
    st.sampled_from([frames_in_halves, frames_at_random]),
    available,
    st.integers(1, 20),
    seeds,
)
def test_drawn_frames_are_ordered_and_repeat_only_if_there_are_too_few(
    draw, available, count, seed
):
    """Half of them are from each half of the clip, or from anywhere."""
    frames = draw(available, count, rng(seed))

    assert frames == sorted(frames)
    assert len(frames) == count
    assert set(frames) <= set(range(available))
    if available >= count:
        assert len(set(frames)) == count
    if available >= count > 1 and draw is frames_in_halves:
        # If odd, the extra frame is from the first half.
        early = (available + count % 2) // 2
        assert sum(frame < early for frame in frames) == count - count // 2


@few
@given(st.lists(st.integers(-3, 8), min_size=1, max_size=40), seeds)
def test_a_grouped_order_is_a_permutation_with_adjacent_groups(groups, seed):
    order = grouped_order(np.array(groups), rng(seed))

    assert sorted(order.tolist()) == list(range(len(groups)))
    assert (np.diff(np.array(groups)[order]) != 0).sum() + 1 == len(set(groups))
    assert np.array_equal(order, grouped_order(np.array(groups), rng(seed)))


def test_squashing_ignores_the_aspect_ratio():
    frames = np.zeros((2, 10, 30, 3), np.uint8)
    frames[:, :, 15:] = 255

    squashed = squash(frames, 10)

    assert squashed.shape == (2, 10, 10, 3)
    assert (squashed[:, :, :3] < 10).all()
    assert (squashed[:, :, 7:] > 245).all()
