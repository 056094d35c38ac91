"""The sample corpus: reproducible for a seed, disjoint splits, reversed clips, answerable
questions."""

import numpy as np
import pytest

from alpro.files import checksum, digest
from alpro.shards.sample.draw import render
from alpro.shards.sample.scene import (
    REVERSED,
    draw_scene,
)
from alpro.stages import render_sample
from alpro.stages.render_sample import Config
from tests.stages.conftest import contents, run_stage

DEFAULT = Config()


@pytest.fixture(scope="module")
def whole():
    """The items of the default configuration, unrendered: corpora to items."""
    return {
        corpus: getattr(render_sample, corpus)(DEFAULT)
        for corpus in render_sample.CORPORA
    }


def test_other_rows_are_of_another_version(whole):
    """The rows decide what is rendered, and with it all scores in the documentation."""
    rows = [item.row for items in whole.values() for item in items]
    assert render_sample.VERSION == 6
    assert digest(rows)[:12] == "31d08696cb5e"


SMALL = {"lessons": 1, "clips": 2, "stills": 2, "validation": 4, "test": 4}


def render_small(out, resources, seed):
    run_stage(render_sample, {}, out, resources, seed=seed, size=32, frames=4, **SMALL)
    return {
        name: digest
        for name, digest in contents(out).items()
        if not name.endswith(".mp4")
    }


def test_a_seed_gives_the_same_bytes_also_after_an_interruption_and_another_seed_others(
    tmp_path, inline_pool, resources
):
    first = tmp_path / "3"
    again = tmp_path / "again"
    one = render_small(first, resources, 3)
    other = render_small(tmp_path / "4", resources, 4)
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] == other[name]] == []
    for kept in ("videos/test-00000.mp4", "images/still-00000.jpg"):
        (again / kept).parent.mkdir(parents=True)
        (again / kept).write_bytes((first / kept).read_bytes()[:50])
    assert render_small(again, resources, 3) == one
    assert contents(again).keys() == contents(first).keys()


def test_the_same_frames_give_the_same_video(tmp_path):
    """Uninitialised memory of the encoder has no effect."""
    config = Config(seed=3, size=48, frames=8, **SMALL | {"clips": 4})
    rng = np.random.default_rng(0)
    for item in render_sample.clips(config):
        frames = render(item.scene, config.frames, config.size)
        checksums = set()
        for _ in range(4):
            garbage = [
                rng.integers(0, 256, int(size), np.uint8)
                for size in rng.integers(100, 200_000, 40)
            ]
            del garbage
            render_sample.encode_video(frames, tmp_path / "clip.mp4")
            checksums.add(checksum(tmp_path / "clip.mp4"))
        assert len(checksums) == 1, item.row["id"]


@pytest.mark.parametrize("corpus", render_sample.CORPORA)
def test_unseen_combinations_never_occur_in_training_in_either_direction_of_time(
    corpus, whole
):
    unseen = {
        item.scene.main.combination for item in whole["clips"] if item.row["unseen"]
    }
    assert len(unseen) == 0.5 * (DEFAULT.validation + DEFAULT.test)
    for item in whole[corpus]:
        if item.row["split"] == "train":
            for scene in (item.scene, item.scene.reverse()):
                assert not unseen & {thing.combination for thing in scene.things}


@pytest.mark.parametrize("motion", REVERSED)
def test_a_reversed_scene_is_the_scene_played_backwards(motion):
    scene = draw_scene(np.random.default_rng(1), 2, motion)
    for time in (0.0, 0.25, 0.8, 1.0):
        for one, other in zip(scene.things, scene.reverse().things, strict=True):
            assert one.pose(time) == pytest.approx(other.pose(1 - time))
    frames = render(scene, 5, 32).astype(float)
    back = render(scene.reverse(), 5, 32).astype(float)
    noise = abs(frames - back[::-1]).mean()
    assert noise < 4  # the camera's
    assert abs(frames - back).mean() > noise
