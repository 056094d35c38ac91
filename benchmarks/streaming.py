"""Random access by number beside streaming with webdataset: samples/s of the same shards, decoded by the same function.

    python benchmarks/streaming.py [--samples N] [--runs N] [--json FILE]

Both load the metadata and 4 random frames of 16 of every sample, once, in an order that is shuffled: `ShardReader` in a
random permutation of all samples, which a step number determines and which can be resumed anywhere; `webdataset` shard
after shard with a buffer of 100 samples, from which it draws. That is the baseline, "webdataset". Local disk, and a
server of byte ranges on this machine, in a process of its own (webdataset reads it with curl); cold: the kernel's pages
of the shards are dropped before (posix_fadvise). The methods take turns, and the medians are printed.
"""

import argparse
import io
import json
import os
import random
import re
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import Pipe, Process
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from gpu_runs import write_clips
from torch.utils.data import DataLoader, Dataset

from alpro.shards.reader import ShardReader, decode_jpeg
from alpro.shards.storage import Location

SHARDS, STORED, CHOSEN, SIZE = 8, 16, 4, 256
BUFFER = 100  # samples that webdataset draws from
WORKERS = (1, 4)
BASELINE, OURS = "webdataset", "by number"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()
    figures = []
    warnings.filterwarnings("ignore", message=".*worker processes in total")  # more than this machine has cores
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name) / "corpus"
        write_clips(folder, arguments.samples, STORED, SIZE, SHARDS)
        size = sum(shard.stat().st_size for shard in folder.glob("*.tar"))
        print(f"{arguments.samples} samples of {STORED} frames, {size / 1e6:.0f} MB in {SHARDS} shards; ", end="")
        print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")
        print(f"{'samples/s':34}{OURS:>12}{BASELINE:>12}{'ratio':>8}", flush=True)
        with served(folder) as url:
            for store, place in (("local disk", folder), ("HTTP on this machine", url)):
                for cold in (True, False):
                    for workers in WORKERS:
                        case = f"{store}, {'cold' if cold else 'warm'}, {workers} worker{'s' * (workers > 1)}"
                        figures.append(compare(case, folder, place, cold, workers, arguments.runs))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


def compare(case: str, folder: Path, place: Location, cold: bool, workers: int, runs: int) -> dict[str, Any]:
    """Prints and returns the samples/s of both methods."""
    count = len(ShardReader(folder))
    methods: dict[str, Callable[[int], DataLoader]] = {
        OURS: partial(by_number, place, workers),
        BASELINE: partial(streamed, place, workers),
    }
    rates: dict[str, list[float]] = {name: [] for name in methods}
    for seed in range(runs):
        for name, loader in methods.items():
            if cold:
                drop_pages(folder)
            started, seen = time.perf_counter(), set()
            for identity, frames in loader(seed):
                assert frames.shape == (CHOSEN, SIZE, SIZE, 3)
                seen.add(identity)
            rates[name].append(count / (time.perf_counter() - started))
            assert len(seen) == count
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratio = medians[OURS] / medians[BASELINE]
    print(f"{case:34}{medians[OURS]:12.0f}{medians[BASELINE]:12.0f}{ratio:8.2f}", flush=True)
    return {"case": case, **medians, "ratio": ratio}


class Numbered(Dataset):
    """The samples of a corpus by number. Frames are chosen by the number and a seed, as in training."""

    def __init__(self, place: Location, seed: int):
        self.reader, self.seed = ShardReader(place), seed

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, number: int) -> tuple[str, np.ndarray]:
        sample = self.reader[number]
        chosen = np.random.default_rng([self.seed, number]).choice(len(sample), CHOSEN, replace=False)
        return sample.about["id"], sample.frames(sorted(map(int, chosen)))


def by_number(place: Location, workers: int, seed: int) -> DataLoader:
    data = Numbered(place, seed)
    order = np.random.default_rng(seed).permutation(len(data)).tolist()
    return DataLoader(data, batch_size=None, sampler=order, num_workers=workers, prefetch_factor=4)


def streamed(place: Location, workers: int, seed: int) -> DataLoader:
    import webdataset

    names = [f"{place}/{number:02}.tar" for number in range(SHARDS)]
    random.Random(seed).shuffle(names)
    data = webdataset.WebDataset(names, shardshuffle=False).shuffle(BUFFER, rng=random.Random(seed)).map(drawn)
    return DataLoader(data, batch_size=None, num_workers=workers, prefetch_factor=4)


def drawn(sample: dict[str, Any]) -> tuple[str, np.ndarray]:
    frames = sorted(name for name in sample if name.endswith(".jpg") or name == "jpg")
    chosen = sorted(random.sample(frames, CHOSEN))
    return json.loads(sample["json"])["id"], np.stack([decode_jpeg(sample[name]) for name in chosen])


def drop_pages(folder: Path) -> None:
    """Drops the kernel's pages of the shards."""
    for shard in folder.glob("*.tar"):
        with open(shard, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


class Ranges(SimpleHTTPRequestHandler):
    """Files of a folder, whole or a range of their bytes."""

    protocol_version = "HTTP/1.1"  # connections are kept

    def do_GET(self) -> None:
        path, wanted = Path(self.translate_path(self.path)), self.headers.get("Range", "")
        if not path.is_file():
            self.send_error(404)
            return
        size = path.stat().st_size
        given = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted)
        first, last = (int(given[1]), min(int(given[2] or size), size - 1)) if given else (0, size - 1)
        self.send_response(206 if given else 200)
        self.send_header("Content-Length", str(last - first + 1))
        if given:
            self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
        self.end_headers()
        with open(path, "rb") as file:
            file.seek(first)
            shutil.copyfileobj(io.BytesIO(file.read(last - first + 1)) if given else file, self.wfile, 1 << 20)

    def log_message(self, *message: object) -> None:
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The URL of a folder, which a process of its own serves."""
    here, there = Pipe()
    process = Process(target=serve, args=(folder, there), daemon=True)
    process.start()
    yield f"http://127.0.0.1:{here.recv()}"
    process.terminate()
    process.join()


def serve(folder: Path, ready: Connection) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Ranges, directory=str(folder))) as server:
        ready.send(server.server_address[1])
        server.serve_forever()


if __name__ == "__main__":
    main()
