"""What a workspace holds of some videos: for a request to delete them."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import pyarrow.parquet as pq

from alpro.inference.index import Index, Item, rows_of
from alpro.pipeline.store.artifacts import Store
from alpro.pipeline.store.lineage import reports_of
from alpro.shards.reader import index_batches
from alpro.shards.storage import absolute

COLUMNS = ["id", "group", "source", "shard"]


@dataclass
class Held:
    """Samples by the folder of their corpus, with their shards; what was made from these corpora, with its name; the
    reports of both; folders of interrupted stages, which may hold frames, or a model trained on them."""

    corpora: dict[Path, dict[str, str]] = field(default_factory=dict)
    rejects: dict[Path, list[str]] = field(default_factory=dict)
    derived: dict[Path, str] = field(default_factory=dict)
    reports: list[Path] = field(default_factory=list)
    unfinished: list[Path] = field(default_factory=list)


def held(store: Store, names: Sequence[str]) -> Held:
    """What the artifacts of a workspace, and its reports, hold of videos. names: files, URLs or ids."""
    found, artifacts = Held(), store.all()
    fingerprints = set()
    for folder, record in artifacts:
        if (folder / "index.parquet").is_file():
            rows = (row for batch in index_batches(folder, COLUMNS) for row in batch.to_pylist())
            if samples := {row["id"]: row["shard"] for row in rows if any(is_named(row, name) for name in names)}:
                found.corpora[folder] = samples
            rejected = pq.read_table(folder / "rejects.parquet").to_pylist()
            rows_of_rejects = ({"id": row["id"], "source": row["path"], "group": ""} for row in rejected)
            if ids := [row["id"] for row in rows_of_rejects if any(is_named(row, name) for name in names)]:
                found.rejects[folder] = ids
            if samples or ids:
                fingerprints.add(record["fingerprint"])
    inputs = {record["fingerprint"]: [s["fingerprint"] for s in record["inputs"].values()] for _, record in artifacts}
    held_directly = set(fingerprints)
    while users := {one for one, sources in inputs.items() if fingerprints & {*sources}} - fingerprints:
        fingerprints |= users
    made = fingerprints - held_directly
    found.derived = {folder: record["name"] for folder, record in artifacts if record["fingerprint"] in made}
    found.reports = list(reports_of(store.root.parent, fingerprints))
    finished = {folder for folder, _ in artifacts}
    found.unfinished = [f for f in sorted(store.root.glob("*/*")) if f.is_dir() and f not in finished]
    return found


def is_named(row: Mapping[str, Any], name: str) -> bool:
    """Whether a sample is meant by an id, a URL or a file. A sample has the name of its file, and as its group, unless
    another was given, the path in the folder of the manifest."""
    place, file = str(absolute(name)), PurePath(name).name
    if name == row["id"] or row["group"] in (name, place):
        return True
    if row["source"] != file:
        return False
    return PurePath(row["group"]).name != file or place.endswith(f"/{row['group']}")


def entries(index: Index, names: Sequence[str], samples: Mapping[Path, Collection[str]]) -> Iterator[Item]:
    """The items and rejects of an index that are files of these names, or samples of decoded corpora."""
    files = {str(absolute(name)) for name in names}
    shards = {(str(absolute(folder)), name) for folder, ids in samples.items() for name in ids}
    for table in [*index.items, index.rejects()]:
        for item in rows_of(table):
            sample = item["frame_offsets"] is not None and (str(PurePath(item["path"]).parent), item["id"]) in shards
            if sample or item["path"] in files:
                yield item
