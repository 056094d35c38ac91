"""Decodes the items of a manifest into WebDataset shards. Every item ends in either a shard or
rejects.parquet."""

import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from pydantic import Field, field_validator

from alpro.credentials import redacted
from alpro.errors import InputError
from alpro.files import checksum, digest, file_state, read_json
from alpro.log import log, progress
from alpro.shards.clip import Clip, DecodeError, Limits
from alpro.shards.decoding import Decoder, decode_image, decode_video
from alpro.shards.memory import memory_limit
from alpro.shards.schema import INDEX, REJECTS, Reject, Row
from alpro.shards.sources.manifest import Manifest, import_source
from alpro.shards.sources.plan import DecodePlan, DecodeUnit
from alpro.shards.storage import DISK_FULL, Location, TooLarge, identities, local_copy
from alpro.shards.writer import ShardWriter, index_shard
from alpro.stages.corpora.tables import complete, pixel_sums, write_statistics, write_tables
from alpro.stages.corpora.units import (
    UNITS,
    forget_unit,
    has_transient,
    merge_parts,
    open_parts,
    part_path,
    read_unit,
    reuse_unit,
    run_unfinished,
    write_unit,
)
from alpro.stages.execution.interface import Outcome, Resources, StageConfig, StageInputs
from alpro.stages.execution.workers import WorkerDied, exit_after, run_in_subprocess

VERSION = 16
BUSY_SECONDS = 30  # beyond the time limit of an item, which decoders respect, on a busy machine


class Config(StageConfig, frozen=True):
    """How a corpus is decoded."""

    manifest: str = Field(default="", description="name of a manifest of the rendered sample")
    frames: int = Field(
        default=16,
        ge=1,
        description="stored frames per video: the first of each of this many equal segments",
    )
    size: int = Field(
        default=256,
        ge=16,
        description="height and width of a stored frame, in pixels; of an image, the shorter side",
    )
    timeout: float = Field(
        default=60.0, gt=0, description="seconds after which a video is rejected"
    )
    max_bytes: int = Field(default=4 * 2**30, ge=1, description="maximum file size in bytes")
    samples_per_shard: int = Field(
        default=256, ge=1, description="maximum items per shard, with rejects"
    )
    validation: float = Field(
        default=0.1, ge=0, lt=1, description="probability of the validation split, if none is named"
    )
    test: float = Field(
        default=0.1, ge=0, lt=1, description="probability of the test split, if none is named"
    )
    seed: int = Field(default=0, ge=0, description="seed of the split")
    group_pattern: str = Field(
        default="",
        description="regular expression for the path of an item without a group: its first "
        "capturing group, or "
        "the whole match, is the group",
    )
    max_reject_share: float = Field(
        default=0.2, ge=0, le=1, description="maximum fraction of rejected items"
    )
    kinds: Literal["all", "video", "image"] = Field(
        default="all", description="which items of the manifest to decode"
    )

    @field_validator("group_pattern")
    @classmethod
    def _check_pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return value


# Settings that affect the frames of an item, or whether it is rejected.
UNIT_SETTINGS = {"frames", "size", "timeout", "max_bytes"}


class Inputs(StageInputs):
    """The imported source, a folder that `import_source` has filled; or the rendered sample, with
    Config.manifest in it, which only exists when the stage runs, so that the stage imports it."""

    manifest: Path | None = None
    sample: Path | None = None


def run(config: Config, inputs: Inputs, out: Path, resources: Resources) -> Outcome:
    """Writes shards, index.parquet, rejects.parquet, units.parquet (see stages/corpora/units.py),
    statistics.json, overlap.parquet and pictures/samples.png.
    """
    parts = open_parts(out)
    if inputs.sample:
        manifest = import_source(inputs.sample / config.manifest, parts)
    else:
        assert inputs.manifest is not None
        manifest = Manifest(inputs.manifest)
    source = manifest.about["source"]
    plan = plan_of(config, manifest)

    for note in manifest.about.get("notes", []):
        log.info(f"note: {note}")

    # Before decoding: hours of it would end in a corpus that nothing can train on.
    check_texts(source, plan)
    hint = plan.group_hint()
    if hint:
        log.info(f"hint: {hint}")

    with progress("decoding", len(plan.row_indices), "items") as advance:
        run_unfinished(
            plan.units(),
            is_finished=partial(is_finished, config=config, out=out),
            function=partial(process_unit, config=config, out=out),
            resources=resources,
            advance=advance,
            size=lambda unit: len(unit.rows),
        )

    outcome = merge_units(plan, out)
    complete(outcome, source, out, config.max_reject_share)
    return outcome


def plan_of(config: Config, manifest: Manifest) -> DecodePlan:
    """The plan of decoding an imported source."""
    return DecodePlan(
        manifest,
        kinds=config.kinds,
        group_pattern=config.group_pattern,
        validation=config.validation,
        test=config.test,
        seed=config.seed,
        max_rows=config.samples_per_shard,
    )


def check_texts(source: Location, plan: DecodePlan) -> None:
    """Raises InputError if no item has a caption or a question."""
    if not len(plan.row_indices):
        # The import may have rejected every row: the first reject says why.
        reject = next(plan.rejects(), None)
        if reject is None:
            raise InputError(f"{source}: no rows of these kinds")
        raise InputError(f"{source}: {reject.id}: {reject.detail}")

    if any(texts["items"] for texts in plan.texts_by_split().values()):
        return
    # Notes of the import say where captions were looked for.
    notes = [note for note in plan.manifest.about.get("notes", []) if "caption" in note]
    repair = (
        "fill the column `captions` of the manifest, or put each video's captions, one per line, "
        "in a .txt file of the same name"
    )
    hints = "; ".join(notes) or repair
    raise InputError(f"{source}: no captions and no questions; {hints}")


def is_finished(unit: DecodeUnit, config: Config, out: Path) -> bool:
    """Whether a unit was finished by an interrupted run, from the same files and without transient
    rejects."""
    finished = read_unit(unit.name, out)
    if finished is None:
        return False

    record, rejected = finished
    if record.get("key") == unit_key(unit, config) and not has_transient(rejected):
        return True
    # Its files changed, or a server may respond by now.
    forget_unit(unit.name, out)
    return False


def process_unit(unit: DecodeUnit, config: Config, out: Path) -> None:
    """Writes the shard of a unit and its part of the index, statistics and rejects.

    The shard of an earlier artifact is reused if possible, otherwise the items are decoded.
    """
    key = unit_key(unit, config)
    ids = [row.id for row in unit.rows]
    reused = reuse_unit(key, unit.name, ids, out)
    if reused is None:
        record, index, rejects = decode_unit(unit, key, config, out)
    else:
        record, index, rejects = reused

    # `merge` counts the samples of linked shards by this.
    record |= {"decoded": reused is None}
    write_unit(unit.name, out, index=index, rejects=rejects, record=record)
    # Last: until the unit is finished, another try must know what killed this process.
    part_path(unit.name, "suspects", out).unlink(missing_ok=True)


def decode_unit(
    unit: DecodeUnit, key: str, config: Config, out: Path
) -> tuple[dict[str, Any], pa.Table, pa.Table]:
    """Decodes a unit into its shard. Returns its row of UNITS, its index rows and its rejects."""
    rejects, sums = write_shard(unit, config, out)

    index = INDEX.empty_table()
    sha256 = ""
    shard = out / f"{unit.name}.tar"
    if shard.is_file():  # at least one item was decoded
        # From the tar itself, as `index_shards` reads those of others.
        index = index_shard(shard)
        sha256 = checksum(shard)

    record = {
        "name": unit.name,
        "key": key,
        "sha256": sha256,
        "samples": index.num_rows,
        "rejected": len(rejects),
        "sums": sums.ravel().tolist(),
    }
    rows = [reject.model_dump() for reject in rejects]
    return record, index, pa.Table.from_pylist(rows, schema=REJECTS)


def unit_key(unit: DecodeUnit, config: Config) -> str:
    """The digest of everything that determines a shard: its rows, the identities of their files,
    and the settings."""
    # Of all files in one call: it makes the requests to a store concurrently.
    files = identities(row.path for row in unit.rows)
    rows = []
    for row, file in zip(unit.rows, files, strict=True):
        rows.append(row.model_dump(mode="json") | {"file": file})

    settings = config.model_dump(include=UNIT_SETTINGS)
    return digest({"version": VERSION, "config": settings, "rows": rows})


def write_shard(unit: DecodeUnit, config: Config, out: Path) -> tuple[list[Reject], np.ndarray]:
    """Decodes the items of a unit into its shard. Returns the rejects and the sums of the frames'
    pixels.

    A decoder may crash or hang. The index of each item is noted before it is decoded: if the note
    is still there when the unit is tried again, the process died during this item, which is decoded
    in a subprocess.
    """
    rejects: list[Reject] = []
    sums = np.zeros((3, 3))
    note = part_path(unit.name, "suspects", out)
    suspects = set(note.read_text().split()) if note.is_file() else set()

    with ShardWriter(out / f"{unit.name}.tar") as writer:
        for i, row in enumerate(unit.rows):
            row_index = str(i)
            try:
                if not row.captions and not row.questions:
                    raise DecodeError("no text")
                with fetched(row, config.max_bytes, out / "parts") as path:
                    # Noted after the download: only a decoder is suspected.
                    note.write_text(" ".join(sorted(suspects | {row_index})))
                    if row_index in suspects:
                        clip = decode_in_subprocess(row, path, config)
                    else:
                        with exit_after(config.timeout + BUSY_SECONDS):
                            clip = decode(row, path, config)
                # Raises DecodeError, too: texts may be longer than readers take.
                writer.write(row, clip)
            except DecodeError as error:
                reject = Reject(
                    id=row.id, path=row.file_name, reason=error.reason, detail=error.detail
                )
                rejects.append(reject)
                continue
            # Of written samples only: training normalizes by these and sees no reject.
            sums += pixel_sums(clip.frames)
    return rejects, sums


def decode_in_subprocess(row: Row, path: Path, config: Config) -> Clip:
    """`decode` in a subprocess, for an item during which a process died. The item may not be the
    cause, so it is tried twice, and then with the ffmpeg binary, which has its own process."""
    seconds = config.timeout + BUSY_SECONDS
    attempt = partial(run_in_subprocess, decode, row, path, config, seconds=seconds)
    try:
        try:
            return attempt()
        except WorkerDied:  # memory may have been short for a moment
            return attempt()
    except TimeoutError as error:
        raise DecodeError("too slow", f"the decoder hangs, {error}") from None
    except WorkerDied as error:
        if row.kind == "video":
            return decode(row, path, config, "ffmpeg")
        raise DecodeError("crashed", str(error)) from None


def decode(row: Row, path: Path, config: Config, decoder: Decoder = "auto") -> Clip:
    """Decodes the frames of an item from its local file.

    Raises DecodeError with the reason for any exception of a decoder, so that one file does not
    stop the stage. A missing decoder (InputError) and a full disk are not caused by the file and
    are raised unchanged.
    """
    limits = Limits(config.timeout)
    try:
        with memory_limit(limits.memory):
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
    except (DecodeError, InputError):
        raise
    except MemoryError:
        raise limits.too_much_memory() from None
    except Exception as error:
        if isinstance(error, OSError) and error.errno in DISK_FULL:
            raise
        # Not `one_line`: the detail is part of rejects.parquet, whose bytes are those of VERSION.
        message = " ".join([f"{type(error).__name__}:", *str(error).split()]).rstrip(":")
        raise DecodeError("unexpected error", message) from error


@contextmanager
def fetched(row: Row, max_bytes: int, folder: Path) -> Iterator[Path]:
    """Yields the local path of a row's file, or a temporary copy of a URL or of a member of a tar.
    Raises DecodeError if the file cannot be fetched."""
    with ExitStack() as stack:
        try:
            copy = local_copy(row.path, max_bytes, folder, row.member)
            path = stack.enter_context(copy)
            # `local_copy` limits what it fetches; a local file is used where it is.
            state = file_state(path) if isinstance(row.path, Path) else None
            if state and state[0] > max_bytes:
                raise TooLarge(f"{state[0]} bytes")
        except FileNotFoundError:
            raise DecodeError("missing") from None
        except TooLarge as error:
            raise DecodeError("too large", str(error)) from None
        except EOFError as error:
            raise DecodeError("unreadable", str(error)) from None
        except OSError as error:
            if error.errno is not None:  # local, such as a full disk
                raise
            # A server may repeat a password or a signature in its reason.
            raise DecodeError("not fetched", redacted(str(error))) from None
        # Outside of `try`: an OSError of the body is no failed transfer.
        yield path


def merge_units(plan: DecodePlan, out: Path) -> Outcome:
    """Merges the parts of all units into the index, the rejects, the units and the statistics.

    Checks that the counts add up. The outcome has the checksums of the shards, which are hashed
    when they are written.
    """
    merge_parts(plan.rows_of_unit, out, [plan.manifest.rejects()])

    linked = 0
    training = np.zeros(9)
    everything = np.zeros(9)
    sha256: dict[str, str] = {}

    def units() -> Iterator[pa.Table]:
        # The records are read once, while units.parquet is written: there may be 100,000.
        nonlocal linked
        for name in plan.rows_of_unit:
            record = read_json(part_path(name, "json", out))
            everything[:] += record["sums"]
            if name.startswith("train"):
                training[:] += record["sums"]
            if not record.pop("decoded"):
                linked += record["samples"]
            if record["sha256"]:
                sha256[f"{name}.tar"] = record["sha256"]
            yield pa.Table.from_pylist([record], schema=UNITS)

    write_tables(out / "units.parquet", UNITS, units())
    counts = write_statistics(
        out,
        training=training.reshape(3, 3),
        everything=everything.reshape(3, 3),
        expected=plan.texts_by_split(),
    )
    # No row is left out in silence: each one is a sample or a reject.
    assert counts["items"] == len(plan.row_indices) + plan.manifest.about["rejects"]
    return Outcome(counts | {"linked": linked}, sha256=sha256)
