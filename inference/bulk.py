"""Answers or entities of many videos, to one table: `alpro ask` and `alpro entities` with --out."""

import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch
from torch import Tensor

from alpro.errors import InputError
from alpro.files import atomic_write
from alpro.inference.clips import Source, decode_ahead
from alpro.inference.index import Item, key_of, source_of
from alpro.inference.model import Model
from alpro.progress import progress
from alpro.shards.decoding import DecodeError
from alpro.shards.schema import Reject

Name = Callable[[Source, Tensor | None], list[tuple[str, float]]]  # words with probabilities for a video, best first
WRITERS = {".parquet": pq.ParquetWriter, ".csv": pyarrow.csv.CSVWriter}
ROWS = 4096  # of the journal that are in memory


def write_words(
    out: Path, about: dict[str, Any], model: Model, name: Name, word: str, items: list[Item | Reject]
) -> int:
    """Writes a row for each item to `out` (.parquet or .csv): its id, path, start, end, the words that `name` returns
    with their probabilities, and an error instead of them. Returns the number of rows.

    Rows are kept in a journal beside `out` until all are there, so an interrupted call continues. Clips are decoded
    ahead of the model. about: what the rows depend on. Raises InputError if `out` exists, or for another journal.
    """
    if out.suffix not in WRITERS:
        raise InputError(f"--out {out}: the file must end with .parquet or .csv")
    if out.exists():
        raise InputError(f"--out {out}: exists already; choose another file")
    journal = out.with_name(f"{out.name}.part")
    done = resume(journal, about)
    new = [item for item in items if key(item) not in done]
    try:
        file = journal.open("a", encoding="utf-8")
    except OSError as error:
        raise InputError(f"--out {out}: {error.strerror}") from error
    with file, progress("videos", len(items), "videos", len(items) - len(new)) as advance:
        for item, row in rows_of(model, name, word, new):
            file.write(json.dumps([key(item), row]) + "\n")
            file.flush()
            advance()
    return publish(journal, out, word)


def resume(journal: Path, about: dict[str, Any]) -> set[str]:
    """The keys of the rows of a journal; a row that was cut off is removed. `about` is the first line."""
    head = json.dumps(about, sort_keys=True) + "\n"
    if not journal.is_file() or not journal.stat().st_size:  # killed before its first line
        journal.parent.mkdir(parents=True, exist_ok=True)
        journal.write_text(head, "utf-8")
        return set()
    done, size = set[str](), 0
    with journal.open("r+b") as file:
        if (first := file.readline()) != head.encode():
            raise InputError(
                f"{journal}: of another model or request, {first.decode().strip()}; delete it to begin anew"
            )
        for line in file:
            if line.endswith(b"\n"):
                size += len(line)
                done.add(json.loads(line)[0])
        file.truncate(len(first) + size)
    return done


def key(item: Item | Reject) -> str:
    return f"{item.path}\n{item.id}" if isinstance(item, Reject) else key_of(item)


def rows_of(
    model: Model, name: Name, word: str, items: Iterable[Item | Reject]
) -> Iterator[tuple[Item | Reject, dict[str, Any]]]:
    """Each item with its row; rejects of a manifest first."""
    pending = deque[Item]()
    for item in items:
        if isinstance(item, Reject):
            yield item, row_of(vars(item), word, error=f"{item.reason}: {item.detail}")
        else:
            pending.append(item)
    for source, clip in decode_ahead(map(source_of, list(pending)), model.folder.model.config.video):
        item = pending.popleft()
        if isinstance(clip, DecodeError):
            yield item, row_of(item, word, error=str(clip))
        else:
            words = name(source, torch.from_numpy(clip)[None].to(model.device))
            yield item, row_of(item, word, words)


def row_of(item: dict[str, Any], word: str, words: Sequence[tuple[str, float]] = (), error: str = "") -> dict[str, Any]:
    row = {key: item.get(key) for key in ("id", "path", "start", "end")}
    for place, (text, probability) in enumerate(words, 1):
        row |= {f"{word}_{place}": text, f"probability_{place}": probability}
    return row | {"error": error or None}


def publish(journal: Path, out: Path, word: str) -> int:
    """Turns a complete journal into the table, and deletes it."""
    count = 0
    with journal.open(encoding="utf-8") as file, atomic_write(out) as temporary:
        about = json.loads(file.readline())
        texts = [("id", pa.string()), ("path", pa.string()), ("start", pa.float64()), ("end", pa.float64())]
        ranks = range(1, about["k"] + 1)
        words = [column for n in ranks for column in ((f"{word}_{n}", pa.string()), (f"probability_{n}", pa.float64()))]
        schema = pa.schema([*texts, *words, ("error", pa.string())])
        with WRITERS[out.suffix](str(temporary), schema) as writer:
            while rows := [json.loads(line)[1] for _, line in zip(range(ROWS), file, strict=False)]:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                count += len(rows)
    journal.unlink()
    return count
