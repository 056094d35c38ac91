"""The approximate index of FAISS: what it finds, and when it is refused."""

import sys

import numpy as np
import pyarrow as pa
import pytest

from alpro.errors import InputError
from alpro.files import write_json
from alpro.stages.inference import approximate
from alpro.stages.inference.index import ITEMS, About, Index, Part, write_items
from alpro.stages.inference.search import most_similar

pytest.importorskip("faiss")


def unit(rng, rows, dim=16):
    values = rng.standard_normal((rows, dim), np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def write(folder, sizes, centers=40):
    """An index of parts of these sizes, with embeddings around centers."""
    rng, parts = np.random.default_rng(0), []
    folder.mkdir(exist_ok=True)
    middles = unit(rng, centers)
    for number, size in enumerate(sizes):
        part = Part(name=f"part{number}", clips=size, rejects=0)
        values = middles[rng.integers(centers, size=size)] + 0.3 * unit(rng, size)
        np.save(folder / f"{part.name}.npy", values / np.linalg.norm(values, axis=1, keepdims=True))
        rows = [{"id": f"{number}-{i}", "path": f"/{i}.mp4", "kind": "video", "identity": ""} for i in range(size)]
        write_items(folder / f"{part.name}.arrow", [pa.Table.from_pylist(rows, ITEMS)])
        parts.append(part)
    about = About(model="none", digest="none", embed_dim=16, parts=tuple(parts))
    write_json(folder / "index.json", about.model_dump())
    return Index.open(folder)


def test_the_nearest_cells_have_almost_all_of_the_best_clips_with_exact_similarities(tmp_path, monkeypatch):
    index = write(tmp_path / "index", [3000, 1, 2999])
    approximate.build(index)
    monkeypatch.setattr(approximate, "PROBES", 20)  # of 150 cells
    recalls = []
    for query in unit(np.random.default_rng(1), 50):
        rows, scores = approximate.most_similar(index, query, 10)
        assert len(rows) == 10
        np.testing.assert_allclose(scores, np.concatenate(index.embeddings)[rows] @ query, atol=1e-6)
        assert np.all(np.diff(scores) <= 0)
        recalls.append(len(np.intersect1d(rows, most_similar(index.embeddings, query, 10)[0])) / 10)
    assert np.mean(recalls) > 0.9


@pytest.mark.parametrize("sizes", [[1], [7, 3], [100]])
def test_a_small_index_is_searched_exactly(sizes, tmp_path):
    index = write(tmp_path / "index", sizes, centers=5)
    approximate.build(index)
    for query in unit(np.random.default_rng(1), 5):
        for k in (1, 5, 200):
            rows, scores = approximate.most_similar(index, query, k)
            expected = most_similar(index.embeddings, query, k)
            np.testing.assert_array_equal(rows, expected[0])
            np.testing.assert_allclose(scores, expected[1], atol=1e-6)


def test_an_approximate_index_is_that_of_the_current_clips(tmp_path):
    folder = tmp_path / "index"
    first = approximate.build(write(folder, [50]))
    assert approximate.build(Index.open(folder)) == first
    index = write(folder, [50, 10])
    with pytest.raises(InputError, match="no approximate index of its current clips; `alpro model index MODEL VIDEOS"):
        approximate.most_similar(index, unit(np.random.default_rng(1), 1)[0], 5)
    second = approximate.build(index)
    assert [file.name for file in folder.glob("*.faiss")] == [second.name]
    assert second != first


def test_without_faiss_the_line_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match=r"no FAISS \(.*\): pip install 'alpro-pipeline\[faiss\]'"):
        approximate.build(write(tmp_path / "index", [5]))


def test_an_empty_index_has_none(tmp_path):
    with pytest.raises(InputError, match="the index is empty"):
        approximate.build(write(tmp_path / "index", []))
