"""Growth: time and memory of planning, indexing, search and `alpro artifacts ls` against the number of clips.

    python benchmarks/growth.py [--sizes N N N] [--turns 3] [--curves NAME ...] [--folder FOLDER] [--json FILE]
                                [--plot FILE]

Each measurement is a process of its own. Last, the exponent of each curve: the slope between the two largest sizes in a
plot of logarithms, 1 for linear growth. `memory` is that of the process above the start, `mapped` includes the files
that are mapped to memory, which the system takes back as needed.

- plan, plan again: as `alpro run --data MANIFEST --dry-run` does in a new workspace, and once more. The videos are
  sparse files of 1,000 bytes, a thousand to a folder; real ones take longer the first time, half a second a gigabyte.
- index, index 1,000 more: random embeddings are added to a new index, and to an index of that size.
- search, read and sort: a query before re-ranking, with the index opened each time; the baseline reads all embeddings
  and sorts all similarities. The results are compared.
- artifacts ls: of one artifact for every 1,000 clips.

A curve may use what those before it have made. A change of the code meanwhile makes "plan again" read everything.
"""

import argparse
import contextlib
import io
import json
import math
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from alpro.files import atomic_write, write_json

PER_FOLDER, BYTES, DIM, QUERIES, K, MORE = 1000, 1000, 256, 20, 20, 1000
CLIPS_OF_ARTIFACT = 1000
MEASURES = ("seconds", "processor", "memory", "mapped")
Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--curves", nargs="+", choices=CURVES, default=list(CURVES))
    parser.add_argument("--folder", type=Path, help="where the videos are made, or are from an earlier run")
    parser.add_argument("--json", type=Path, help="also write the figures to this file after each turn")
    parser.add_argument("--plot", type=Path, help="also draw the curves")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        CURVES[arguments.measure](arguments.folder, arguments.sizes[0])
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = (arguments.folder or Path(temporary)).absolute()
        folder.mkdir(parents=True, exist_ok=True)
        print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; medians of {arguments.turns} turns")
        turns: dict[str, dict[int, list[Figures]]] = {
            name: {size: [] for size in arguments.sizes} for name in arguments.curves
        }
        for _ in range(arguments.turns):
            for size in arguments.sizes:
                for name in arguments.curves:
                    turns[name][size].append(measure(name, folder, size))
            curves = {
                name: dict(zip(sizes, map(medians, sizes.values()), strict=True)) for name, sizes in turns.items()
            }
            if arguments.json:
                write_json(arguments.json, curves)
    print(f"{'':20}{'size':>11}{'seconds':>11}{'processor':>11}{'memory MiB':>11}{'with mapped':>12}")
    for name, curve in curves.items():
        for size, figures in curve.items():
            print(f"{name:20}{size:11,}" + "{:11.3f}{:11.3f}{:11.0f}{:12.0f}".format(*figures.values()))
    if len(arguments.sizes) > 1:
        print(f"{'exponents':31}" + "".join(f"{key:>11}" for key in MEASURES))
        for name, curve in curves.items():
            print(f"{name:31}" + "".join(f"{exponent(curve, key):11.2f}" for key in MEASURES))
    if arguments.plot:
        draw(curves, arguments.plot)


def medians(turns: list[Figures]) -> Figures:
    return {key: statistics.median(turn[key] for turn in turns) for key in MEASURES}


def exponent(curve: dict[int, Figures], key: str) -> float:
    """The slope of a curve between its two largest sizes in a plot of logarithms."""
    before, last = sorted(curve)[-2:]
    return math.log(curve[last][key] / curve[before][key]) / math.log(last / before)


def measure(name: str, folder: Path, size: int) -> Figures:
    command = [sys.executable, __file__, "--measure", name, "--folder", str(folder), "--sizes", str(size)]
    printed = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout
    figures: Figures = json.loads(printed.splitlines()[-1])
    return figures


@contextlib.contextmanager
def measured(times: int = 1) -> Iterator[None]:
    """Prints the seconds, and the peaks of memory above the start, of what runs in the block this often."""
    before, peak, done = memory(), memory(), threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.02):
            peak = max(peak, memory())

    watcher = threading.Thread(target=watch)
    watcher.start()
    mapped, started, busy = max_resident(), time.perf_counter(), time.process_time()
    yield
    seconds, processor = time.perf_counter() - started, time.process_time() - busy
    peak = max(peak, memory())
    done.set()
    watcher.join()
    figures = seconds / times, processor / times, max(peak - before, 0.1), max(max_resident() - mapped, 0.1)
    print(json.dumps(dict(zip(MEASURES, figures, strict=True))))


def memory() -> float:
    """MiB of this process, without mapped files."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) / 2**10


def max_resident() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10


def plan(folder: Path, rows: int) -> None:
    shutil.rmtree(folder / f"workspace{rows}", ignore_errors=True)
    manifest = folder / "videos" / f"{rows}.jsonl"
    if not manifest.exists():
        write_videos(folder / "videos", rows)
    plan_again(folder, rows)


def plan_again(folder: Path, rows: int) -> None:
    from alpro.pipeline.plan.dag import planned

    with measured():
        planned("", "own_videos", str(folder / "videos" / f"{rows}.jsonl"), [], folder / f"workspace{rows}")


def write_videos(folder: Path, rows: int) -> None:
    for number in range(0, rows, PER_FOLDER):
        (folder / f"{number // PER_FOLDER:06}").mkdir(parents=True, exist_ok=True)
    with atomic_write(folder / f"{rows}.jsonl") as temporary, open(temporary, "w") as manifest:
        for number in range(rows):
            name = f"{number // PER_FOLDER:06}/{number}.mp4"
            with open(folder / name, "wb") as video:
                video.truncate(BYTES)
            caption = f"clip {number}: bright clouds drift slowly over other clouds on a windy day"
            manifest.write(json.dumps({"path": name, "captions": [caption]}) + "\n")


def index(folder: Path, clips: int) -> None:
    shutil.rmtree(folder / f"index{clips}", ignore_errors=True)
    (folder / f"index{clips}").mkdir()
    add(folder / f"index{clips}", 0, clips)


def index_more(folder: Path, clips: int) -> None:
    add(folder / f"index{clips}", clips, MORE)


def add(folder: Path, first: int, count: int) -> None:
    from alpro.inference.index import About, IndexWriter, read_about

    about = read_about(folder) if first else About(model="none", digest="none", embed_dim=DIM)
    rng = np.random.default_rng(first)
    with measured():
        writer = IndexWriter(folder, about)
        for number in range(first, first + count):
            path = f"/videos/{number // PER_FOLDER:06}/{number}.mp4"
            item = {"id": str(number), "path": path, "kind": "video", "start": None, "end": None, "identity": "1 2"}
            item |= {"frame_offsets": None, "frame_sizes": None}
            if writer.state(item) == "new":
                writer.add(item, unit(rng.standard_normal(DIM, np.float32)))
        writer.finish(False)


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


def search(folder: Path, clips: int) -> None:
    query_times(folder, clips, ("mapped", "sorted"))


def read_and_sort(folder: Path, clips: int) -> None:
    query_times(folder, clips, ("sorted", "mapped"))


def query_times(folder: Path, clips: int, methods: tuple[str, str]) -> None:
    """Measures the first method, and compares the results with the second."""
    from alpro.inference.index import Index
    from alpro.inference.search import most_similar

    def best(method: str, query: np.ndarray) -> list[str]:
        opened = Index.open(folder / f"index{clips}")
        if method == "mapped":
            rows = most_similar(opened.embeddings, query, K)[0]
        else:
            rows = np.argsort(-(np.concatenate(opened.embeddings) @ query), kind="stable")[:K]
        return [opened.item(row)["id"] for row in rows.tolist()]

    queries = [unit(query) for query in np.random.default_rng(1).standard_normal((QUERIES, DIM), np.float32)]
    with measured(QUERIES):
        found = [best(methods[0], query) for query in queries]
    assert found[:3] == [best(methods[1], query) for query in queries[:3]], "the results differ"


def list_artifacts(folder: Path, clips: int) -> None:
    """All artifacts but the first have it among their inputs, and half of the others the one before."""
    from alpro.artifact import RECORD_VERSION
    from alpro.pipeline.cli import artifacts as listing

    workspace, count = folder / f"artifacts{clips}", max(clips // CLIPS_OF_ARTIFACT, 2)
    sources: dict[str, dict[str, str]] = {}
    for number in range(0 if workspace.exists() else count):
        stage, fingerprint = "pretrain" if number else "decode_videos", f"{number:064x}"[::-1]
        place = workspace / "artifacts" / stage / fingerprint[:16]
        place.mkdir(parents=True)
        for name in "abcdefgh":
            (place / name).write_text(name)
        record = {"version": RECORD_VERSION, "stage": stage, "name": stage, "fingerprint": fingerprint}
        run = {"at": f"2026-01-01T{number:08}", "seconds": 1.0}
        write_json(place / "artifact.json", record | {"inputs": sources, "run": run})
        source = {"stage": stage, "fingerprint": fingerprint}
        sources = {"data": sources.get("data", source)} | ({"before": source} if number % 2 else {})
    arguments = argparse.Namespace(workspace=workspace, json=False)
    from alpro.pipeline.reports import terminal  # noqa: F401 (imported before the clock starts)
    from alpro.pipeline.store import lineage  # noqa: F401

    printed = io.StringIO()
    with measured(), contextlib.redirect_stdout(printed):
        listing.list_artifacts(arguments)
    assert f"{count} artifacts" in printed.getvalue()


# In this order: a curve may use what the one before has made.
CURVES: dict[str, Callable[[Path, int], None]] = {
    "plan": plan,
    "plan again": plan_again,
    "index": index,
    "search": search,
    "read and sort": read_and_sort,
    "index 1,000 more": index_more,
    "artifacts ls": list_artifacts,
}


def draw(curves: dict[str, dict[int, Figures]], file: Path) -> None:
    """Processor time and memory against the size."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, both = plt.subplots(1, 2, figsize=(11, 5.4))
    for axes, key, label in zip(both, ("processor", "memory"), ("seconds of processor time", "MiB"), strict=True):
        for name, curve in curves.items():
            axes.loglog(
                sorted(curve),
                [curve[size][key] for size in sorted(curve)],
                "o-",
                label=f"{name}: {exponent(curve, key):.2f}",
            )
        axes.set_xlabel("clips; artifacts ls: one for every 1,000", fontsize=12)
        axes.set_ylabel(label, fontsize=12)
        axes.legend(fontsize=9, title="exponent", frameon=False, ncols=2, loc="lower center", bbox_to_anchor=(0.5, 1))
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
    figure.tight_layout()
    figure.savefig(file, dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
