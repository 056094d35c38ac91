"""Decode the items of a manifest into WebDataset shards.

Every item ends either in a shard or in rejects.parquet.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from pydantic import Field, NonNegativeInt, PositiveFloat, field_validator

from alpro.errors import InputError
from alpro.files import digest, file_state, read_json
from alpro.log import log, progress
from alpro.pool import Died, each, exit_after
from alpro.shards.clip import Clip, DecodeError, Limits
from alpro.shards.decoding import (
    Decoder,
    decode_errors,
    decode_image,
    decode_video,
    fetch,
)
from alpro.shards.memory import memory_limit
from alpro.shards.schema import INDEX, TRANSIENT_REASONS, Reject, Row
from alpro.shards.sources.manifest import Manifest, import_source
from alpro.shards.sources.plan import DecodePlan, DecodeUnit
from alpro.shards.storage import identities
from alpro.shards.writer import ShardWriter, index_shard
from alpro.stages.corpora.tables import CorpusConfig, UnitRecord, complete, pixel_sums
from alpro.stages.corpora.units import (
    RECORD,
    SHARD,
    Unit,
    Units,
    finish_units,
    merge_units,
    open_units,
    write_unit_tables,
)
from alpro.stages.execution.interface import (
    Count,
    Outcome,
    Resources,
    StageInputs,
)

VERSION = 18  # times of frames in ASF and in program streams
# Time beyond the limit of an item, which decoders respect, on a busy machine.
BUSY_SECONDS = 30
MAX_DEATHS = 50  # if all of more items end their processes, the machine is the cause
# What decodes an item that ended its process: the ffmpeg binary has a process of its own.
DECODERS: tuple[Decoder, ...] = ("auto", "ffmpeg")


class Config(CorpusConfig, frozen=True):
    """Settings of a decoded corpus."""

    manifest: str = ""
    """name of a manifest of the rendered sample"""
    frames: Count = 16
    """stored frames per video: the first of each of this many equal segments"""
    size: int = Field(default=256, ge=16)
    """height and width of a stored frame, in pixels; of an image, the shorter side"""
    timeout: PositiveFloat = 60.0
    """seconds after which a video is rejected"""
    max_bytes: Count = 4 * 2**30
    """maximum file size in bytes"""
    samples_per_shard: Count = 256
    """maximum items per shard, with rejects"""
    validation: float = Field(default=0.1, ge=0, lt=1)
    """probability of the validation split, if none is named"""
    test: float = Field(default=0.1, ge=0, lt=1)
    """probability of the test split, if none is named"""
    seed: NonNegativeInt = 0
    """seed of the split"""
    group_pattern: str = ""
    """regular expression for the path of an item without a group: its first capturing group, or the
    whole match, is the group"""

    @field_validator("group_pattern")
    @classmethod
    def _check_pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return value


# Writes an item to a shard. Returns the `pixel_sums` of its frames, or raises DecodeError.
WriteItem = Callable[[ShardWriter, Row], np.ndarray]
# Settings that affect the frames of an item, or whether it is rejected.
UNIT_SETTINGS = {"frames", "size", "timeout", "max_bytes"}


class Inputs(StageInputs):
    """The imported source, a folder that `import_source` has filled; or the rendered sample, which
    the stage imports itself, because it does not exist before."""

    manifest: Path | None = None
    sample: Path | None = None


def run(config: Config, inputs: Inputs, out: Path, resources: Resources) -> Outcome:
    """Write shards, index.parquet, rejects.parquet, units.parquet, statistics.json, overlap.parquet
    and pictures/samples.png.
    """
    store = open_units(out)
    if inputs.sample:
        manifest = import_source(inputs.sample / config.manifest, out / "parts")
    else:
        assert inputs.manifest is not None
        manifest = Manifest(inputs.manifest)
    plan = make_plan(config, manifest)

    for note in manifest.about.get("notes", []):
        log.info(f"note: {note}")

    # Checked before decoding: hours of it would end in a corpus that nothing can train on.
    check_texts(plan)
    hint = plan.group_hint()
    if hint:
        log.info(f"hint: {hint}")

    units: dict[str, Unit] = {}
    work = partial(decode_unit, config=config, store=store)
    retry = partial(decode_apart, config=config, store=store, resources=resources)
    with progress("decoding", len(plan.row_indices), "items") as advance:
        for task, unit in finish_units(plan.units(), work, out, resources, retry):
            units[unit.name] = unit
            advance(len(task))

    ordered = [units[name] for name in plan.rows_of_unit]
    records = merge_units(ordered, store, out, [plan.reject_table()])
    items = len(plan.row_indices) + manifest.about["rejects"]
    outcome = complete(
        manifest.about["source"],
        out,
        records,
        plan.annotated(),
        items,
        config.max_reject_share,
    )
    outcome.counts["linked"] = 0
    for unit, record in zip(ordered, records, strict=True):
        if not unit.made:
            outcome.counts["linked"] += record["samples"]
        # A unit whose items are all rejected has no shard. Others were hashed when it was written.
        if SHARD in record["files"]:
            outcome.sha256[f"{unit.name}.tar"] = record["files"][SHARD]
    return outcome


def make_plan(config: Config, manifest: Manifest) -> DecodePlan:
    """Plan the decoding of an imported source."""
    return DecodePlan(
        manifest,
        kinds=config.kinds,
        group_pattern=config.group_pattern,
        validation=config.validation,
        test=config.test,
        seed=config.seed,
        max_rows=config.samples_per_shard,
    )


def check_texts(plan: DecodePlan) -> None:
    """Raise InputError if no item has a caption or a question."""
    source = plan.manifest.about["source"]
    if not len(plan.row_indices):
        # The import may have rejected every row: the first reject says why, and notes what to set.
        for reject in plan.reject_table().to_pylist():
            first = f"{reject['id']}: {reject['detail'] or reject['reason']}"
            reasons = "; ".join([first, *plan.manifest.about.get("notes", [])])
            raise InputError(f"{source}: {reasons}")
        raise InputError(f"{source}: no rows of these kinds")

    if any(texts["items"] for texts in plan.splits().values()):
        return
    # Notes of the import say where captions were looked for.
    notes = [note for note in plan.manifest.about.get("notes", []) if "caption" in note]
    repair = (
        "name the column of the captions in [corpora.NAME.columns], or put those of each video, one per "
        "line, in a .txt file of the same name"
    )
    hints = "; ".join(notes) or repair
    raise InputError(f"{source}: no captions and no questions; {hints}")


def decode_unit(
    task: DecodeUnit, config: Config, store: Units, decoder: Decoder = "auto"
) -> Unit:
    """Find a unit, or decode it."""
    write_item = partial(decode_item, config=config, decoder=decoder)
    return find_or_write(task, write_item, config, store)


def find_or_write(
    task: DecodeUnit, write_item: WriteItem, config: Config, store: Units
) -> Unit:
    """Find a unit, or write it."""
    return store.find_or_make(
        task.name,
        partial(unit_key, task, config),
        partial(write_unit, task, write_item),
    )


def unit_key(task: DecodeUnit, config: Config) -> str:
    """Return the digest of everything that determines a shard: its rows, the identities of their
    files, and the settings."""
    # One call for all files makes the requests to a store concurrently.
    files = identities(row.path for row in task.rows)
    rows = []
    for row, file in zip(task.rows, files, strict=True):
        rows.append(row.model_dump(mode="json") | {"file": file})

    settings = config.model_dump(include=UNIT_SETTINGS)
    return digest({"version": VERSION, "config": settings, "rows": rows})


def write_unit(task: DecodeUnit, write_item: WriteItem, folder: Path) -> UnitRecord:
    """Write the items of a unit into its folder. Return its record."""
    rejects: list[Reject] = []
    everything = np.zeros((3, 3))
    shard = folder / SHARD
    with ShardWriter(shard) as writer:
        for row in task.rows:
            try:
                # Only written samples count: training sees no reject.
                everything += write_item(writer, row)
            except DecodeError as error:
                reject = Reject(
                    id=row.id,
                    path=row.file_name,
                    reason=error.reason,
                    detail=error.detail,
                )
                rejects.append(reject)

    index = INDEX.empty_table()
    if shard.is_file():  # at least one item was decoded
        # Read from the tar itself, as `index_shards` reads tars of other programs.
        index = index_shard(shard)
    write_unit_tables(folder, index, rejects)
    return {
        "samples": index.num_rows,
        "training": (everything * (task.rows[0].split == "train")).tolist(),
        "everything": everything.tolist(),
        "transient": any(reject.reason in TRANSIENT_REASONS for reject in rejects),
    }


def decode_item(
    writer: ShardWriter, row: Row, config: Config, decoder: Decoder
) -> np.ndarray:
    """Fetch, decode and write an item. A decoder may crash or hang, which ends this process."""
    if not row.captions and not row.questions:
        raise DecodeError("no text")
    with (
        fetch(row.path, config.max_bytes, writer.path.parent, row.member) as path,
        # The limit excludes the download, which has its own.
        exit_after(config.timeout + BUSY_SECONDS),
    ):
        clip = decode(row, path, config, decoder)
    # Raises DecodeError, too: texts may be longer than readers take.
    writer.write(row, clip)
    return pixel_sums(clip.frames)


def decode_apart(
    died: list[tuple[DecodeUnit, Died]],
    config: Config,
    store: Units,
    resources: Resources,
) -> Iterator[tuple[DecodeUnit, Unit]]:
    """Decode units whose processes died, each item in a unit of its own, and join them.

    An item that ends its process again is decoded with the ffmpeg binary. If its process ends once
    more, it is a reject.

    Raises:
        InputError: If many items end their processes, and no other item is decoded.
    """
    outcomes: dict[str, Unit | Died] = {}  # by the ids of the items
    singles = [single for task, _ in died for single in task.split()]
    for decoder in DECODERS:
        work = partial(decode_unit, config=config, store=store, decoder=decoder)
        deaths: list[DecodeUnit] = []
        results = each(singles, work, resources.worker_count, resources.scheduler)
        for single, unit in results:
            outcomes[single.name] = unit
            if not isinstance(unit, Died):
                continue
            deaths.append(single)
            if len(outcomes) == len(deaths) > MAX_DEATHS:
                raise InputError(
                    f"{len(deaths)} items in succession end the processes that decode them "
                    f"({unit.reason}); if memory is short, lower resources.workers"
                )
        singles = deaths

    write_item = partial(copy_item, outcomes=outcomes, config=config, store=store)
    for task, _ in died:
        unit = find_or_write(task, write_item, config, store)
        # The unit of a single item is found, and was made above.
        yield task, unit._replace(made=True)


def copy_item(
    writer: ShardWriter,
    row: Row,
    outcomes: Mapping[str, Unit | Died],
    config: Config,
    store: Units,
) -> np.ndarray:
    """Write an item as its own unit has it."""
    unit = outcomes[row.id]
    if isinstance(unit, Died) and unit.timed_out:
        seconds = config.timeout + BUSY_SECONDS
        raise DecodeError("too slow", f"the decoder hangs, longer than {seconds:g} s")
    if isinstance(unit, Died):
        raise DecodeError("crashed", unit.reason)
    part = store.folder(unit.key)
    for reject in pq.read_table(part / "rejects.parquet").to_pylist():
        raise DecodeError(reject["reason"], reject["detail"])
    writer.append(part / SHARD)
    return np.array(read_json(part / RECORD)["everything"])


def decode(row: Row, path: Path, config: Config, decoder: Decoder = "auto") -> Clip:
    """Decode the frames of an item from its local file.

    Raises:
        DecodeError, InputError, OSError: As `decode_errors` does.
    """
    # A copy is limited when it is fetched; a local file is used where it is. What cannot be reached
    # is for the decoder to refuse.
    state = file_state(path)
    if state and state[0] > config.max_bytes:
        raise DecodeError("too large", f"{state[0]} bytes")

    limits = Limits(config.timeout)
    with decode_errors(limits), memory_limit(limits.memory):
        # Images keep their ratio: training crops them at random.
        if row.kind == "image":
            return decode_image(path, config.size, limits, keep_ratio=True)
        return decode_video(
            path,
            count=config.frames,
            size=config.size,
            start=row.start,
            end=row.end,
            decoder=decoder,
            limits=limits,
        )
