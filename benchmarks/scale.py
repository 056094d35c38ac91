"""Measure what grows with the number of machines, units and rows.

    python benchmarks/scale.py [--seconds 5] [--units 4000] [--rows 10240 102400] [--json FILE]

Three tables:

- workers: 1, 2, 4 and 8 workers run units that wait as long as decoding takes, here and on a Dask
  cluster. Efficiency is the time that the units wait, divided by the time that the workers had.
- units: the processor time of everything but decoding, for each unit of 256 rows: to hand it to a
  worker, in the pipeline and in the scheduler of a cluster, and to merge it into a corpus.
- rows: the processor time per row, and the peak memory, of planning, merging, opening a data set, and
  ordering an epoch. Each runs in a process of its own; memory excludes imports. The ratio is the time
  per row, relative to the smallest corpus.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from alpro.pool import each
from alpro.shards.clip import Clip
from alpro.shards.overlap import overlap
from alpro.shards.schema import INDEX, MANIFEST, REJECTS, SPLITS, Row
from alpro.shards.sources.manifest import Manifest, import_source
from alpro.shards.sources.plan import DecodePlan, DecodeUnit
from alpro.shards.writer import ShardWriter, index_shard
from alpro.stages.corpora.tables import COMPARED, write_statistics
from alpro.stages.corpora.units import SHARD, Unit, merge_units, open_units

WORKERS = (1, 2, 4, 8)
UNITS_PER_WORKER = 10
UNIT_ROWS = 256
FRAMES = 16
DASK = Path(sys.executable).with_name("dask")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=5, help="that a unit waits")
    parser.add_argument(
        "--units", type=int, default=4000, help="units that are handed and merged"
    )
    parser.add_argument("--rows", type=int, nargs="*", default=[10_240, 102_400])
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.part:
        print(json.dumps(measure_part(arguments.part, arguments.folder)))
        return

    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if arguments.seconds:
            figures["workers"] = measure_workers(arguments.seconds, folder)
        if arguments.units:
            figures["units"] = measure_units(arguments.units, folder)
        if arguments.rows:
            figures["rows"] = measure_rows(arguments.rows, folder)
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


# Workers


class Cluster(NamedTuple):
    address: str
    scheduler: psutil.Process


@contextmanager
def start_cluster(threads: int, folder: Path) -> Iterator[Cluster]:
    """Start a scheduler and a worker by their command lines."""
    file = folder / f"scheduler-{threads}.json"
    file.unlink(missing_ok=True)
    options = ["--scheduler-file", str(file), "--no-dashboard"]
    worker = [
        *options,
        "--nthreads",
        str(threads),
        "--no-nanny",
        "--local-directory",
        str(folder),
    ]
    programs = []
    with ExitStack() as stack:
        for words in (["scheduler", "--port", "0", *options], ["worker", *worker]):
            program = subprocess.Popen([DASK, *words], stderr=subprocess.DEVNULL)
            stack.callback(program.wait)
            stack.callback(program.kill)
            programs.append(program)
        while not file.exists():
            time.sleep(0.1)
        yield Cluster(
            json.loads(file.read_text())["address"], psutil.Process(programs[0].pid)
        )


def measure_workers(seconds: float, folder: Path) -> dict[str, dict[int, float]]:
    print(f"\nUnits that wait {seconds:g} s, {UNITS_PER_WORKER} a worker")
    print(f"  {'workers':>8} {'':12} {'seconds':>8} {'efficiency':>11}")
    figures: dict[str, dict[int, float]] = {"processes": {}, "cluster": {}}
    for workers in WORKERS:
        with start_cluster(workers, folder) as cluster:
            for name, scheduler in (("processes", ""), ("cluster", cluster.address)):
                units = [seconds] * UNITS_PER_WORKER * workers
                began = time.monotonic()
                for _ in each(units, time.sleep, workers, scheduler):
                    pass
                wall = time.monotonic() - began
                efficiency = seconds * UNITS_PER_WORKER / wall
                figures[name][workers] = efficiency
                print(f"  {workers:8} {name:12} {wall:8.1f} {efficiency:11.2f}")
    return figures


# Units


def make_rows(count: int) -> list[Row]:
    texts = (
        "a person walks along a street with a dog",
        "a dog on a leash",
        "people in a city",
    )
    rows = []
    for i in range(count):
        path = Path(f"/data/videos/{i % 100:02d}/clip-{i:08d}.mp4")
        row = Row(
            id=f"clip-{i:08d}", path=path, kind="video", captions=texts, split="train"
        )
        rows.append(row)
    return rows


def measure_units(count: int, folder: Path) -> dict[str, float]:
    print(f"\n{count} units of {UNIT_ROWS} rows, milliseconds of a processor for each")
    values = [row.model_dump(mode="json") for row in make_rows(UNIT_ROWS)]
    table = pa.Table.from_pylist(
        [value | {"meta": "{}"} for value in values], schema=MANIFEST
    )

    def hand(scheduler: str = "") -> float:
        units = (DecodeUnit(f"train-video-{i:05d}", table) for i in range(count))
        began = time.process_time()
        for _ in each(units, len, 4, scheduler):
            pass
        return time.process_time() - began

    seconds = {"handed to a process": hand()}
    with start_cluster(4, folder) as cluster:
        before = sum(cluster.scheduler.cpu_times()[:2])
        seconds["handed to a cluster, pipeline"] = hand(cluster.address)
        after = sum(cluster.scheduler.cpu_times()[:2])
    seconds["handed to a cluster, scheduler"] = after - before
    corpus = make_corpus(folder / "merged", count * UNIT_ROWS)
    seconds["merged"] = measure_part("merge", corpus)["seconds"]

    for name, value in seconds.items():
        each_unit = value / count
        print(
            f"  {name:32} {1000 * each_unit:7.2f}; {each_unit * 40_000:5.0f} s for 40,000 units"
        )
    return {name: 1000 * value / count for name, value in seconds.items()}


# Rows


def make_corpus(folder: Path, rows: int) -> Path:
    """Write the manifest of a data set, one decoded unit, and the index of the corpus."""
    out = folder / "artifacts" / "decode_videos" / "corpus"
    out.mkdir(parents=True)
    store = open_units(out)

    def write(target: Path) -> dict[str, Any]:
        clip = Clip(np.zeros((FRAMES, 16, 16, 3), np.uint8), 10.0, 320, 240)
        with ShardWriter(target / SHARD) as writer:
            for row in make_rows(UNIT_ROWS):
                writer.write(row, clip)
        pq.write_table(index_shard(target / SHARD), target / "index.parquet")
        pq.write_table(REJECTS.empty_table(), target / "rejects.parquet")
        sums = np.zeros((3, 3)).tolist()
        return {"training": sums, "everything": sums, "transient": False}

    store.find_or_make("unit", lambda: "unit", write)
    (folder / "rows").write_text(str(rows))
    return folder


def write_source(folder: Path, rows: int) -> None:
    """Import a table of this many rows."""
    (folder / "data").mkdir()
    with open(folder / "data" / "clips.jsonl", "w") as file:
        for row in make_rows(rows):
            # At URLs: an import looks for the files of a disk.
            url = f"https://host.example/{row.id}.mp4"
            values = {"path": url, "id": row.id, "captions": row.captions}
            print(json.dumps(values), file=file)
    import_source(folder / "data" / "clips.jsonl", folder / "manifests")


def write_index(folder: Path, rows: int) -> None:
    """Write the index of a corpus with this many samples, each of a group of its own."""
    unit = pq.read_table(folder / "units" / "unit" / "index.parquet")
    out = folder / "opened"
    out.mkdir()
    with pq.ParquetWriter(out / "index.parquet", INDEX) as writer:
        for first in range(0, rows, UNIT_ROWS):
            names = pa.array([f"clip-{i:08d}" for i in range(first, first + UNIT_ROWS)])
            shards = pa.array([f"train-video-{first // UNIT_ROWS:05d}.tar"] * UNIT_ROWS)
            table = unit
            for column, values in (("id", names), ("group", names), ("shard", shards)):
                table = table.set_column(INDEX.get_field_index(column), column, values)
            writer.write_table(table)


def plan(folder: Path) -> None:
    """Plan a corpus, and read the rows of its units as they are handed to workers."""
    (manifest,) = folder.glob("manifests/*/about.json")
    decode_plan = DecodePlan(Manifest(manifest.parent), validation=0.1, test=0.1)
    for _ in decode_plan.units():
        pass


def merge(folder: Path) -> None:
    """Merge units into a corpus, with its statistics and the overlap of its splits."""
    out = folder / "artifacts" / "decode_videos" / "corpus"
    rows = int((folder / "rows").read_text())
    names = [f"train-video-{i:05d}" for i in range(rows // UNIT_ROWS)]
    units = [Unit(name, "unit", True) for name in names]
    records = merge_units(units, open_units(out), out)
    none = {"items": 0, "captions": 0, "questions": 0}
    table, overlaps = overlap(out, COMPARED)
    pq.write_table(table, out / "overlap.parquet")
    write_statistics(out, records, dict.fromkeys(SPLITS, none), overlaps)


def open_data_set(folder: Path) -> Any:
    """Open a corpus as a training does."""
    from alpro.stages.training.dataset import CorpusExamples

    return CorpusExamples("clips", folder / "opened", "video", "sample", first_video=0)


def order_epoch(folder: Path) -> None:
    """Draw the order of two epochs, at random and with the samples of a group side by side."""
    examples = open_data_set(folder)
    began = time.process_time()
    examples.order(0, 1, grouped=False)
    examples.order(0, 2, grouped=True)
    order_epoch.seconds = time.process_time() - began  # type: ignore[attr-defined]


PARTS: dict[str, Callable[[Path], Any]] = {
    "plan": plan,
    "merge": merge,
    "open": open_data_set,
    "order": order_epoch,
}


def measure_part(part: str, folder: Path) -> dict[str, float]:
    import alpro.stages.training.dataset  # noqa: F401 - imports are not counted

    # Forgets the peak of the imports; Linux only.
    Path("/proc/self/clear_refs").write_text("5")
    before = read_memory("VmRSS")
    began = time.process_time()
    PARTS[part](folder)
    seconds = getattr(PARTS[part], "seconds", time.process_time() - began)
    return {"seconds": seconds, "MiB": (read_memory("VmHWM") - before) / 1024}


def read_memory(name: str) -> int:
    """Return the memory of this process (VmRSS), or its peak (VmHWM), in KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1])


def measure_rows(
    sizes: list[int], folder: Path
) -> dict[str, dict[int, dict[str, float]]]:
    print(
        f"\n  {'':6} {'rows':>10} {'us a row':>9} {'ratio':>6} {'peak MiB':>9} {'B a row':>8}"
    )
    figures: dict[str, dict[int, dict[str, float]]] = {part: {} for part in PARTS}
    for rows in sizes:
        corpus = make_corpus(folder / str(rows), rows)
        write_source(corpus, rows)
        write_index(corpus, rows)
        for part in PARTS:
            command = [
                sys.executable,
                __file__,
                "--part",
                part,
                "--folder",
                str(corpus),
            ]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
            figures[part][rows] = json.loads(done.stdout.splitlines()[-1])

    for part, by_rows in figures.items():
        base = by_rows[sizes[0]]["seconds"] / sizes[0]
        for rows, figure in by_rows.items():
            time_a_row = figure["seconds"] / rows
            memory = figure["MiB"] * 2**20 / rows
            print(
                f"  {part:6} {rows:10,} {1e6 * time_a_row:9.2f} {time_a_row / base:6.2f} "
                f"{figure['MiB']:9.0f} {memory:8.0f}"
            )
    return figures


if __name__ == "__main__":
    main()
