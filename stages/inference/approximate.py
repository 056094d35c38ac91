"""An approximate index of FAISS beside the embeddings, for many millions of clips (`--approximate`).

The clips are divided into cells around centers (IVF), and their embeddings are stored in 8 bits a number. A search
reads the cells nearest to the query, and compares the best clips of them exactly. The file is mapped to memory.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from alpro.errors import InputError
from alpro.files import atomic_write
from alpro.stages.inference.index import Index

TRAINING_CLIPS = 40  # of a cell, for its center
CHUNK = 1 << 16  # embeddings that are added at a time
PROBES = 64  # cells that a search reads
CANDIDATES = 10  # times the number of results, compared exactly


def library() -> Any:
    """FAISS. Raises InputError if it is not installed."""
    try:
        import faiss
    except ImportError as error:
        raise InputError(f"no FAISS ({error}): pip install 'alpro-pipeline[faiss]'") from error
    return faiss


def file_of(index: Index) -> Path:
    """The file of an approximate index. Its name is that of the parts that are in it."""
    parts = hashlib.sha256(" ".join(part.name for part in index.about.parts).encode()).hexdigest()
    return index.folder / f"approximate-{parts[:12]}.faiss"


def build(index: Index) -> Path:
    """Writes the approximate index of all embeddings, if it is not there, and deletes earlier ones.

    Memory holds one byte for each number of the embeddings. Raises InputError without FAISS, and for an empty index.
    """
    faiss, file, clips = library(), file_of(index), len(index)
    if not clips:
        raise InputError(f"{index.folder}: the index is empty; `alpro model index` adds videos to it")
    if not file.is_file():
        cells = max(1, min(round(4 * clips**0.5), clips // TRAINING_CLIPS))
        built = faiss.index_factory(index.about.embed_dim, f"IVF{cells},SQ8", faiss.METRIC_INNER_PRODUCT)
        built.cp.min_points_per_centroid = 1  # no warning for a small index
        built.cp.max_points_per_centroid = TRAINING_CLIPS
        sample = np.random.default_rng(0).choice(clips, min(clips, TRAINING_CLIPS * cells), replace=False)
        built.train(rows_of(index, np.sort(sample)))
        for matrix in index.embeddings:
            for start in range(0, len(matrix), CHUNK):
                built.add(np.ascontiguousarray(matrix[start : start + CHUNK]))
        with atomic_write(file) as temporary:
            faiss.write_index(built, str(temporary))
    for old in index.folder.glob("approximate-*.faiss"):
        if old != file:
            old.unlink()
    return file


def most_similar(index: Index, query: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """As `search.most_similar`, of the clips in the cells nearest to the query (E,): the similarities are exact, and a
    clip of another cell is missed.

    Raises InputError without FAISS, and if the approximate index is missing or not of the index's current parts.
    """
    faiss, file = library(), file_of(index)
    if not file.is_file():
        raise InputError(
            f"{index.folder}: no approximate index of its current clips; `alpro model index MODEL VIDEOS "
            f"{index.folder} --approximate` creates it"
        )
    stored = faiss.read_index(str(file), faiss.IO_FLAG_MMAP)
    stored.nprobe = PROBES
    _, found = stored.search(np.ascontiguousarray(query[None], dtype=np.float32), min(CANDIDATES * k, len(index)))
    rows = np.sort(found[0][found[0] >= 0])
    scores = rows_of(index, rows) @ query
    order = np.lexsort((rows, -scores))[:k]
    return rows[order], scores[order]


def rows_of(index: Index, rows: np.ndarray) -> np.ndarray:
    """The embeddings (n, E) of clips, by their numbers in ascending order."""
    taken, first = [], 0
    for matrix in index.embeddings:
        inside = rows[(rows >= first) & (rows < first + len(matrix))] - first
        taken.append(matrix[inside])
        first += len(matrix)
    return np.concatenate(taken)
