"""Samples that cannot be read, and the processes that load the others."""

import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from alpro.errors import InputError
from alpro.shards.reader import read_index
from alpro.stages.training import dataset


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


def test_a_corrupt_video_with_many_captions_is_one_unreadable_example(clips, steps_of, tmp_path):
    """The next example may be the same video with its next caption: the next sample is used."""
    (lost,) = broken(clips, tmp_path / "broken", 1)
    data = steps_of({"clips": tmp_path / "broken"}, 30, unit="caption")
    batches = [data[step] for step in range(30)]
    assert lost not in {name for batch in batches for name in batch.ids}
    whole = steps_of({"clips": clips}, 30, unit="caption")
    assert sum(len(b.unreadable) for b in batches) == sum(whole[step].ids.count(lost) for step in range(30)) > 0


def test_a_corpus_without_a_readable_sample_is_an_error_of_one_line(clips, steps_of, tmp_path, monkeypatch, resources):
    shutil.copytree(clips, tmp_path / "broken")
    for shard in (tmp_path / "broken").glob("*.tar"):
        shard.write_bytes(b"")
    in_process(monkeypatch)
    data = steps_of({"clips": tmp_path / "broken"})
    with pytest.raises(InputError, match=r"20 consecutive samples cannot be read, the last: .*truncated") as error:
        next(data.loader(0, resources, torch.device("cpu")))
    assert "\n" not in str(error.value)


def in_process(monkeypatch) -> None:
    """One loading process, as where there is a GPU."""
    loader = dataset.DataLoader
    more = {"num_workers": 1, "prefetch_factor": 1}
    monkeypatch.setattr(dataset, "DataLoader", lambda *a, **k: loader(*a, **k | more))


def test_loading_processes_ignore_the_signals_of_their_group(clips, steps_of, monkeypatch, resources):
    in_process(monkeypatch)
    others = set(multiprocessing.active_children())
    batches = steps_of({"clips": clips}, 20).loader(0, resources, torch.device("cpu"))
    next(batches)
    (loading,) = set(multiprocessing.active_children()) - others
    os.kill(loading.pid, signal.SIGTERM)
    assert [batch.step for batch in batches] == list(range(1, 20))
