"""Load `alpro serve`: many clients search at the same time.

    python benchmarks/serve.py [--clients 50] [--requests 40] [--videos 200] [--json FILE]

The index has rendered videos and a random model of the sample's sizes: only the times mean
something. Each client sends its requests one after the other; if one is refused (429), it waits as
long as the server says and sends it again. Every answer is compared with the answer to a client
alone, the baseline. The rows:

- similarity: `rerank=0`, the ranking by similarity alone.
- matching: the best 20 videos are decoded and ranked by matching. A tenth of the requests.

The latency of answers with results is in milliseconds; `refused` counts answers 429. The
exit status is 1 if an answer was lost or wrong.
"""

import argparse
import asyncio
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np

ROWS = {"similarity": 0, "matching": 20}
PROGRAM = [sys.executable, "-c", "from alpro.pipeline.cli.main import main; main()"]


@dataclass
class Figures:
    """What became of the requests of a trial: seconds of the answers with results, and the number
    of the other statuses and of answers that are wrong."""

    seconds: list[float] = field(default_factory=list)
    other_statuses: Counter[str] = field(default_factory=Counter)
    wrong: int = 0
    total: float = 0.0

    def row(self) -> dict[str, Any]:
        refused = self.other_statuses.pop("429", 0)
        return {
            "answers": len(self.seconds),
            "refused": refused,
            "lost": self.other_statuses.total(),
            "wrong": self.wrong,
            "p50": 1000 * float(np.quantile(self.seconds, 0.5)),
            "p99": 1000 * float(np.quantile(self.seconds, 0.99)),
            "per second": len(self.seconds) / self.total,
        }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--requests", type=int, default=40, help="of each client")
    parser.add_argument("--videos", type=int, default=200)
    parser.add_argument("--json", type=Path, help="also write the figures to this file")
    arguments = parser.parse_args()

    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        index, texts = make_index(Path(temporary), arguments.videos)
        with serving(index) as url:
            for name, rerank in ROWS.items():
                count = arguments.requests
                if rerank:
                    count = max(1, count // 10)
                alone, many = asyncio.run(
                    trial(url, texts, rerank, clients=arguments.clients, requests=count)
                )
                rows[f"{name}, 1 client"] = alone.row()
                rows[f"{name}, {arguments.clients} clients"] = many.row()

    print(
        f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; {arguments.videos} videos"
    )
    print_table(rows)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1))
    return int(any(row["lost"] or row["wrong"] for row in rows.values()))


@contextmanager
def serving(index: Path) -> Iterator[str]:
    """Serve an index from another process. Yields the address."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [*PROGRAM, "serve", str(index), "--port", str(port)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout
        assert server.stdout.readline(), "the server did not start"
        yield f"http://127.0.0.1:{port}"
    finally:
        server.send_signal(signal.SIGINT)
        assert server.wait(60) == 0


def print_table(rows: dict[str, dict[str, Any]]) -> None:
    """Add to each row the ratio of its answers per second to the first row's."""
    heads = "".join(f"{name:>11}" for name in next(iter(rows.values())))
    print(f"{'':26}{heads}{'ratio':>8}")
    for name, row in rows.items():
        baseline = rows[f"{name.partition(',')[0]}, 1 client"]
        cells = ""
        for value in row.values():
            cells += f"{value:11,.1f}" if isinstance(value, float) else f"{value:11,}"
        print(f"{name:26}{cells}{row['per second'] / baseline['per second']:8.2f}")


def make_index(folder: Path, videos: int) -> tuple[Path, list[str]]:
    """Index rendered videos. Return the index and captions of the videos."""
    import torch

    from alpro.models.alpro import Alpro
    from alpro.models.folder import ModelBundle
    from alpro.models.word_pieces import train_tokenizer
    from alpro.pipeline.config.command import Command
    from alpro.pipeline.config.load import read_settings
    from alpro.stages import render_sample
    from alpro.stages.execution.interface import Resources
    from alpro.stages.training.stage import with_vocab_size

    torch.manual_seed(0)
    config = render_sample.Config(
        lessons=0, clips=videos, stills=0, validation=4, test=4
    )
    render_sample.run(config, render_sample.Inputs(), folder, Resources(workers=1))
    rows = [
        json.loads(line) for line in (folder / "clips.jsonl").read_text().splitlines()
    ]
    training = [row for row in rows if row.get("split") == "train"]
    chosen = [row | {"path": str(folder / row["path"])} for row in training[:videos]]
    (folder / "videos.jsonl").write_text(
        "".join(json.dumps(row) + "\n" for row in chosen)
    )
    texts = [row["captions"][0] for row in chosen]
    tokenizer = train_tokenizer(texts, 400)
    sizes = with_vocab_size(read_settings(Command("sample")).model, tokenizer)
    ModelBundle("retrieval", Alpro(sizes), tokenizer).save_pretrained(folder / "model")
    command = [
        "index",
        "add",
        str(folder / "index"),
        str(folder / "videos.jsonl"),
        "--model",
        str(folder / "model"),
    ]
    subprocess.run([*PROGRAM, *command], check=True, stdout=subprocess.DEVNULL)
    return folder / "index", list(dict.fromkeys(texts))[:20]


async def trial(
    url: str, texts: list[str], rerank: int, clients: int, requests: int
) -> tuple[Figures, Figures]:
    """Send each text alone, then the requests of all clients."""
    alone = Figures()
    many = Figures()
    right: dict[str, Any] = {}
    limits = httpx.Limits(max_connections=clients)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def search(text: str, figures: Figures) -> None:
            while True:
                started = time.perf_counter()
                try:
                    answer = await client.get(
                        "/api/search", params={"text": text, "rerank": rerank}
                    )
                except httpx.HTTPError as error:
                    figures.other_statuses[type(error).__name__] += 1
                    return
                if answer.status_code == 200:
                    break
                figures.other_statuses[str(answer.status_code)] += 1
                if answer.status_code != 429:
                    return
                await asyncio.sleep(float(answer.headers["Retry-After"]))
            figures.seconds.append(time.perf_counter() - started)
            hits = [
                (hit["key"], round(hit["similarity"], 4))
                for hit in answer.json()["hits"]
            ]
            figures.wrong += right.setdefault(text, hits) != hits

        async def one_client(first: int) -> None:
            for text in itertools.islice(
                itertools.cycle(texts), first, first + requests
            ):
                await search(text, many)

        await search(texts[0], Figures())  # Warm up: the first request is slower.
        started = time.perf_counter()
        for text in texts:
            await search(text, alone)
        alone.total = time.perf_counter() - started

        started = time.perf_counter()
        await asyncio.gather(*(one_client(number) for number in range(clients)))
        many.total = time.perf_counter() - started
    return alone, many


if __name__ == "__main__":
    sys.exit(main())
