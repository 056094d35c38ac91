"""An index of embedded clips: a LanceDB table in a folder, or at an address such as
s3://bucket/index.

A row is a clip with its embedding, or a file that could not be decoded, with the reason. LanceDB
makes each change atomic: a search can run beside a writer, and a killed writer leaves whole rows.
Writers of a folder wait for each other, at a lock. A store has no locks: there, and in a search, a
call is repeated if the change of another process has overtaken it.
"""

import errno
import re
from collections.abc import Callable
from contextlib import nullcontext
from datetime import timedelta
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from unicodedata import normalize

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ValidationError

from alpro.artifact import read_record
from alpro.errors import MAX_MESSAGE, InputError, one_line
from alpro.files import os_errors, read_text
from alpro.inference.loading import Found
from alpro.locks import file_lock
from alpro.log import log
from alpro.shards.credentials import redact
from alpro.shards.schema import Member, Row, arrow_type
from alpro.shards.storage import Location, absolute, is_url, located

if TYPE_CHECKING:
    from lancedb.table import Table

EXACT_CLIPS = 1_000_000  # an index of more clips is searched approximately
PARTITIONS = 1024  # in the approximate index
PROBES = 384  # partitions that a query reads
DIGITS = 6  # decimals of a similarity; further ones may differ for equal vectors
# In a workspace: a model's fingerprint, a tab, and the folder or address of an index on each line.
INDEXES = "indexes.txt"
SETTINGS = "alpro"  # key of the settings in the metadata of the field `vector`
IS_CLIP = "reason IS NULL"
# Strings, quoted names and comments: their brackets do not group conditions.
QUOTED = re.compile(r"(?s)'[^']*'|\"[^\"]*\"|`[^`]*`|--[^\n]*|/\*.*?\*/")
ORDER = ("path", "start", "id")  # in which the index is listed
LOCK = "clips.lock"  # in the folder of an index
REPEATS = 4  # a call that was overtaken is made again
# What the engine says if the files of the state that it reads are gone, or if others changed it first.
OVERTAKEN = "Not found: |[Cc]ommit conflict|concurrent writers"

# A row is a clip, or a file without an embedding.
SCHEMA = pa.schema(
    {
        "key": pa.string(),  # digest of the path and of the part of the file
        "id": pa.string(),
        # Location of the file or tar, stored relative to the root of the index.
        "path": pa.string(),
        "kind": pa.string(),
        "start": pa.float64(),  # seconds; null: the whole file
        "end": pa.float64(),
        "duration": pa.float64(),  # seconds of the clip; null: an image, or unknown
        "caption": pa.string(),
        "words": pa.string(),  # caption, file name and id, case folded
        # Table, stored like `path`; empty: a folder.
        "listed_by": pa.string(),
        "listed_as": pa.string(),  # digest of what it says
        # Changes with the file; empty: a bad row of a manifest.
        "identity": pa.string(),
        "member": arrow_type(Member),  # place in a tar of downloads
        "reason": pa.string(),  # why there is no embedding
        "detail": pa.string(),
    }
)
COLUMNS = {*SCHEMA.names, "vector"}  # every index has them
COMPUTED = ["vector", "duration", "reason", "detail"]  # columns that an embedding fills
Item = dict[str, Any]  # a row of SCHEMA, with the values of a manifest as `columns`
EMPTY: Item = dict.fromkeys(SCHEMA.names) | {"columns": {}}

T = TypeVar("T")

ColumnTypes = dict[str, pa.DataType]  # types of columns of a manifest, by name
# Columns that a search shows, beside the manifest's columns.
SHOWN_COLUMNS = ("id", "path", "kind", "caption", "start", "end", "duration")


def engine_call(call: Callable[..., T]) -> Callable[..., T]:
    """Repeat a call of the engine that another process overtook: it sees the newest state.

    Args:
        call: Its first argument is an index or the address of one.

    Raises:
        InputError: If the engine raises an error that does not come from the disk.
        OSError: If others always were faster, or the disk has an error.
    """

    @wraps(call)
    def repeat(index: "Index | str", *args: Any, **kwargs: Any) -> T:
        place = index if isinstance(index, str) else index.place
        message = ""
        for _ in range(REPEATS):
            try:
                with os_errors(place):
                    return call(index, *args, **kwargs)
            except (ValueError, RuntimeError, pa.ArrowException) as error:
                # Leave out lines of the engine's source, and the query that it made of a condition.
                text = re.sub(
                    r"(?s),? ?/\S+\.rs:\d+:\d+|^.*sql parser error: ", "", str(error)
                ).replace(
                    "lance error:",
                    "lance error (if files are damaged, restore the index, or delete it and add its "
                    "videos again):",
                )
                # If a column is unknown, the engine's message lists all columns.
                message = redact(one_line(ValueError(text), MAX_MESSAGE))
                if not re.search(OVERTAKEN, message):
                    raise InputError(f"{place}: {message}") from error
        raise OSError(
            errno.ESTALE, f"another process changes the index: {message}", place
        )

    return repeat


class IndexSettings(BaseModel, frozen=True, extra="forbid"):
    """What all clips of an index have in common.

    Attributes:
        model: Folder of the model.
        digest: Digest of the model's files.
        root: Folder that paths are relative to, so that it can move; empty if there is none.
        window: Length of a window in seconds, if videos are split into windows.
        stride: Seconds from the start of one window to the next.
    """

    version: Literal[4] = 4
    model: str
    digest: str
    root: str = ""
    window: float | None = None
    stride: float | None = None


class Index:
    """An index on disk or in a store. Each call reads its newest state.

    Attributes:
        place: The folder or the address.
        table: The table of LanceDB.
        columns: Columns that the index has of its manifest, with their types.
    """

    def __init__(self, place: str, table: "Table"):
        self.place = place
        self.table = table
        self.columns: ColumnTypes = {
            field.name: field.type
            for field in table.schema
            if field.name not in COLUMNS
        }
        self._digest = ""  # the digest of its model
        self._shown = [*SCHEMA.names, *self.columns]
        self._lock = nullcontext() if is_url(place) else file_lock(Path(place, LOCK))

    @classmethod
    def open(cls, place: Location) -> "Index":
        """Open an existing index.

        Raises:
            InputError: If the index does not exist, cannot be read, or is of another version.
        """
        address = str(absolute(place))
        table = open_table(address)
        if table is None:
            raise InputError(
                f"{place}: no index; `alpro index add {place} VIDEOS --model MODEL` creates one"
            )
        if COLUMNS - {*table.schema.names}:
            raise other_table(address)
        index = cls(address, table)
        _ = index.settings  # an index of an earlier version has others
        return index

    @classmethod
    def create(
        cls,
        place: Location,
        settings: IndexSettings,
        size: int,
        columns: ColumnTypes,
    ) -> "Index":
        """Create an index, or open the one that another process created at the same time.

        Args:
            place: Folder or address.
            settings: Settings of a new index.
            size: Length of an embedding.
            columns: Further columns, from the manifest.
        """
        address = str(absolute(place))
        metadata = {SETTINGS: settings.model_dump_json()}
        vector = pa.field("vector", pa.list_(pa.float32(), size), metadata=metadata)
        schema = pa.schema([*SCHEMA, *columns.items(), vector])

        table = open_table(address, schema)
        assert table is not None
        return cls(address, table)

    def find_model(self, named: Found | None = None) -> Found:
        """Return the model that embedded the clips: where it was, or `named` if it has moved.

        Raises:
            InputError: If it is missing, or another model: their embeddings cannot be compared.
        """
        settings = self.settings
        # The digest says which model it is: no record and no name is needed.
        found = named or Found(Path(settings.model))
        if not found.model.is_dir():
            raise InputError(
                f"{self.place}: its model {found.model} is gone; name it, or a copy of it, with "
                "--model"
            )
        if found.digest != settings.digest:
            raise InputError(
                f"{self.place}: this index is of another model, {settings.model}, not of "
                f"{found.model}, or files of it have changed; name a copy of its model with "
                "--model, or make a new index"
            )
        return found

    def __len__(self) -> int:
        return self.count()

    @property
    @engine_call
    def settings(self) -> IndexSettings:
        """Settings that all clips of the index share. Raises OSError if the index is gone, or is of
        another model than when it was opened."""
        metadata = self.table.schema.field("vector").metadata or {}
        try:
            settings = IndexSettings.model_validate_json(metadata[SETTINGS.encode()])
        except (KeyError, ValidationError) as error:
            raise other_table(self.place) from error
        self._digest = self._digest or settings.digest
        if self._digest != settings.digest:
            raise OSError(errno.ESTALE, "the index is of another model now", self.place)
        return settings

    @engine_call
    def change_settings(self, **values: Any) -> None:
        """Change the model's folder or the root, for all rows at once."""
        changed = self.settings.model_copy(update=values).model_dump_json()
        with self._lock:
            self.table.update_field_metadata(
                {"path": "vector", "metadata": {SETTINGS: changed}}
            )

    @engine_call
    def count(self, sql: str = IS_CLIP) -> int:
        """Count rows.

        Raises:
            InputError: If the condition is invalid.
        """
        return self.table.count_rows(sql)

    @engine_call
    def rows(
        self, sql: str = IS_CLIP, k: int | None = None, offset: int = 0
    ) -> list[Item]:
        """List rows in the order of the index, without their embeddings.

        Raises:
            InputError: If the condition is invalid.
        """
        from lancedb.query import ColumnOrdering

        order = [ColumnOrdering(column_name=name) for name in ORDER]
        query = self.table.search().select(self._shown).where(sql).order_by(order)
        return self._items(query.limit(k).offset(offset).to_list())

    @engine_call
    def embedding(self, key: str) -> np.ndarray:
        """Return the embedding (E,) of a clip."""
        query = self.table.search().select(["vector"]).where(f"key = {quoted(key)}")
        return np.array(query.to_list()[0]["vector"], np.float32)

    @engine_call
    def nearest(
        self, vector: np.ndarray, k: int, sql: str = IS_CLIP, exact: bool = False
    ) -> list[Item]:
        """Find the clips that are most similar to an embedding.

        Args:
            vector: An embedding (E,).
            k: Number of clips.
            sql: Condition on the clips.
            exact: Compare all clips, also where there is an approximate index.

        Returns:
            Clips with their `similarity`, in descending order. Equal ones are in the order of the
            index.

        Raises:
            InputError: If the condition is invalid, or the embedding is of another model.
        """

        columns = [*self._shown, "_distance"]
        search: Any = self.table.search(vector, vector_column_name="vector")
        search = search.distance_type("dot").where(sql).nprobes(PROBES).select(columns)
        if exact:
            search = search.bypass_vector_index()
        rows = search.limit(k + 1).to_list()

        # If the last place is shared, all clips that share it are candidates.
        if len(rows) > k:
            last = rows[k]["_distance"]
            if last - rows[k - 1]["_distance"] < 10**-DIGITS:
                search = search.distance_range(upper_bound=last + 10**-DIGITS)
                rows = search.limit(self.table.count_rows()).to_list()

        for row in rows:
            row["similarity"] = round(1 - row.pop("_distance"), DIGITS)
        rows.sort(
            key=lambda row: (-row["similarity"], *(row[name] or 0 for name in ORDER))
        )
        return self._items(rows[:k])

    def _items(self, rows: list[Item]) -> list[Item]:
        """Make paths absolute, and put the values of a manifest into `columns`."""
        root = self.settings.root
        for row in rows:
            row["path"] = whole_path(row["path"], root)
            row["columns"] = {name: row.pop(name) for name in self.columns}
        return rows

    @engine_call
    def identities(self) -> pa.Table:
        """Return what tells rows of different runs apart, of all rows, as it is stored."""
        columns = ["key", "path", "identity", "listed_by", "listed_as", "reason"]
        return self.table.search().select(columns).limit(None).to_arrow()

    @engine_call
    def write(self, items: list[Item], computed: bool = True) -> None:
        """Add rows, or replace rows with the same keys. A row has a `vector` or a `reason`.

        Args:
            computed: If False, rows keep what their embedding computed, and none are added.
        """
        root = self.settings.root
        rows = []
        for item in items:
            name = item["path"].rpartition("/")[2]
            words = folded("\n".join([item["caption"] or "", item["id"] or "", name]))
            path = stored_path(item["path"], root)
            rows.append(item | item["columns"] | {"path": path, "words": words})

        with self._lock:
            data = pa.Table.from_pylist(rows, self.table.schema)
            upsert = self.table.merge_insert("key").when_matched_update_all()
            if computed:
                upsert = upsert.when_not_matched_insert_all()
            else:
                data = data.drop_columns(COMPUTED)
            upsert.execute(data, on_bad_vectors="null")

    @engine_call
    def remove(self, keys: list[str]) -> None:
        """Remove rows, also from the disk. The engine records conditions: a key has no name."""
        table = self.table
        sql = f"key IN ({', '.join(map(quoted, keys))})"
        with self._lock:
            query = (
                table.search().where(sql).select(["key"]).with_row_id(True).limit(None)
            )
            # The engine only marks deleted rows, but it deletes a file in which no others are left.
            for fragment in {
                row >> 32 for row in query.to_arrow()["_rowid"].to_pylist()
            }:
                rows = f"_rowid >= {fragment << 32} AND _rowid < {fragment + 1 << 32}"
                table.update(where=f"{rows} AND NOT ({sql})", values_sql={"key": "key"})
            table.delete(sql)
            table.optimize(cleanup_older_than=timedelta(milliseconds=1))

    @engine_call
    def optimize(self) -> None:
        """Merge small files, delete files of earlier states, and build the approximate index if
        there are many clips."""
        from lancedb.index import IvfFlat

        with self._lock:
            self.table.optimize(cleanup_older_than=timedelta(minutes=10))
            if len(self) > EXACT_CLIPS and not self.table.list_indices():
                config = IvfFlat(distance_type="dot", num_partitions=PARTITIONS)
                self.table.create_index("vector", config=config)


def index_exists(place: Location) -> bool:
    """Check whether there is an index. Raise InputError as `open_table`."""
    return open_table(str(absolute(place))) is not None


def other_table(place: str) -> InputError:
    """Return the error for an index of an earlier version, or a table of others."""
    return InputError(
        f"{place}: an earlier version made this index, or it is no index; `alpro index add "
        "NEW_FOLDER VIDEOS --model MODEL` makes it anew"
    )


@engine_call
def open_table(address: str, new: pa.Schema | None = None) -> "Table | None":
    """Open the table of an index. Return None if it does not exist.

    Args:
        new: Schema of the table to create if it does not exist.

    Raises:
        InputError: If an earlier version made the index, or the store does not answer.
    """
    if new is None and not is_url(address):
        if Path(address, "index.json").is_file():
            raise other_table(address)
        # To connect would make the folder. A full disk may have left a table without a version.
        versions = Path(address, "clips.lance/_versions")
        if not any(versions.glob("*.manifest")):
            return None
    try:
        import lancedb
    except ImportError as error:
        raise InputError(
            "an index needs LanceDB: pip install 'alpro-pipeline[index]'"
        ) from error
    # Each read asks for the newest state: other processes add and remove clips.
    database = lancedb.connect(address, read_consistency_interval=timedelta(0))
    if new is not None:
        return database.create_table("clips", schema=new, exist_ok=True)
    if is_url(address) and "clips" not in database.table_names():
        return None
    return database.open_table("clips")


def make_condition(where: str = "", words: str = "") -> str:
    """Return the condition on rows in SQL that they are clips, that `where` holds, and that the
    caption, the file name or the id has each of the words.

    Raises:
        InputError: If a closing bracket has no opening one.
    """
    conditions = [IS_CLIP]
    depth = 0
    for bracket in re.findall(r"[()]", QUOTED.sub("", where)):
        depth += 1 if bracket == "(" else -1
        if depth < 0:
            # It would close the brackets added below, and the rest would apply to all rows.
            raise InputError(f"{where}: a closing bracket without an opening one")
    if where.strip():
        # The brackets are needed: the engine ignores what follows a complete condition.
        conditions.append(f"({where}\n)")
    conditions += [f"contains(words, {quoted(word)})" for word in folded(words).split()]
    return " AND ".join(conditions)


def quoted(text: str) -> str:
    """Return a text as a string of SQL."""
    return "'" + text.replace("'", "''") + "'"


def folded(text: str) -> str:
    """Return a text without differences of case, or of composed and decomposed accents."""
    return normalize("NFC", normalize("NFC", text).casefold())


def stored_path(path: str, root: str) -> str:
    """Return a path relative to the root of an index, if it is below it."""
    return path.removeprefix(f"{root}/") if root else path


def whole_path(path: str, root: str) -> str:
    """Return the absolute path or the URL of a path in an index."""
    return path if path.startswith("/") or is_url(path) else f"{root}/{path}"


def get_source(item: Item) -> Row:
    """Return what decodes an item."""
    fields = {name: item[name] for name in ("id", "kind", "start", "end", "member")}
    return Row(path=located(item["path"]), **fields)


def describe_location(item: Item) -> str:
    """Name the file of an item, and the part of it.

    >>> describe_location(EMPTY | {"path": "a.mp4", "start": 1.5, "end": 4.0})
    'a.mp4 1.5-4 s'
    """
    if item["member"]:
        return f"{item['path']}: {item['id']}"
    start = item["start"] or 0.0
    end = item["end"]
    if start or end:
        return f"{item['path']} {start:g}-{f'{end:g}' if end else ''} s"
    return item["path"]


def record_index(index: Index) -> None:
    """Note an index in the workspace of its model, so that the model is not removed as unused."""
    model = Path(index.settings.model)
    artifact = model.parent if model.name == "model" else model
    artifacts = artifact.parent.parent
    record = read_record(artifact)
    if not record or artifacts.name != "artifacts":
        return
    workspace = artifacts.parent
    note = f"{record.fingerprint}\t{index.place}"
    try:
        if note not in read_notes(workspace):
            with open(workspace / INDEXES, "a", encoding="utf-8") as file:
                print(note, file=file)
    except OSError as error:  # the workspace of someone else
        log.warning(
            f"{workspace}: `alpro artifacts gc` may remove the model of {index.place}: {error}"
        )


def find_indexed_models(workspace: Path) -> set[str]:
    """Return the fingerprints of the models of noted indexes."""
    return {note.partition("\t")[0] for note in read_notes(workspace)}


def read_notes(workspace: Path) -> list[str]:
    file = workspace / INDEXES
    return read_text(file).splitlines() if file.is_file() else []
