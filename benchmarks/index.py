"""Search a large index: recall and latency of exact and approximate search.

    python benchmarks/index.py [--clips 1000000] [--size 256] [--queries 200] [--json FILE]

The program fills an index with random embeddings in clusters, as videos of many topics are, builds
the approximate index as `alpro index add` does, and searches ten clips at a time. The queries are:

- clips: vectors of the same clusters, as "Similar" searches;
- texts: such vectors at a distance from all clips, as CLIP's texts have (the modality gap);
- random: vectors of no cluster, the worst case of any approximate index.

The table has the recall at 10 against the exact search, the median and the 99th percentile of the
latency of both, and the ratio of the medians. The first query of each kind, which reads files, is
not counted. If other programs use the machine, latencies are upper bounds.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from alpro.inference import index as module
from alpro.inference.index import EMPTY, Index, IndexSettings

CLUSTERS = 5000
SPREAD = 0.8  # size of a cluster, relative to the distance of clusters
GAP = 1.0  # distance of texts and clips, relative to the same
K = 10
CHUNK = 10_000


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--size", type=int, default=256, help="length of an embedding")
    parser.add_argument("--queries", type=int, default=200, help="queries of each kind")
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()

    module.EXACT_CLIPS = 0  # Build the approximate index for any number of clips.
    random = np.random.default_rng(0)
    centers = random.standard_normal((CLUSTERS, arguments.size), np.float32)
    with tempfile.TemporaryDirectory() as folder:
        index, times = fill(Path(folder) / "index", centers, arguments.clips, random)
        gap = GAP * random.standard_normal(arguments.size, np.float32)
        kinds: dict[str, Callable[[int], np.ndarray]] = {
            "clips": lambda n: draw(centers, n, random),
            "texts": lambda n: normalize(
                draw(centers, n, random) * np.linalg.norm(gap) + gap
            ),
            "random": lambda n: normalize(
                random.standard_normal((n, arguments.size), np.float32)
            ),
        }
        figures: dict[str, Any] = {
            "count": arguments.clips,
            "size": arguments.size,
            **times,
        }
        for name, query in kinds.items():
            figures[name] = measure(index, query(1 + arguments.queries))

    show(figures)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n")


def fill(
    folder: Path, centers: np.ndarray, clips: int, random: np.random.Generator
) -> tuple[Index, dict[str, float]]:
    """Write an index of random clips, and build its approximate index."""
    settings = IndexSettings(model="", digest="")
    index = Index.create(folder, settings, centers.shape[1], {})
    began = time.monotonic()
    for start in range(0, clips, CHUNK):
        vectors = draw(centers, min(CHUNK, clips - start), random)
        rows = []
        for number, vector in enumerate(vectors, start):
            name = f"/videos/{number:08}.mp4"
            row = {
                "key": f"{number:032}",
                "id": f"{number}",
                "path": name,
                "vector": vector,
            }
            rows.append(EMPTY | row)
        index.write(rows)
    written = time.monotonic()
    index.optimize()
    built = time.monotonic()

    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    times = {"write_seconds": written - began, "build_seconds": built - written}
    return index, times | {"bytes": size}


def normalize(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def draw(centers: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """Draw L2-normalized vectors of random clusters."""
    noise = SPREAD * random.standard_normal((count, centers.shape[1]), np.float32)
    return normalize(centers[random.integers(0, len(centers), count)] + noise)


def measure(index: Index, queries: np.ndarray) -> dict[str, float]:
    """Search each query exactly and approximately."""
    results: dict[bool, list[set[str]]] = {}
    seconds: dict[bool, list[float]] = {}
    for exact in (True, False):
        results[exact] = []
        seconds[exact] = []
        for query in queries:
            began = time.perf_counter()
            items = index.nearest(query, K, exact=exact)
            seconds[exact].append(time.perf_counter() - began)
            results[exact].append({item["key"] for item in items})

    common = [
        len(a & b) / K for a, b in zip(results[True], results[False], strict=True)
    ]
    figures = {"recall": float(np.mean(common[1:]))}
    for exact, name in ((True, "exact"), (False, "approximate")):
        figures[f"{name}_p50"], figures[f"{name}_p99"] = np.percentile(
            seconds[exact][1:], (50, 99)
        )
    return figures


def show(figures: dict[str, Any]) -> None:
    print(
        f"{figures['count']:,} clips x {figures['size']}: written in "
        f"{figures['write_seconds']:.0f} s, approximate index built in "
        f"{figures['build_seconds']:.0f} s, {figures['bytes'] / 1e9:.1f} GB"
    )
    print(
        "| queries | recall at 10 | exact: p50, p99 | approximate: p50, p99 | ratio |"
    )
    print("|---|---:|---:|---:|---:|")
    for kind in ("clips", "texts", "random"):
        row = figures[kind]
        milliseconds = {
            name: 1000 * value for name, value in row.items() if name != "recall"
        }
        exact = f"{milliseconds['exact_p50']:.0f}, {milliseconds['exact_p99']:.0f} ms"
        fast = f"{milliseconds['approximate_p50']:.0f}, {milliseconds['approximate_p99']:.0f} ms"
        ratio = row["exact_p50"] / row["approximate_p50"]
        print(f"| {kind} | {row['recall']:.3f} | {exact} | {fast} | {ratio:.0f} |")


if __name__ == "__main__":
    main()
