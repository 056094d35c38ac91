"""What `alpro inspect` tells of decoded corpora."""

import json

import numpy as np
import pytest
from PIL import Image

from pipeline.cli import parser
from shards.schema import InputError
from stages.inspect_corpus import inspect, look, quantiles, save, shared


def test_counts_are_those_of_the_artifacts(clips, stills):
    found = inspect([clips, stills])
    manifests = [json.loads((folder / "statistics.json").read_text()) for folder in (clips, stills)]
    for split in ("train", "validation", "test"):
        samples = sum(row["samples"] for row in found["splits"] if row["split"] == split)
        assert samples == sum(manifest["splits"][split]["items"][0] for manifest in manifests)
        captions = sum(row["captions"] for row in found["splits"] if row["split"] == split)
        assert captions == sum(manifest["splits"][split]["captions"][0] for manifest in manifests)
    assert found["captions"]["all"] >= found["captions"]["different"] > 0
    assert found["unreadable"] == 0


def row(split: str, group: str, captions: tuple[str, ...], frames: bytes | None) -> dict:
    return {"split": split, "group": group, "captions": captions, "frames": frames}


def test_what_is_in_training_too_is_found_by_group_caption_and_frames():
    rows = [
        row("train", "a", ("a dog",), b"1"),
        row("train", "b", ("a cat",), None),
        row("test", "a", ("other",), b"2"),
        row("test", "c", ("new", "a cat"), b"3"),
        row("test", "d", ("newer",), b"1"),
        row("test", "e", ("newest",), None),
        row("validation", "f", (), b"1"),
    ]
    assert shared(rows, "test") == {"samples": 4, "same group": 1, "a caption in common": 1, "same frames": 1}
    assert shared(rows, "validation")["same frames"] == 1


def test_a_copy_of_another_size_and_quality_looks_the_same_and_another_clip_does_not():
    rng = np.random.default_rng(0)
    coarse = rng.integers(0, 256, (2, 8, 9, 3), np.uint8)
    clip, other = (
        np.stack([np.asarray(Image.fromarray(f).resize((144, 128), Image.Resampling.BICUBIC)) for f in frames])
        for frames in (coarse, rng.integers(0, 256, (2, 8, 9, 3), np.uint8))
    )
    smaller = np.stack([np.asarray(Image.fromarray(frame).resize((72, 64))) for frame in clip])
    assert look(clip) == look(smaller) != look(other)
    assert look(np.full((2, 64, 64, 3), 7, np.uint8)) is None  # nothing on it: like any other such frame


def test_quantiles_of_a_list():
    assert quantiles([]) == {}
    assert quantiles([1, 3, 2])["median"] == 2


def test_the_data_and_the_frames_are_written(clips, tmp_path):
    found = inspect([clips])
    save(found, [clips], tmp_path / "out")
    assert json.loads((tmp_path / "out" / "inspect.json").read_text()) == found
    assert Image.open(tmp_path / "out" / "frames.png").width > 500


def test_the_command_prints_a_table(clips, capsys):
    given = parser().parse_args(["inspect", str(clips)])
    assert given.call(given) == 0
    said = capsys.readouterr().out
    assert "also in training" in said
    assert "words of a caption" in said


def test_no_corpus_is_a_mistake(tmp_path):
    with pytest.raises(InputError, match="this is not a decoded corpus"):
        inspect([tmp_path])
