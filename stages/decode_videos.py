"""Manifest to frames to WebDataset shards: every item ends in exactly one of a shard or rejects.parquet."""

import re
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import Field, field_validator

from alpro.credentials import without_credentials
from alpro.errors import InputError
from alpro.files import atomic_write, checksum, read_json, write_json
from alpro.shards.annotations import scan_source
from alpro.shards.decode import Clip, DecodeError, Decoder, Limits, decode_image, decode_video
from alpro.shards.ffmpeg_binary import ffmpeg_version
from alpro.shards.identity import identities
from alpro.shards.plan import Plan, Unit
from alpro.shards.schema import INDEX, REJECTS, SPLITS, Reject, Row
from alpro.shards.storage import FULL, Location, TooLarge, local_copy
from alpro.shards.writer import ShardWriter, index_shard
from alpro.stages import Stage
from alpro.stages.artifacts.store import Outcome, Resources, StageConfig, digest
from alpro.stages.corpora.reuse import UNITS, WrittenShard, remember, take_over
from alpro.stages.corpora.tables import (
    COMPARED,
    Counted,
    draw_samples,
    pixel_statistics,
    pixel_sums,
    write_overlap,
    write_tables,
)
from alpro.stages.execution.progress import progress
from alpro.stages.execution.workers import Died, do_units, ended_after, in_own_process

VERSION = 7
STAGE = Stage(help="decode videos and images to shards of frames", kind="data")
FETCH_SECONDS = 1800.0  # after which a file at a URL is given up


class Config(StageConfig):
    """How one corpus becomes shards."""

    manifest: str = Field(
        "", description="the manifest's name inside the rendered sample; empty: the file or folder given"
    )
    frames: int = Field(16, ge=1, description="frames stored of a video, the first of each of so many equal segments")
    size: int = Field(
        256,
        ge=16,
        description="height and width of a stored frame of a video, pixels; of an image, which keeps its aspect ratio, "
        "the shorter side",
    )
    quality: int = Field(90, ge=1, le=100, description="JPEG quality of stored frames")
    decoder: Decoder = Field("auto", description="auto: PyAV, and ffmpeg where it fails; or one of them alone")
    timeout: float = Field(60.0, gt=0, description="seconds after which a video is rejected")
    max_bytes: int = Field(4 * 2**30, ge=1, description="size of a file, in bytes, above which it is rejected")
    max_pixels: int = Field(8192**2, ge=1, description="pixels of a picture above which a file is rejected")
    max_memory: int = Field(2 * 2**30, ge=2**26, description="bytes that decoding one file may take (Linux)")
    samples_per_shard: int = Field(
        256, ge=1, description="most items that go to one shard, rejects included; the least is half as many"
    )
    validation: float = Field(
        0.1, ge=0, lt=1, description="share of the videos for validation, where no split is given"
    )
    test: float = Field(0.1, ge=0, lt=1, description="share of the videos for testing, where no split is given")
    seed: int = Field(0, ge=0, description="seed of the split")
    group_pattern: str = Field(
        "",
        description="regular expression that finds the group of an item in the path of its file, where the manifest "
        "names none: its first group in parentheses, or all that it matches; items of one group stay in one split",
    )
    max_reject_share: float = Field(0.2, ge=0, le=1, description="share of rejected items above which the stage fails")
    kinds: Literal["all", "video", "image"] = Field("all", description="which items of the manifest to take")

    @field_validator("group_pattern")
    @classmethod
    def _is_a_pattern(cls, value: str) -> str:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"not a regular expression: {error}") from error
        return value


# What decides how an item's frames look, or whether it has any.
DECIDING = {"frames", "size", "quality", "decoder", "timeout", "max_bytes", "max_pixels", "max_memory"}


def run(config: Config, inputs: dict[str, Path], out: Path, resources: Resources) -> Outcome:
    """inputs: `data`, a manifest or a folder of videos, with annotation files under the names of the splits if they
    say what is in it, and the `root` from which their names count; or `sample`, the rendered sample, and
    Config.manifest in it.

    Writes shards, index.parquet, rejects.parquet, units.parquet (see stages/corpora/reuse.py), statistics.json,
    overlap.parquet and pictures/samples.png. Memory does not grow with the number of items.
    """
    source = inputs["sample"] / config.manifest if config.manifest else inputs["data"]
    parts = out / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    if not resources.dask:  # whose tasks may outlive a pipeline that was killed
        for left in (*out.rglob(".*.part"), *parts.glob(".fetched.*")):  # by processes that were killed
            left.unlink(missing_ok=True)
    annotations = {split: inputs[split] for split in SPLITS if split in inputs}
    records = scan_source(source, annotations, inputs.get("root"), config.group_pattern)
    wanted = (r for r in records if config.kinds == "all" or isinstance(r, Reject) or r.kind == config.kinds)
    with Plan.make(parts, wanted, config.validation, config.test, config.seed, config.samples_per_shard) as plan:
        check_texts(source, plan)
        if not config.group_pattern:
            hint_at_groups(plan)
        remember(out)
        with progress("decoding", plan.count("rows"), "items") as advance:
            todo = unfinished(plan, config, out, advance)
            for unit, _ in do_units(todo, partial(do_unit, config=config, out=out), resources):
                advance(len(unit.rows))
        outcome = join(plan, out)
        outcome.counts |= write_overlap(out, COMPARED)
        draw_samples(out)
        check_rejects(source, config, plan, outcome, out)
    return outcome


def check_texts(source: Location, plan: Plan) -> None:
    """Raises InputError where no item has a caption or a question: nothing could be learned from it."""
    if not plan.count("rows"):
        bad = next(plan.rejects(), None)
        raise InputError(f"{source}: no rows of these kinds" if bad is None else f"{source}: {bad.id}: {bad.detail}")
    if not any(texts["items"] for texts in plan.texts_by_split().values()):
        hint = (
            "put each video's captions, one a line, in a .txt beside it"
            if Path(source).is_dir()
            else "fill the column 'captions'"
        )
        raise InputError(f"{source}: no captions and no questions at all; {hint}")


def hint_at_groups(plan: Plan) -> None:
    """Prints a hint if splits were made and files are named like clips of a few videos."""
    if alike := plan.names_alike():
        last = alike.prefix[-1]
        pattern = "(.+?)" + ("" if last.isalnum() else re.escape(last)) + r"\d+\.[^.]+$"
        print(
            f"hint: the names of {alike.items} files differ from others only in a number, such as "
            f"{' and '.join(alike.examples)}; if they are clips of one video, group_pattern = '{pattern}' keeps them "
            "in one split",
            file=sys.stderr,
            flush=True,
        )


def check_rejects(source: Location, config: Config, plan: Plan, outcome: Outcome, out: Path) -> None:
    """Raises InputError if too many items were rejected; a rerun decodes their units again."""
    rejected, total = outcome.counts["rejected"], outcome.counts["items"]
    if rejected > config.max_reject_share * total:
        reasons = Counter(pq.read_table(out / "rejects.parquet", columns=["reason"])["reason"].to_pylist())
        forget_rejects(plan, out)
        raise InputError(
            f"{source}: {rejected} of {total} items were rejected, more than "
            f"max_reject_share = {config.max_reject_share:g} allows "
            f"({', '.join(f'{n} {reason}' for reason, n in reasons.most_common())}); "
            f"see {out / 'rejects.parquet'}"
        )


def part(name: str, kind: str, out: Path) -> Path:
    """Where a unit's part of the index, of the rejects, or what is known of it lies until the stage ends."""
    return out / "parts" / f"{name}.{kind}"


def finished(unit: Unit, config: Config, out: Path) -> bool:
    """Whether a unit was done before an interruption, and of the files that lie there now."""
    end = part(unit.name, "rejects.parquet", out)
    if not end.is_file():
        return False
    if read_json(part(unit.name, "json", out))["key"] == unit_key(unit, config):
        return True
    end.unlink()
    return False


def unfinished(plan: Plan, config: Config, out: Path, advance: Any) -> Iterator[Unit]:
    """The units that are to be done; `advance` is told of the others."""
    for unit in plan.units():
        if finished(unit, config, out):
            advance(len(unit.rows))
        else:
            yield unit


def do_unit(unit: Unit, config: Config, out: Path) -> None:
    """Makes the shard of a unit and writes its part of the index, statistics and rejects.

    The shard is that of an earlier artifact where one has it, else its items are decoded.
    """
    key = unit_key(unit, config)
    taken = take_over(key, unit.name, [row.id for row in unit.rows], out)
    if taken is None:
        rejects, sums = write_shard(unit, config, out)
        shard = out / f"{unit.name}.tar"
        index = index_shard(shard) if shard.is_file() else INDEX.empty_table()
        sha256 = checksum(shard) if shard.is_file() else ""
        made = WrittenShard(unit.name, key, sha256, index.num_rows, len(rejects), sums.ravel().tolist())
        rejected = pa.Table.from_pylist([r.model_dump() for r in rejects], schema=REJECTS)
    else:
        made, index, rejected = taken
    pq.write_table(index, part(unit.name, "index.parquet", out))
    write_json(part(unit.name, "json", out), vars(made) | {"decoded": taken is None})
    # The rejects come last: this file says that the unit is done.
    with atomic_write(part(unit.name, "rejects.parquet", out)) as temporary:
        pq.write_table(rejected, temporary)
    part(unit.name, "suspects", out).unlink(missing_ok=True)


def unit_key(unit: Unit, config: Config) -> str:
    """What decides a shard: its rows, where their files lie, their size and time of change, and the settings."""
    files = identities(row.path for row in unit.rows)
    rows = [
        row.model_dump(mode="json") | {"path": without_credentials(str(row.path), keep_query=True), "file": file}
        for row, file in zip(unit.rows, files, strict=True)
    ]
    return digest(
        {"version": VERSION, "config": config.model_dump(include=DECIDING), "rows": rows, **decoder_files(config)}
    )


def decoder_files(config: Config) -> dict[str, str]:
    """The version of the ffmpeg binary, if it decodes every video. With `auto` it only decodes what PyAV cannot, and
    its version is in the artifact's record instead of the fingerprint."""
    return {"ffmpeg": ffmpeg_version()} if config.decoder == "ffmpeg" else {}


def write_shard(unit: Unit, config: Config, out: Path) -> tuple[list[Reject], np.ndarray]:
    """Decodes the items of a unit into its shard. Returns the rejects and the sums of the frames' pixels."""
    rejects, sums = [], np.zeros((3, 3))
    suspected = Suspects(part(unit.name, "suspects", out))
    with ShardWriter(out / f"{unit.name}.tar", config.quality) as writer, suspected as suspects:
        for number, row in enumerate(unit.rows):
            try:
                if not row.captions and not row.questions:
                    raise DecodeError("no text")
                with fetched(row.path, config.max_bytes, out / "parts") as path:
                    suspects.at(number)
                    clip = (decode_apart if number in suspects.found else decode_watched)(row, path, config)
            except DecodeError as error:
                rejects.append(Reject(id=row.id, path=row.file_name, reason=error.reason, detail=error.detail))
                continue
            writer.write(row, clip)
            sums += pixel_sums(clip.frames)
    return rejects, sums


class Suspects:
    """The items of a unit at which a process that decoded it has died, remembered in a file.

    The number of each item is written before it is decoded. Where the file is found, the process died at the last.
    """

    def __init__(self, path: Path):
        self.path = path

    def __enter__(self) -> "Suspects":
        self.found = {int(n) for n in self.path.read_text().split("\n")[:-1]} if self.path.is_file() else set()
        self.file = open(self.path, "a")
        self.size = self.file.tell()
        return self

    def at(self, number: int) -> None:
        if number not in self.found:
            self.file.truncate(self.size)
            self.file.write(f"{number}\n")
            self.file.flush()

    def __exit__(self, *exception: object) -> None:
        """The process lives: the item it was at, if any, has not killed it."""
        self.file.truncate(self.size)
        self.file.close()


def most_seconds(config: Config) -> float:
    """What an item can take where all heed their time limit, on a machine that is busy with others."""
    return config.timeout + 30


def decode_watched(row: Row, path: Path, config: Config) -> Clip:
    """`decode`; a decoder that hangs ends this process, and the next one decodes the item apart."""
    with ended_after(most_seconds(config)):
        return decode(row, path, config)


def decode_apart(row: Row, path: Path, config: Config) -> Clip:
    """`decode` in a process of its own, for an item at which a process has died. It may not have been its fault, so
    it is tried twice; then the ffmpeg binary may try it, which crashes alone."""
    try:
        try:
            return in_own_process(decode, row, path, config, seconds=most_seconds(config))
        except Died:
            return in_own_process(decode, row, path, config, seconds=most_seconds(config))
    except TimeoutError as error:
        raise DecodeError("too slow", f"the decoder hangs, {error}") from None
    except Died as error:
        if row.kind == "video" and config.decoder == "auto":
            return decode(row, path, config.model_copy(update={"decoder": "ffmpeg"}))
        raise DecodeError("crashed", str(error)) from None


def decode(row: Row, path: Path, config: Config) -> Clip:
    """The frames of an item, of its file on this machine.

    Raises DecodeError with the reason if there are none, whatever a decoder raises: one file does not end a corpus.
    A missing decoder (InputError) and a full disk are no faults of the file and are raised as they are.
    """
    limits = Limits(config.timeout, config.max_memory, config.max_pixels)
    try:
        if row.kind == "image":
            return decode_image(path, config.size, limits, keep_ratio=True)
        return decode_video(path, config.frames, config.size, row.start, row.end, config.decoder, limits)
    except (DecodeError, InputError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            raise
        message = " ".join([f"{type(error).__name__}:", *str(error).split()]).rstrip(":")
        raise DecodeError("unexpected error", message) from error


@contextmanager
def fetched(location: Location, max_bytes: int, folder: Path) -> Iterator[Path]:
    """A file of this machine; of a URL, a copy for the time being. Raises DecodeError where there is none to be had."""
    with ExitStack() as stack:
        try:
            path = stack.enter_context(local_copy(location, max_bytes, folder, FETCH_SECONDS))
        except FileNotFoundError:
            raise DecodeError("missing") from None
        except TooLarge as error:
            raise DecodeError("too large", str(error)) from None
        except OSError as error:
            if error.errno is not None:  # this machine's, such as a full disk
                raise
            raise DecodeError("not fetched", str(error)) from None
        if isinstance(location, Path):
            with suppress(OSError, ValueError):  # what is no file is told by its decoder
                if (size := path.stat().st_size) > max_bytes:
                    raise DecodeError("too large", f"{size} bytes")
        yield path


def forget_rejects(plan: Plan, out: Path) -> None:
    """Deletes what was made of every unit that has rejects: a rerun does it again, since the cause may be mended."""
    for name in plan.names():
        made = [part(name, kind, out) for kind in ("rejects.parquet", "index.parquet", "json")]
        if pq.read_metadata(made[0]).num_rows:
            for path in (*made, out / f"{name}.tar"):  # the rejects first: they say that the unit is done
                path.unlink(missing_ok=True)


def join(plan: Plan, out: Path) -> Outcome:
    """The parts of all units to one index, one table of rejects, one of units, and statistics.

    Checks that the counts add up.
    """
    counted, linked, training, everything = Counted(), 0, np.zeros(9), np.zeros(9)
    bad = (pa.Table.from_pylist([reject.model_dump()], schema=REJECTS) for reject in plan.rejects())

    def units() -> Iterator[pa.Table]:
        nonlocal linked
        for name in plan.names():
            made = read_json(part(name, "json", out))
            everything[:] += made["sums"]
            training[:] += np.array(made["sums"]) * name.startswith("train")
            linked += 0 if made.pop("decoded") else made["samples"]
            yield pa.Table.from_pylist([made], schema=UNITS)

    def parts(kind: str) -> Iterator[pa.Table]:
        return (pq.read_table(part(name, kind, out)) for name in plan.names())

    write_tables(out / "index.parquet", INDEX, map(counted.samples, parts("index.parquet")))
    write_tables(out / "rejects.parquet", REJECTS, map(counted.rejects, chain(bad, parts("rejects.parquet"))))
    write_tables(out / "units.parquet", UNITS, units())
    counts = counted.all() | {"linked": linked}
    assert counts["items"] == plan.count("rows") + plan.count("rejects")
    sums = (training if training.any() else everything).reshape(3, 3)
    write_json(out / "statistics.json", pixel_statistics(sums) | counted.statistics(plan.texts_by_split()))
    return Outcome(counts)
