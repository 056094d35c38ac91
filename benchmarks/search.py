"""Search of an index: time of a query before re-ranking.

    python benchmarks/search.py [--clips 100000] [--dim 256] [--threads 2] [--queries 20] [--json FILE]

Writes an index of random embeddings, opens it again for every query as `alpro model search` does (mapped to memory),
and compares the query with every embedding. The baseline reads the embeddings and sorts all similarities. A search also
loads the model and encodes the text, and decodes the best clips to match them; these times do not depend on the number
of clips, and `alpro model search` prints them.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa

from alpro.files import write_json
from alpro.stages.inference.index import ITEMS, About, Index, IndexPart, write_items
from alpro.stages.inference.search import most_similar

K = 20
PART = 1 << 16  # clips of a part; a finished index has at most 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--dim", type=int, default=256, help="length of an embedding")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--queries", type=int, default=20)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    from threadpoolctl import threadpool_limits

    with tempfile.TemporaryDirectory() as temporary, threadpool_limits(arguments.threads):
        folder = Path(temporary)
        write_index(folder, arguments.clips, arguments.dim)
        queries = unit_rows(np.random.default_rng(1), arguments.queries, arguments.dim)
        figures = {name: timed(method, folder, queries) for name, method in METHODS.items()}
    baseline = figures["read and sort"]["median"]
    print(f"{arguments.clips:,} clips, embeddings of {arguments.dim}, {arguments.threads} threads of {os.cpu_count()}")
    for name, times in figures.items():
        ratio = f"{baseline / times['median']:5.1f} times"
        print(f"  {name:14} {times['median']:7.1f} ms (max {times['max']:.1f})   {ratio}")
    if arguments.json:
        arguments.json.write_text(json.dumps({"clips": arguments.clips, "milliseconds": figures}, indent=1))


def unit_rows(rng: np.random.Generator, rows: int, dim: int) -> np.ndarray:
    values = rng.standard_normal((rows, dim), np.float32)
    return values / np.linalg.norm(values, axis=1, keepdims=True)


def write_index(folder: Path, clips: int, dim: int) -> None:
    """Random embeddings of files that do not exist."""
    rng, parts = np.random.default_rng(0), []
    for start in range(0, clips, PART):
        count = min(PART, clips - start)
        part = IndexPart(name=f"part{start}", clips=count, rejects=0)
        np.save(folder / f"{part.name}.npy", unit_rows(rng, count, dim))
        rows = [
            {"id": f"clip-{n:07}", "path": f"/videos/{n % 1000:03}/clip-{n:07}.mp4", "kind": "video", "identity": "1 2"}
            for n in range(start, start + count)
        ]
        write_items(folder / f"{part.name}.arrow", [pa.Table.from_pylist(rows, ITEMS)])
        parts.append(part)
    about = About(model="none", digest="none", embed_dim=dim, parts=tuple(parts))
    write_json(folder / "index.json", about.model_dump())


def mapped(folder: Path, query: np.ndarray) -> list[str]:
    index = Index.open(folder)
    rows, _ = most_similar(index.embeddings, query, K)
    return [index.item(row)["id"] for row in rows.tolist()]


def read_and_sort(folder: Path, query: np.ndarray) -> list[str]:
    index = Index.open(folder)
    similarity = np.concatenate(index.embeddings) @ query
    return [index.item(row)["id"] for row in np.argsort(-similarity, kind="stable")[:K].tolist()]


METHODS: dict[str, Callable[[Path, np.ndarray], list[str]]] = {"read and sort": read_and_sort, "mapped": mapped}


def timed(method: Callable[[Path, np.ndarray], list[str]], folder: Path, queries: np.ndarray) -> dict[str, float]:
    """Milliseconds of a query, of which the first is also the first use of the files."""
    times = []
    for query in queries:
        started = time.perf_counter()
        found = method(folder, query)
        times.append(1000 * (time.perf_counter() - started))
        assert found == read_and_sort(folder, query), "the results differ"
    return {"median": statistics.median(times), "max": max(times)}


if __name__ == "__main__":
    main()
