"""An index of embedded videos: a folder that `alpro index` fills and `alpro search` reads.

index.json names the model and the parts. A part is a Parquet file with a row for each clip and its
embedding. It counts once index.json names it, so an interrupted run keeps every finished part, and
a search can run at the same time. What index.json does not name is deleted before any other change.
rejects.parquet has the files that could not be decoded.
"""

import hashlib
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, Literal
from uuid import uuid4

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock
from pydantic import BaseModel, ConfigDict, Field

from alpro.artifact import read_record
from alpro.errors import InputError, one_line
from alpro.files import atomic_write, make_folder, write_json
from alpro.inference.clips import is_file
from alpro.inference.find import FoundModel, verified_model
from alpro.inference.model import Model
from alpro.locks import acquire
from alpro.shards.clip import Reason
from alpro.shards.reader import Sample, sample_from_row
from alpro.shards.schema import REJECTS, TRANSIENT_REASONS, Reject, Row
from alpro.shards.sources.folders import spelled
from alpro.shards.storage import absolute, located

if TYPE_CHECKING:
    from alpro.inference.search import SearchResult

REJECTS_FILE = "rejects.parquet"
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
        ("duration", pa.float64()),  # seconds of the clip; null: an image, or unknown
        ("caption", pa.string()),  # the first one, if there is any
        ("columns", pa.map_(pa.string(), pa.string())),  # of the manifest, those that are kept
        # Size and time of the file, or its ETag: a change embeds it again.
        ("identity", pa.string()),
        ("frame_offsets", pa.list_(pa.int64())),  # of a sample in a shard
        ("frame_sizes", pa.list_(pa.int64())),
    ]
)
PART = pa.schema([*ITEMS, ("embedding", pa.list_(pa.float32()))])
FURTHER_FIELDS = [field for field in ITEMS if field.name not in REJECTS.names]
REJECTED = pa.schema([*REJECTS, *FURTHER_FIELDS])
LATER_COLUMNS = ("duration",)  # which an index of an earlier version lacks
Item = dict[str, Any]  # a row of ITEMS
Signature = tuple[str, str, str]  # see `signature_of`
REPAIR_HINT = "delete this folder, and create the index again"


class About(BaseModel):
    """index.json: the model (its folder, its digest), the names of the parts, the windows that
    videos are cut into, if they are (their length, and the time from one to the next, in seconds),
    and the kept columns of the manifest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: Literal[3] = 3
    model: str
    digest: str
    window: float | None = None
    stride: float | None = None
    columns: tuple[str, ...] = ()
    parts: tuple[Annotated[str, Field(pattern=r"^\w+$")], ...] = ()  # no path: files of the folder


@dataclass(frozen=True, repr=False)
class Index:
    """An index in memory: `items` has a row for each clip, and `embeddings` (N, E) its vector;
    `rejects` has the files that could not be decoded, with the reason."""

    folder: Path
    about: About
    items: pa.Table
    embeddings: np.ndarray
    rejects: pa.Table

    @classmethod
    def open(cls, folder: str | Path) -> "Index":
        """Reads an index. Raises InputError if it is missing or corrupt."""
        folder = Path(folder)
        # A merge deletes the parts that the index.json named a moment ago: then it is read again.
        while True:
            about = read_about(folder)
            try:
                parts = [read_part(folder / f"{name}.parquet", PART) for name in about.parts]
                rejects = REJECTED.empty_table()
                if (folder / REJECTS_FILE).exists():
                    rejects = read_part(folder / REJECTS_FILE, REJECTED)
                # pyarrow concatenates no empty list, which a new index has.
                rows = pa.concat_tables([PART.empty_table(), *parts])
                embeddings = embeddings_of(rows)
                break
            except (OSError, ValueError, pa.ArrowException) as error:
                if read_about(folder).parts != about.parts:  # another process merged them
                    continue
                raise InputError(f"{folder}: corrupt: {one_line(error)}; {REPAIR_HINT}") from error
        return cls(
            folder=folder,
            about=about,
            items=rows.drop_columns("embedding"),
            embeddings=embeddings,
            rejects=rejects,
        )

    def __repr__(self) -> str:
        return f"<Index {self.folder}: {len(self):,} clips of {self.about.model}>"

    def __len__(self) -> int:
        return len(self.embeddings)

    def item(self, row: int) -> Item:
        """The item of a row."""
        return self.items.slice(row, 1).to_pylist()[0]

    @cached_property
    def model(self) -> Model:
        """The model of this index, which is loaded once. Raises InputError if it is gone."""
        return self.load_model()

    def search(self, query: Any, k: int = 10, **options: Any) -> "SearchResult":
        """The `k` clips that fit best: a text (str), or those similar to a file (`Path`, or a str
        as of `Model.encode`) or to an embedding (E,).

        options: as of `search.search` for a text (filters, rerank, nothing_below, offset), and as
        of `search.similar` otherwise (filters, offset). Raises InputError for an invalid filter,
        and DecodeError if the file cannot be decoded.
        """
        from alpro.inference import search  # which imports this module

        if isinstance(query, str) and not is_file(query):
            # pyright takes this file and alpro/inference/index.py, its link, for two modules.
            return search.search(self, self.model, query, k, **options)  # pyright: ignore[reportArgumentType]

        if isinstance(query, str | Path):
            (embedded,) = self.model.stream([query])
            if embedded.error:
                raise embedded.error
            query = embedded.embedding

        vector = np.asarray(query, np.float32)
        # As above: one module for Python, two for pyright.
        return search.similar(self, vector, k, **options)  # pyright: ignore[reportArgumentType]

    def find_model(
        self,
        name: str | Path | FoundModel = "",
        workspace: Path = Path("workspace"),
    ) -> FoundModel:
        """The model of this index: where it was, or that of `name` if it has moved.

        Raises InputError if it is missing, or if it is another model.
        """
        if not name and not Path(self.about.model).is_dir():
            raise InputError(
                f"{self.folder}: its model {self.about.model} is gone; name a copy of it with "
                f"--model"
            )

        found = verified_model(name or self.about.model, workspace)
        repair_hint = "leave out --model" if name else "create the index again"
        check_digest(self.folder, self.about, found.path, found.digest, repair_hint)
        return found

    def load_model(
        self,
        name: str | Path | FoundModel = "",
        workspace: Path = Path("workspace"),
        **options: Any,
    ) -> Model:
        """The model of this index, see `find_model`. options: as of `Model.load`."""
        return Model.load(self.find_model(name, workspace), **options)

    def named(self, names: Sequence[str]) -> Iterator[tuple[str, Item]]:
        """The items and rejects that names stand for, each after the name: an id, a file, or a
        folder. An item that several names stand for comes after each of them."""
        names_of: defaultdict[str, set[str]] = defaultdict(set)
        for name in names:
            # An id is compared as it is, a file by its absolute path, which the rows have.
            names_of[spelled(name)].add(name)
            names_of[spelled(str(absolute(name)))].add(name)

        for table in (self.items, self.rejects):
            for item in rows_of(table):
                folders = map(str, PurePath(item["path"]).parents)
                given: set[str] = set()
                for text in (item["id"], item["path"], *folders):
                    given |= names_of.get(spelled(text), set())
                for name in sorted(given):
                    yield name, item


def read_about(folder: Path) -> About:
    """The index.json of an index. Raises InputError."""
    file = folder / "index.json"
    if not file.is_file():
        raise InputError(
            f"{folder}: no index.json; `alpro index add {folder} VIDEOS --model MODEL` creates an "
            "index"
        )

    try:
        return About.model_validate_json(file.read_text())
    except OSError as error:  # the index may be whole: it must not be deleted
        raise InputError(f"{file}: {error.strerror}; make it readable for this user") from error
    except ValueError as error:  # pydantic's, or not UTF-8
        raise InputError(f"{file}: cannot be read: {one_line(error)}; {REPAIR_HINT}") from error


def indexed_fingerprints(folders: Iterable[Path]) -> set[str]:
    """The fingerprints of the artifacts whose models embedded the videos of indexes. A folder that
    is no index has none."""
    fingerprints = set()
    for folder in folders:
        try:
            model = Path(read_about(folder).model)
        except InputError:
            continue

        artifact = model.parent if model.name == "model" else model
        record = read_record(artifact)
        if record:
            fingerprints.add(record.fingerprint)
    return fingerprints


def read_part(file: Path, schema: pa.Schema) -> pa.Table:
    """The rows of a part, or the rejects. Raises ValueError or OSError if the file is corrupt."""
    # As a data set, folders named NAME=VALUE would be columns.
    table = pq.ParquetFile(file).read()
    for name in LATER_COLUMNS:
        if name not in table.column_names:
            empty = pa.nulls(len(table), schema.field(name).type)
            table = table.append_column(name, empty)

    missing = set(schema.names) - set(table.column_names)
    if missing:
        raise ValueError(f"{file.name}: no column {', '.join(sorted(missing))}")

    table = table.select(schema.names).cast(schema)
    for name in ("id", "path"):
        if table[name].null_count:  # the server and the filters need them
            raise ValueError(f"{file.name}: a row without {name}")
    return table


def embeddings_of(rows: pa.Table) -> np.ndarray:
    """The embeddings (N, E) of the rows of parts. Raises ValueError if their lengths differ."""
    vectors = []
    for chunk in rows["embedding"].chunks:
        if not len(chunk):
            continue
        lengths = np.unique(chunk.value_lengths().to_numpy(zero_copy_only=False))
        values = chunk.flatten()
        # The length of a null is NaN, which is not above 0.
        has_one_length = len(lengths) == 1 and lengths[0] > 0
        if not has_one_length or values.null_count:
            raise ValueError("embeddings of different lengths, or without one")
        vectors.append(values.to_numpy().reshape(len(chunk), -1))

    if not vectors:
        return np.empty((0, 1), np.float32)
    return np.concatenate(vectors)


def source_of(item: Item) -> Row | Sample:
    """What decodes an item."""
    location = located(item["path"])
    if item["frame_offsets"] is not None:
        return sample_from_row(item, location)
    return Row(
        id=item["id"],
        path=location,
        kind=item["kind"],
        start=item["start"],
        end=item["end"],
    )


def key_of(item: Item) -> str:
    """What an item is: a file, a window of it, or a sample of a shard, whatever the file contains
    now."""
    return f"{item['path']}\n{window_of(item)}"


def window_of(item: Item) -> str:
    """What an item is in its file: a sample of a shard, or a window."""
    if item["frame_offsets"] is not None:
        return item["id"]
    return f"{item['start']}-{item['end']}"


def signature_of(item: Item) -> Signature:
    """What stays the same of an item if the folder of its file moves: size and time of the file,
    its name, and the window, or the sample in a shard."""
    return item["identity"], PurePath(item["path"]).name, window_of(item)


def clip_key(item: Item) -> str:
    """A short name of what an item is, by which a page notices that a row has become another."""
    key = key_of(item).encode(errors="surrogatepass")
    return hashlib.sha256(key).hexdigest()[:12]


def rows_of(table: pa.Table) -> Iterator[Item]:
    """The rows of a table, a few of which are objects at a time: they take ten times the memory of
    the columns."""
    for batch in table.to_batches(PART_CLIPS):
        yield from batch.to_pylist()


def check_digest(
    index: Path,
    about: About,
    model: Path | str,
    digest: str,
    repair_hint: str = "choose another folder for the index",
) -> None:
    """Raises InputError if a model is not that of an index: their embeddings cannot be compared."""
    if about.digest != digest:
        raise InputError(
            f"{index}: this index is of another model, {about.model} ({about.digest[:8]}), not of "
            f"{model} ({digest[:8]}); {repair_hint}"
        )


@contextmanager
def changing(folder: Path) -> Iterator[None]:
    """Raises InputError if another process changes the index, or if the folder cannot be
    written."""
    lock = FileLock(folder / ".lock")
    try:
        make_folder(folder)
        free = acquire(lock, blocking=False)
    except OSError as error:
        raise InputError(f"{folder}: {error.strerror or error}") from error
    if not free:
        raise InputError(f"{folder}: another process is changing this index")

    try:
        yield
    finally:
        lock.release()


class IndexWriter:
    """Changes an index, within `changing`. The whole index is in memory, twice while parts are
    merged."""

    def __init__(self, folder: Path, about: About):
        self.folder = folder
        self.about = about
        # First: it marks the folder as an index.
        write_json(folder / "index.json", about.model_dump())
        self._delete_others()
        index = Index.open(folder)
        self.rows = len(index)  # in all parts

        # Clips whose files moved keep the embeddings of the index as it was.
        self.old = index
        self.moved: dict[str, str] = {}  # the keys that they had, by their new keys
        self.row_of_signature: dict[Signature, int] = {}
        self.known: dict[str, str] = {}  # identities of clips, by their keys
        for row, item in enumerate(rows_of(index.items)):
            self.row_of_signature[signature_of(item)] = row
            self.known[key_of(item)] = item["identity"]

        self.rejects: dict[str, Item] = {}  # by their keys
        for item in rows_of(index.rejects):
            if item["reason"] != "bad row":  # which the manifest of this run has again, or not
                self.rejects[key_of(item)] = item
        self.bad_rows = list[Reject]()  # of the manifest of this run

        self.items: list[Item] = []  # of the next part
        self.embeddings: list[np.ndarray] = []
        self.last = time.monotonic()

    def state(self, item: Item) -> str:
        """Whether an item is new, changed, or known. A file that could not be fetched is new."""
        key = key_of(item)
        reject = self.rejects.get(key)
        if reject and reject["reason"] not in TRANSIENT_REASONS:
            return "known" if reject["identity"] == item["identity"] else "changed"

        if key not in self.known:
            return "new"
        return "known" if self.known[key] == item["identity"] else "changed"

    def identities(self) -> Iterator[tuple[str, str]]:
        """What the index has: the key and the identity of each clip and reject."""
        yield from self.known.items()
        for key, reject in self.rejects.items():
            yield key, reject["identity"]

    def add(self, item: Item, embedding: np.ndarray) -> None:
        """Adds a clip."""
        self.items.append(item)
        self.embeddings.append(embedding)
        key = key_of(item)
        self.known[key] = item["identity"]
        self.rejects.pop(key, None)

        seconds = time.monotonic() - self.last
        if len(self.items) >= PART_CLIPS or seconds > PART_SECONDS:
            self.commit()

    def take_over(self, item: Item) -> bool:
        """Adds a new clip with the embedding that the index has of it under a path where it no
        longer is, if its folder moved. Returns whether it has."""
        row = self.row_of_signature.get(signature_of(item))
        if row is None or not item["identity"]:
            return False

        before = self.old.item(row)
        path = located(before["path"])
        if not isinstance(path, Path) or path.exists():  # a copy, whose original stays
            return False

        self.moved[key_of(item)] = key_of(before)
        # It is not decoded, which would tell its duration.
        self.add(item | {"duration": before["duration"]}, self.old.embeddings[row])
        return True

    def reject(self, item: Item, reason: Reason, detail: str) -> None:
        """Adds a file that could not be decoded. What the index had of it goes with `finish`."""
        reject = Reject(
            id=item["id"],
            path=item["path"],
            reason=reason,
            detail=detail,
        )
        self.rejects[key_of(item)] = item | vars(reject)

    def commit(self) -> None:
        """Writes the clips since the last commit as a part, and adds it to the index."""
        if self.items:
            items = pa.Table.from_pylist(self.items, ITEMS)
            vectors = pa.array(self.embeddings, PART.field("embedding").type)
            self._add_part(items.append_column("embedding", vectors))
            self.rows += len(self.items)

        self.items = []
        self.embeddings = []
        self.last = time.monotonic()

    def finish(self, gone: Collection[str] = ()) -> None:
        """Adds the last part and writes the rejects; merges the parts if there are many, or if
        clips were replaced, rejected or are `gone` (the keys of those to remove)."""
        self.commit()

        removed = {*gone, *self.moved.values()}
        rejects = [reject for key, reject in self.rejects.items() if key not in removed]
        rejects += [vars(reject) for reject in self.bad_rows]
        table = pa.Table.from_pylist(rejects, REJECTED)
        with atomic_write(self.folder / REJECTS_FILE) as temporary:
            pq.write_table(table, temporary)

        removed |= self.rejects.keys()
        # A replaced clip has a row of before and one of now, but one key.
        has_stale_rows = self.rows > len(self.known.keys() - removed)
        if has_stale_rows or len(self.about.parts) > MAX_PARTS:
            self._merge(removed)

    def _merge(self, gone: Collection[str]) -> None:
        """Replaces the parts by one with the last row of each clip that is not gone, in the order
        of the rows."""
        tables = [read_part(self.folder / f"{name}.parquet", PART) for name in self.about.parts]
        whole = pa.concat_tables([PART.empty_table(), *tables])

        last_row: dict[str, int] = {}  # by the key of a clip
        for row, item in enumerate(rows_of(whole.drop_columns("embedding"))):
            last_row[key_of(item)] = row
        rows = sorted(row for key, row in last_row.items() if key not in gone)

        # `index.json` names the old parts or the new one, whenever a power failure comes.
        self.about = self.about.model_copy(update={"parts": ()})
        self._add_part(whole.take(pa.array(rows, pa.int64())))
        self._delete_others()

    def _add_part(self, table: pa.Table) -> None:
        name = uuid4().hex[:12]
        # Complete before index.json names it: a search may open the index at any time.
        with atomic_write(self.folder / f"{name}.parquet") as temporary:
            pq.write_table(table, temporary, row_group_size=PART_CLIPS)

        self.about = self.about.model_copy(update={"parts": (*self.about.parts, name)})
        write_json(self.folder / "index.json", self.about.model_dump())

    def _delete_others(self) -> None:
        """Deletes the files of interrupted runs: what they removed is not to stay on the disk."""
        kept = {REJECTS_FILE, *(f"{name}.parquet" for name in self.about.parts)}
        for file in self.folder.iterdir():
            if file.suffix in (".part", ".parquet") and file.name not in kept:
                file.unlink()
