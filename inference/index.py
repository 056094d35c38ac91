"""An index of embedded videos: a folder that `alpro index` fills and `alpro search` reads.

index.json names the model and the parts. A part is a Parquet file with a row for each clip and its embedding, or for
each rejected file and the reason. It counts once index.json names it, so an interrupted run keeps every finished part,
and a search can run at the same time. What index.json does not name is deleted before any other change.
"""

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict, ValidationError

from alpro.errors import InputError
from alpro.files import atomic_write, write_json
from alpro.inference.find import find_model, model_digest
from alpro.inference.model import Model
from alpro.shards.reader import Sample, sample_from_row
from alpro.shards.schema import REJECTS, TRANSIENT_REASONS, Reason, Reject, Row
from alpro.shards.storage import absolute, located

PART_CLIPS = 1024  # clips after which a part is added
PART_SECONDS = 60.0  # or the time since the last one
MAX_PARTS = 100  # more are merged at the end of a run

ITEMS = pa.schema(
    [
        ("id", pa.string()),
        ("path", pa.string()),  # of the file, or of the shard
        ("kind", pa.string()),
        ("start", pa.float64()),  # seconds; null: the whole file
        ("end", pa.float64()),
        ("caption", pa.string()),  # the first one, if there is any
        ("columns", pa.map_(pa.string(), pa.string())),  # of the manifest, those that the index keeps
        ("identity", pa.string()),  # size and time of the file, or its ETag: a change embeds it again
        ("frame_offsets", pa.list_(pa.int64())),  # of a sample in a shard
        ("frame_sizes", pa.list_(pa.int64())),
        ("reason", pa.string()),  # of a reject, which has no embedding
        ("detail", pa.string()),
    ]
)
PART = pa.schema([*ITEMS, ("embedding", pa.list_(pa.float32()))])
CLIP = ("id", "path", "kind", "start", "end", "caption", "columns")  # what people see of an item
Item = dict[str, Any]  # a row of ITEMS


class About(BaseModel):
    """index.json: the model (its folder, its digest), the names of the parts, the windows that videos are cut into, if
    they are (their length, and the time from one to the next, in seconds), and the kept columns of the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[2] = 2
    model: str
    digest: str
    window: float | None = None
    stride: float | None = None
    columns: tuple[str, ...] = ()
    parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Index:
    """An index in memory: `items` has a row for each clip, and `embeddings` (N, E) its vector; `rejects` are the files
    that could not be decoded."""

    folder: Path
    about: About
    items: pa.Table
    embeddings: np.ndarray
    rejects: pa.Table

    @classmethod
    def open(cls, folder: str | Path) -> "Index":
        """Reads an index. Raises InputError if it is missing or corrupt."""
        folder = Path(folder)
        while True:
            about = read_about(folder)
            try:
                parts = [read_part(folder / f"{name}.parquet") for name in about.parts]
                break
            except (OSError, ValueError, pa.ArrowException) as error:
                if read_about(folder).parts != about.parts:  # another process merged them
                    continue
                line = (str(error).splitlines() or [type(error).__name__])[0]
                raise InputError(
                    f"{folder}: corrupt: {line}; delete this folder, and create the index again"
                ) from error
        items, rejects, vectors = [ITEMS.empty_table()], [ITEMS.empty_table()], list[np.ndarray]()
        for table in parts:
            rejected = pc.is_valid(table["reason"])
            rows = table.filter(pc.invert(rejected))
            vectors += [
                chunk.flatten().to_numpy().reshape(len(chunk), -1) for chunk in rows["embedding"].chunks if chunk
            ]
            items.append(rows.drop_columns("embedding"))
            rejects.append(table.filter(rejected).drop_columns("embedding"))
        embeddings = np.concatenate(vectors) if vectors else np.empty((0, 1), np.float32)
        return cls(folder, about, pa.concat_tables(items), embeddings, pa.concat_tables(rejects))

    def __len__(self) -> int:
        return len(self.embeddings)

    def item(self, number: int) -> Item:
        return self.items.slice(number, 1).to_pylist()[0]

    def number(self, id: str) -> int | None:
        """The number of the first clip with an id."""
        row = pc.index(self.items["id"], id).as_py()
        return int(row) if row >= 0 else None

    def model_folder(self, name: str | Path = "", workspace: Path = Path("workspace")) -> Path:
        """The folder of the model of this index: where it was, or that of `name` if it has moved.

        Raises InputError if it is missing, or if it is another model.
        """
        if not name and not Path(self.about.model).is_dir():
            raise InputError(f"{self.folder}: its model {self.about.model} is gone; name a copy of it with --model")
        folder = find_model(name or self.about.model, workspace)
        check_digest(self.folder, self.about, folder, model_digest(folder))
        return folder

    def load_model(self, name: str | Path = "", workspace: Path = Path("workspace"), **options: Any) -> Model:
        """The model of this index, see `model_folder`; options as of `Model.load`."""
        return Model.from_pretrained(self.model_folder(name, workspace), **options)

    def named(self, names: Sequence[str]) -> Iterator[tuple[str, Item]]:
        """The items and rejects that a name stands for, each after the name: an id, a file, or a folder."""
        wanted = {place: name for name in names for place in (name, str(absolute(name)))}
        for table in (self.items, self.rejects):
            for item in rows_of(table):
                places = (item["id"], item["path"], *map(str, PurePath(item["path"]).parents))
                if name := next((wanted[place] for place in places if place in wanted), None):
                    yield name, item

    def write_vectors(self, file: Path) -> None:
        """Writes a Parquet file with a row for each clip: CLIP and its embedding, E numbers of float32 with length 1;
        the model and its digest are in the schema's metadata. Raises InputError if the file cannot be written."""
        vectors = pa.FixedSizeListArray.from_arrays(pa.array(self.embeddings.ravel()), self.embeddings.shape[1])
        table = self.items.select(CLIP).append_column("embedding", vectors)
        about = {key: str(getattr(self.about, key)) for key in ("model", "digest")}
        try:
            with atomic_write(file) as temporary:
                pq.write_table(table.replace_schema_metadata(about), temporary, row_group_size=PART_CLIPS)
        except OSError as error:
            raise InputError(f"--out {file}: {error.strerror or error}") from error


def read_about(folder: Path) -> About:
    """The index.json of an index. Raises InputError."""
    file = folder / "index.json"
    if not file.is_file():
        raise InputError(f"{folder}: no index.json; `alpro index add {folder} VIDEOS --model MODEL` creates an index")
    try:
        return About.model_validate_json(file.read_text())
    except (OSError, ValidationError) as error:
        line = str(error).splitlines()[0]
        raise InputError(f"{file}: cannot be read: {line}; delete {folder}, and create the index again") from error


def read_part(file: Path) -> pa.Table:
    """The rows of a part."""
    return pq.ParquetFile(file).read().cast(PART)  # as a data set, folders named NAME=VALUE would be columns


def source_of(item: Item) -> Row | Sample:
    """What decodes an item."""
    location = located(item["path"])
    if item["frame_offsets"] is not None:
        return sample_from_row(item, location)
    return Row(id=item["id"], path=location, kind=item["kind"], start=item["start"], end=item["end"])


def key_of(item: Item) -> str:
    """What an item is: a file, a window of it, or a sample of a shard, whatever the file contains now."""
    window = item["id"] if item["frame_offsets"] is not None else f"{item['start']}-{item['end']}"
    return f"{item['path']}\n{window}"


def rows_of(table: pa.Table) -> Iterator[Item]:
    """The rows of a table, a few of which are objects at a time: they take ten times the memory of the columns."""
    for batch in table.to_batches(PART_CLIPS):
        yield from batch.to_pylist()


def check_digest(index: Path, about: About, model: Path | str, digest: str) -> None:
    """Raises InputError if a model is not that of an index: their embeddings cannot be compared."""
    if about.digest != digest:
        raise InputError(
            f"{index}: this index is of another model, {about.model} ({about.digest[:8]}), not of {model} "
            f"({digest[:8]}); choose another folder for the index"
        )


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Raises InputError if another process changes the index, or if the folder cannot be written."""
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise InputError(f"{folder}: another process is changing this index") from None
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror or error}") from error
    try:
        yield
    finally:
        lock.release()


class IndexWriter:
    """Changes an index, within `changing`. The paths of all items are in memory (0.2 GB for a million), and all of the
    index while parts are merged."""

    def __init__(self, folder: Path, about: About):
        self.folder, self.about = folder, about
        write_json(folder / "index.json", about.model_dump())  # first: it marks the folder as an index
        self._delete_others()
        index = Index.open(folder)
        self.rows = 0  # in all parts
        self.known: dict[str, str | None] = {}  # identity by key; None: to be tried again
        for row in (row for table in (index.items, index.rejects) for row in rows_of(table)):
            self.rows += 1
            self.known[key_of(row)] = None if row["reason"] in TRANSIENT_REASONS else row["identity"]
        self.items, self.embeddings = list[Item](), list[np.ndarray | None]()  # of the next part
        self.bad_rows = list[Reject]()  # of the manifest of this run
        self.last = time.monotonic()

    def state(self, item: Item) -> str:
        """Whether an item is new, changed, or known."""
        identity = self.known.get(key_of(item))
        return "new" if identity is None else "known" if identity == item["identity"] else "changed"

    def add(self, item: Item, embedding: np.ndarray | None) -> None:
        """Adds an item; one without an embedding has a reason."""
        self.items.append(item)
        self.embeddings.append(embedding)
        self.known[key_of(item)] = item["identity"]
        if len(self.items) >= PART_CLIPS or time.monotonic() - self.last > PART_SECONDS:
            self.commit()

    def reject(self, item: Item, reason: Reason, detail: str) -> None:
        rejected = Reject(id=item["id"], path=item["path"], reason=reason, detail=detail)
        self.add(item | {"reason": reason, "detail": rejected.detail}, None)

    def commit(self) -> None:
        """Writes the items since the last commit as a part, and adds it to the index."""
        if self.items:
            vectors = pa.array(self.embeddings, PART.field("embedding").type)
            self._add_part(pa.Table.from_pylist(self.items, ITEMS).append_column("embedding", vectors))
            self.rows += len(self.items)
        self.items, self.embeddings, self.last = [], [], time.monotonic()

    def finish(self, gone: Collection[str] = ()) -> None:
        """Adds the last part; merges the parts if there are many, or if items were replaced or are `gone` (the keys of
        those to remove); writes rejects.parquet for people."""
        self.commit()
        if gone or self.rows > len(self.known) or len(self.about.parts) > MAX_PARTS:
            self._merge(gone)
        rejects = Index.open(self.folder).rejects.select(REJECTS.names)
        bad = pa.Table.from_pylist([vars(row) for row in self.bad_rows], REJECTS)
        with atomic_write(self.folder / "rejects.parquet") as temporary:
            pq.write_table(pa.concat_tables([rejects, bad]), temporary)

    def _merge(self, gone: Collection[str]) -> None:
        """Replaces the parts by one with the last row of each item that is not gone, in the order of the rows."""
        tables = [read_part(self.folder / f"{name}.parquet") for name in self.about.parts]
        whole = pa.concat_tables([PART.empty_table(), *tables])
        last = {key_of(row): number for number, row in enumerate(rows_of(whole.drop_columns("embedding")))}
        rows = sorted(number for key, number in last.items() if key not in gone)
        self.about = self.about.model_copy(update={"parts": ()})
        self._add_part(whole.take(pa.array(rows, pa.int64())))
        self._delete_others()

    def _add_part(self, table: pa.Table) -> None:
        name = uuid4().hex[:12]
        with atomic_write(self.folder / f"{name}.parquet") as temporary:
            pq.write_table(table, temporary, row_group_size=PART_CLIPS)
        self.about = self.about.model_copy(update={"parts": (*self.about.parts, name)})
        write_json(self.folder / "index.json", self.about.model_dump())

    def _delete_others(self) -> None:
        """Deletes the files of interrupted runs: what they removed is not to stay on the disk."""
        for file in self.folder.iterdir():
            if file.suffix == ".part" or (file.suffix == ".parquet" and file.stem not in self.about.parts):
                file.unlink()
