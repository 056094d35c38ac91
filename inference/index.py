"""An index of embedded videos: a folder that `alpro index` fills and `alpro search` reads.

index.json names the model and the parts. A part is a matrix of embeddings (.npy), its items (an Arrow file: row i
describes embedding i) and its rejects (Parquet). A part is added when index.json is replaced, so an interrupted run
keeps every finished part, and a search can run at the same time. All files are mapped to memory, not read.
"""

import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict, ValidationError

from alpro.errors import InputError
from alpro.files import atomic_write, sync, write_json
from alpro.inference.find import find_model, model_digest
from alpro.inference.model import Model
from alpro.log import log
from alpro.shards.reader import Sample, sample_from_row
from alpro.shards.schema import REJECTS, TRANSIENT_REASONS, Reason, Reject, Row
from alpro.shards.storage import absolute, located

PART_CLIPS = 1024  # clips after which a part is added
PART_SECONDS = 60.0  # or the time since the last one
GROUP_CLIPS = 8192  # rows of a group of a Parquet file of vectors
MAX_PARTS = 32  # more are merged at the end of a run

ITEMS = pa.schema(
    [
        ("id", pa.string()),
        ("path", pa.string()),  # of the file, or of the shard
        ("kind", pa.string()),
        ("start", pa.float64()),  # seconds; null: the whole file
        ("end", pa.float64()),
        ("identity", pa.string()),  # size and time of the file, or its ETag: a change embeds it again
        ("frame_offsets", pa.list_(pa.int64())),  # of a sample in a shard
        ("frame_sizes", pa.list_(pa.int64())),
        ("columns", pa.map_(pa.string(), pa.string())),  # of the manifest, those that the index keeps
    ]
)
CLIP = ("id", "path", "kind", "start", "end", "columns")  # what says to people which clip an item is
REJECTED = pa.schema([*ITEMS, *(REJECTS.field(name) for name in ("reason", "detail"))])
Item = dict[str, Any]  # a row of ITEMS


class IndexPart(BaseModel):
    """The files of a part are <name>.npy, <name>.arrow and <name>.rejects.parquet."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    clips: int
    rejects: int


class About(BaseModel):
    """index.json: the model (its folder, its digest, the length of its embeddings), the parts, the windows that videos
    are cut into, if they are: their length, and the time from one to the next, in seconds; and the columns of the
    manifest that are kept for filters."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[1] = 1
    model: str
    digest: str
    embed_dim: int
    window: float | None = None
    stride: float | None = None
    columns: tuple[str, ...] = ()
    parts: tuple[IndexPart, ...] = ()


@dataclass(frozen=True)
class Index:
    """An index on disk. Embeddings of part p are in `embeddings[p]` (N, E), mapped to memory; items in `items[p]`."""

    folder: Path
    about: About
    embeddings: list[np.ndarray] = field(default_factory=list)
    items: list[pa.Table] = field(default_factory=list)

    @classmethod
    def open(cls, folder: Path) -> "Index":
        """Maps an index to memory. Raises InputError if there is none, or if it is corrupt."""
        about = read_about(folder)
        try:
            parts = [read_part(folder, part, about.embed_dim) for part in about.parts if part.clips]
        except UNREADABLE as error:
            line = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(f"{folder}: {line}; `alpro index add` with the same videos repairs this index") from error
        return cls(folder, about, [matrix for matrix, _ in parts], [table for _, table in parts])

    def model_folder(self, name: str | Path = "", workspace: Path = Path("workspace")) -> Path:
        """The folder of the model of this index: where it was, or that of `name` if it has moved.

        Raises InputError if it is gone, or if it is another model.
        """
        if not name and not Path(self.about.model).is_dir():
            raise InputError(f"{self.folder}: its model {self.about.model} is gone; name a copy of it with --model")
        folder = find_model(name or self.about.model, workspace)
        check_digest(self.folder, self.about, folder, model_digest(folder))
        return folder

    def load_model(self, name: str = "", workspace: Path = Path("workspace"), **options: Any) -> Model:
        """The model of this index, see `model_folder`; options as of `Model.load`."""
        return Model.from_pretrained(self.model_folder(name, workspace), **options)

    def __len__(self) -> int:
        return sum(part.clips for part in self.about.parts)

    def rejects(self) -> pa.Table:
        """The rows of REJECTED of all parts."""
        return pa.concat_tables([REJECTED.empty_table(), *(read_rejects(self.folder, p) for p in self.about.parts)])

    def item(self, number: int) -> Item:
        for table in self.items:
            if number < table.num_rows:
                return table.slice(number, 1).to_pylist()[0]
            number -= table.num_rows
        raise IndexError(number)

    def write_vectors(self, file: Path) -> None:
        """Writes a Parquet file with a row for each clip: CLIP (start and end in seconds; null: the whole file) and its
        embedding, E numbers of float32 with length 1; the model and its digest are in the schema's metadata. A row
        group at a time is in memory. Raises InputError if the file cannot be written."""
        vectors = pa.list_(pa.float32(), self.about.embed_dim)
        about = {key: str(getattr(self.about, key)) for key in ("model", "digest")}
        schema = pa.schema([*map(ITEMS.field, CLIP), ("embedding", vectors)], about)
        try:
            with (
                atomic_write(file) as temporary,
                pq.ParquetWriter(temporary, schema, use_dictionary=[*CLIP]) as writer,
            ):
                for matrix, items in zip(self.embeddings, self.items, strict=True):
                    for start in range(0, len(matrix), GROUP_CLIPS):
                        rows, clips = matrix[start : start + GROUP_CLIPS], items.slice(start, GROUP_CLIPS).select(CLIP)
                        embedding = pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), type=vectors)
                        writer.write_table(clips.append_column("embedding", embedding).cast(schema))
        except OSError as error:
            raise InputError(f"--out {file}: {error.strerror or error}") from error

    def embedding(self, number: int) -> np.ndarray:
        """The embedding (E,) of a clip."""
        for matrix in self.embeddings:
            if number < len(matrix):
                return np.array(matrix[number])
            number -= len(matrix)
        raise IndexError(number)

    def number(self, id: str) -> int | None:
        """The number of the first clip with an id."""
        first = 0
        for table in self.items:
            if (row := pc.index(table["id"], id).as_py()) >= 0:
                return first + int(row)
            first += table.num_rows
        return None


UNREADABLE = (OSError, ValueError, EOFError, pa.ArrowException)


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


def read_part(folder: Path, part: IndexPart, embed_dim: int) -> tuple[np.ndarray, pa.Table]:
    """The embeddings (N, E) and the items of a part, mapped to memory. Raises one of UNREADABLE."""
    matrix = np.load(folder / f"{part.name}.npy", mmap_mode="r")
    table = completed(pa.ipc.open_file(pa.memory_map(str(folder / f"{part.name}.arrow"))).read_all(), ITEMS)
    if matrix.shape != (part.clips, embed_dim) or table.num_rows != part.clips:
        raise ValueError(f"{part.name} has {matrix.shape} embeddings of {table.num_rows} items, not {part.clips}")
    return matrix, table


def completed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """A table of an index that has no `columns`, with them."""
    return pa.concat_tables([schema.empty_table(), table], promote_options="default")


def repair(folder: Path) -> About:
    """Removes the parts that cannot be read from an index, so that their videos are embedded again."""
    about, readable = read_about(folder), []
    for part in about.parts:
        try:
            if part.clips:
                read_part(folder, part, about.embed_dim)
            read_rejects(folder, part)
            readable.append(part)
        except UNREADABLE:
            log.warning(f"{folder}: part {part.name} cannot be read; its {part.clips} clips are embedded again")
    if len(readable) < len(about.parts):
        about = about.model_copy(update={"parts": tuple(readable)})
        write_json(folder / "index.json", about.model_dump())
    return about


def source_of(item: Item) -> Row | Sample:
    location = located(item["path"])
    if item["frame_offsets"] is not None:
        return sample_from_row(item, location)
    return Row(id=item["id"], path=location, kind=item["kind"], start=item["start"], end=item["end"])


def key_of(item: Item) -> str:
    """What an item is: a file, a window of it, or a sample of a shard, whatever the file contains now."""
    window = item["id"] if item["frame_offsets"] is not None else f"{item['start']}-{item['end']}"
    return f"{item['path']}\n{window}"


def items_named(index: Index, names: Sequence[str]) -> Iterator[tuple[str, Item]]:
    """The items and rejects of an index that a name stands for, each after the name: an id, a file, or a folder."""
    wanted = {place: name for name in names for place in (name, str(absolute(name)))}
    for table in [*index.items, index.rejects()]:
        for item in rows_of(table):
            places = (item["id"], item["path"], *map(str, PurePath(item["path"]).parents))
            if name := next((wanted[place] for place in places if place in wanted), None):
                yield name, item


def rows_of(table: pa.Table) -> Iterator[Item]:
    """The rows of a table, a few of which are objects at a time: they take ten times the memory of the columns."""
    for batch in table.to_batches(PART_CLIPS):
        yield from batch.to_pylist()


class IndexWriter:
    """Adds items to an index, part by part. The paths of all items are in memory: 0.2 GB for a million,
    and twice that while parts are merged."""

    def __init__(self, folder: Path, about: About):
        self.folder, self.about = folder, about
        self.known: dict[str, str] = {}  # identity by key
        if not (folder / "index.json").is_file():  # first: it marks the folder as an index
            write_json(folder / "index.json", about.model_dump())
        index = Index.open(folder)
        for table in [*index.items, index.rejects()]:
            self._remember(table)
        self.embeddings, self.items, self.rejects = list[np.ndarray](), list[Item](), list[Item]()
        self.bad_rows = list[Reject]()  # of the manifest of this run
        self.last = time.monotonic()

    def _remember(self, table: pa.Table) -> None:
        for row in rows_of(table):
            if row.get("reason") not in TRANSIENT_REASONS:
                self.known[key_of(row)] = row["identity"]

    def state(self, item: Item) -> str:
        """Whether an item is new, changed, or known."""
        identity = self.known.get(key_of(item))
        return "new" if identity is None else "known" if identity == item["identity"] else "changed"

    def add(self, item: Item, embedding: np.ndarray) -> None:
        self.items.append(item)
        self.embeddings.append(embedding)
        self._after(item)

    def reject(self, item: Item, reason: Reason, detail: str) -> None:
        rejected = Reject(id=item["id"], path=item["path"], reason=reason, detail=detail)
        self.rejects.append(item | {"reason": reason, "detail": rejected.detail})
        self._after(item)

    def _after(self, item: Item) -> None:
        self.known[key_of(item)] = item["identity"]
        if len(self.items) + len(self.rejects) >= PART_CLIPS or time.monotonic() - self.last > PART_SECONDS:
            self.commit()

    def commit(self) -> None:
        """Writes a part, and adds it to the index."""
        part = IndexPart(name=uuid4().hex[:12], clips=len(self.items), rejects=len(self.rejects))
        if self.items:
            np.save(matrix := self.folder / f"{part.name}.npy", np.stack(self.embeddings).astype(np.float32))
            sync(matrix)
            write_items(self.folder / f"{part.name}.arrow", [pa.Table.from_pylist(self.items, ITEMS)])
        if self.rejects:
            write_rejects(self.folder, part, pa.Table.from_pylist(self.rejects, REJECTED))
        if self.items or self.rejects:
            self.about = self.about.model_copy(update={"parts": (*self.about.parts, part)})
        write_json(self.folder / "index.json", self.about.model_dump())
        self.embeddings, self.items, self.rejects = [], [], []
        self.last = time.monotonic()

    def finish(self, replaced: bool, gone: Collection[str] = ()) -> None:
        """Adds the last part, merges the parts if there are many or if some items are replaced or `gone` (the keys of
        those to remove), writes rejects.parquet for people, and deletes files of interrupted runs."""
        self.commit()
        if replaced or gone or len(self.about.parts) > MAX_PARTS:
            self.about = self.about.model_copy(update={"parts": (merge(Index.open(self.folder), gone),)})
            write_json(self.folder / "index.json", self.about.model_dump())
        rejects = [*Index.open(self.folder).rejects().select(REJECTS.names).to_pylist(), *map(dict, self.bad_rows)]
        with atomic_write(self.folder / "rejects.parquet") as temporary:
            pq.write_table(pa.Table.from_pylist(rejects, REJECTS), temporary)
        names = {"rejects", *(part.name for part in self.about.parts)}
        for file in self.folder.iterdir():
            if file.suffix in (".npy", ".arrow", ".parquet") and file.name.partition(".")[0] not in names:
                file.unlink()


def merge(index: Index, gone: Collection[str] = ()) -> IndexPart:
    """Writes one part with the last row of each item whose key is not in `gone`, in order. Memory grows with the
    items, not the embeddings."""
    kept = [part for part in index.about.parts if part.clips]
    tables = {(part.name, "items"): table for part, table in zip(kept, index.items, strict=True)}
    tables |= {(part.name, "rejects"): read_rejects(index.folder, part) for part in index.about.parts}
    last: dict[str, tuple[str, str]] = {}  # the newest table that has an item
    for part in index.about.parts:
        for place in ((part.name, "items"), (part.name, "rejects")):
            last |= dict.fromkeys(map(key_of, rows_of(tables[place])), place) if place in tables else {}
    for key in gone:
        last.pop(key, None)
    rows = {
        place: pa.array([i for i, row in enumerate(rows_of(table)) if last.get(key_of(row)) == place], pa.int64())
        for place, table in tables.items()
    }
    chosen = {place: table.take(rows[place]) for place, table in tables.items()}
    items = [chosen[part.name, "items"] for part in kept]
    rejects = pa.concat_tables([chosen[part.name, "rejects"] for part in index.about.parts])
    merged = IndexPart(name=uuid4().hex[:12], clips=sum(table.num_rows for table in items), rejects=rejects.num_rows)
    if merged.clips:
        shape = merged.clips, index.about.embed_dim
        out, at = np.lib.format.open_memmap(index.folder / f"{merged.name}.npy", "w+", np.float32, shape), 0
        for part, matrix in zip(kept, index.embeddings, strict=True):
            numbers = rows[part.name, "items"].to_numpy()
            out[at : at + len(numbers)] = matrix[numbers]
            at += len(numbers)
        out.flush()
        sync(index.folder / f"{merged.name}.npy")
        write_items(index.folder / f"{merged.name}.arrow", items)
    write_rejects(index.folder, merged, rejects)
    return merged


def write_rejects(folder: Path, part: IndexPart, rejects: pa.Table) -> None:
    pq.write_table(rejects, file := folder / f"{part.name}.rejects.parquet")
    sync(file)


def read_rejects(folder: Path, part: IndexPart) -> pa.Table:
    table = pq.read_table(folder / f"{part.name}.rejects.parquet") if part.rejects else REJECTED.empty_table()
    return completed(table, REJECTED)


def write_items(file: Path, tables: list[pa.Table]) -> None:
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_file(sink, ITEMS) as writer:
        for table in tables:
            writer.write_table(table)
    sync(file)


def check_digest(index: Path, about: About, model: Path | str, digest: str) -> None:
    """Raises InputError if a model is not that of an index: their embeddings cannot be compared."""
    if about.digest != digest:
        raise InputError(
            f"{index}: this index is of another model, {about.model} ({about.digest[:8]}), not of {model} "
            f"({digest[:8]}); choose another folder for the index"
        )
