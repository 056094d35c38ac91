"""Manifest to frames to WebDataset shards: every item ends in exactly one of a shard or rejects.parquet."""

from collections import Counter
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image
from pydantic import Field

from shards.annotations import read_source
from shards.decode import Clip, DecodeError, Decoder, decode_image, decode_video
from shards.manifest import assign_splits
from shards.reader import Sample, ShardReader
from shards.sampling import segment_starts
from shards.schema import INDEX, REJECTS, SPLITS, InputError, Reject, Row
from shards.writer import ShardWriter, index_shard
from stages.artifacts import Outcome, Resources, StageConfig, write_json
from stages.pictures import clip_strip, sheet
from stages.progress import progress
from stages.workers import do_units

VERSION = 3


class Config(StageConfig):
    """How one corpus becomes shards."""

    manifest: str = Field(
        "", description="the manifest's name inside the rendered sample; empty: the file or folder given"
    )
    frames: int = Field(16, ge=1, description="frames stored of a video, the first of each of so many equal segments")
    size: int = Field(256, ge=16, description="height and width of a stored frame, pixels")
    quality: int = Field(90, ge=1, le=100, description="JPEG quality of stored frames")
    decoder: Decoder = Field("auto", description="auto: PyAV, and ffmpeg where it fails; or one of them alone")
    timeout: float = Field(60.0, gt=0, description="seconds after which a video is rejected")
    samples_per_shard: int = Field(256, ge=1, description="items that go to one shard, rejects included")
    validation: float = Field(
        0.1, ge=0, lt=1, description="share of the videos for validation, where no split is given"
    )
    test: float = Field(0.1, ge=0, lt=1, description="share of the videos for testing, where no split is given")
    seed: int = Field(0, ge=0, description="seed of the split")
    most_rejects: float = Field(0.2, ge=0, le=1, description="share of rejected items above which the stage fails")
    kinds: Literal["all", "video", "image"] = Field("all", description="which items of the manifest to take")


@dataclass(frozen=True)
class Unit:
    """The items of one shard: what one worker does without knowing of others."""

    name: str
    rows: list[Row]


def run(config: Config, inputs: dict[str, Path], out: Path, resources: Resources) -> Outcome:
    """inputs: `data`, a manifest or a folder of videos, with annotation files under the names of the splits where
    they say what is in it; or `sample`, the rendered sample, and Config.manifest in it."""
    source = inputs["sample"] / config.manifest if config.manifest else inputs["data"]
    rows, rejects = read_source(source, {split: inputs[split] for split in SPLITS if split in inputs})
    if config.kinds != "all":
        rows = [row for row in rows if row.kind == config.kinds]
    check_texts(source, rows)
    total = len(rows) + len(rejects)
    units = plan(assign_splits(rows, config.validation, config.test, config.seed), config.samples_per_shard)
    do = partial(do_unit, config=config, out=out)
    # A file that crashes its decoder is decoded by the ffmpeg binary, which crashes alone.
    rescue = partial(do_unit, config=config.model_copy(update={"decoder": "ffmpeg"}), out=out)
    with progress("decoding", len(rows), "items") as advance:
        left = [unit for unit in units if not finished(unit, out)]
        advance(len(rows) - sum(len(unit.rows) for unit in left))
        for unit in do_units(left, do, rescue, resources):
            advance(len(unit.rows))
    outcome, table = join(units, rejects, out)
    draw_samples(out)
    rejected = outcome.counts["rejected"]
    if rejected > config.most_rejects * total:
        forget_rejects(units, out)
        raise InputError(
            f"{source}: {rejected} of {total} items were rejected, more than most_rejects = {config.most_rejects:g} "
            f"allows (most often: {most_common_reason(table)}); see {out / 'rejects.parquet'}"
        )
    return outcome


def check_texts(source: Path, rows: list[Row]) -> None:
    """Raises InputError where no item has a caption or a question: nothing could be learned from it."""
    if not any(row.captions or row.questions for row in rows):
        hint = (
            "put each video's captions, one a line, in a .txt beside it"
            if source.is_dir()
            else "fill the column 'captions'"
        )
        raise InputError(f"{source}: no captions and no questions at all; {hint}")


def plan(rows: list[Row], per_shard: int) -> list[Unit]:
    """The units, which depend on the manifest alone: shards of one split and one kind, in the manifest's order."""
    units = []
    for split in SPLITS:
        for kind in ("video", "image"):
            chosen = [row for row in rows if row.split == split and row.kind == kind]
            for number, at in enumerate(range(0, len(chosen), per_shard)):
                units.append(Unit(f"{split}-{kind}-{number:05d}", chosen[at : at + per_shard]))
    return units


def finished(unit: Unit, out: Path) -> bool:
    return (out / "parts" / f"{unit.name}.rejects.parquet").is_file()


def do_unit(unit: Unit, config: Config, out: Path) -> None:
    """Decodes the items of one unit into its shard and writes its part of the index, statistics and rejects."""
    parts = out / "parts"
    parts.mkdir(parents=True, exist_ok=True)
    shard = out / f"{unit.name}.tar"
    writer = ShardWriter(shard, config.quality)
    rejects, sums = [], np.zeros((3, 3))
    for row in unit.rows:
        try:
            clip = decode(row, config)
        except DecodeError as error:
            rejects.append(Reject(id=row.id, path=str(row.path.name), reason=str(error)))
            continue
        writer.write(row, clip)
        sums += pixel_sums(clip)
    writer.close()
    if writer.count:
        pq.write_table(index_shard(shard), parts / f"{unit.name}.index.parquet")
    write_json(parts / f"{unit.name}.sums.json", sums.tolist())
    # The rejects come last: this file says that the unit is done.
    temporary = parts / f".{unit.name}.part"
    pq.write_table(pa.Table.from_pylist([r.model_dump() for r in rejects], schema=REJECTS), temporary)
    temporary.rename(parts / f"{unit.name}.rejects.parquet")


def forget_rejects(units: list[Unit], out: Path) -> None:
    """Deletes what was made of every unit that has rejects: a rerun does it again, since the cause may be mended."""
    for unit in units:
        made = [out / "parts" / f"{unit.name}.{kind}" for kind in ("rejects.parquet", "index.parquet", "sums.json")]
        if pq.read_metadata(made[0]).num_rows:
            for path in (*made, out / f"{unit.name}.tar"):  # the rejects first: they say that the unit is done
                path.unlink(missing_ok=True)


def decode(row: Row, config: Config) -> Clip:
    """The frames of an item. Raises DecodeError with the reason where there are none, or nothing was said of it."""
    if not row.captions and not row.questions:
        raise DecodeError("neither caption nor question")
    if row.kind == "image":
        return decode_image(row.path, config.size)
    return decode_video(row.path, config.frames, config.size, row.start, row.end, config.decoder, config.timeout)


def pixel_sums(clip: Clip) -> np.ndarray:
    """Count, sum and sum of squares of the pixels of each channel: (3, 3)."""
    pixels = clip.frames.reshape(-1, 3).astype(np.float64) / 255
    return np.stack([np.full(3, float(len(pixels))), pixels.sum(0), (pixels**2).sum(0)])


def join(units: list[Unit], rejects: list[Reject], out: Path) -> tuple[Outcome, pa.Table]:
    """The parts of all units to one index, one table of rejects and statistics; checks that the counts add up."""
    parts = out / "parts"
    indexes = [parts / f"{unit.name}.index.parquet" for unit in units]
    index = pa.concat_tables([INDEX.empty_table(), *(pq.read_table(p) for p in indexes if p.is_file())])
    bad = [pa.Table.from_pylist([r.model_dump() for r in rejects], schema=REJECTS)]
    rejected = pa.concat_tables(bad + [pq.read_table(parts / f"{unit.name}.rejects.parquet") for unit in units])
    assert index.num_rows + rejected.num_rows == sum(len(unit.rows) for unit in units) + len(rejects)
    pq.write_table(index, out / "index.parquet")
    pq.write_table(rejected, out / "rejects.parquet")
    counts = count(index, rejected)
    write_json(out / "statistics.json", statistics(units, index, rejected, parts))
    return Outcome(counts), rejected


def count(index: pa.Table, rejected: pa.Table) -> dict[str, int]:
    split, kind = Counter(index["split"].to_pylist()), Counter(index["kind"].to_pylist())
    captions = sum(len(c) for c in index["captions"].to_pylist())
    questions = sum(len(q) for q in index["questions"].to_pylist())
    return {
        "items": index.num_rows + rejected.num_rows,
        "samples": index.num_rows,
        "rejected": rejected.num_rows,
        "videos": kind["video"],
        "images": kind["image"],
        **{name: split[name] for name in SPLITS},
        "captions": captions,
        "questions": questions,
    }


def statistics(units: list[Unit], index: pa.Table, rejected: pa.Table, parts: Path) -> dict[str, Any]:
    """Mean and standard deviation of the training frames' channels, seconds of video, and why items were rejected."""
    import json

    training = [u for u in units if u.name.startswith("train")] or units
    sums = sum((np.array(json.loads((parts / f"{u.name}.sums.json").read_text())) for u in training), np.zeros((3, 3)))
    pixels = np.maximum(sums[0], 1)
    mean = sums[1] / pixels
    return {
        "mean": mean.round(5).tolist(),
        "std": np.sqrt(np.maximum(sums[2] / pixels - mean**2, 1e-6)).round(5).tolist(),
        "hours": round(sum(index["duration"].to_pylist()) / 3600, 4),
        "splits": {split: decoded_of(units, index, split) for split in SPLITS},
        "reasons": dict(Counter(rejected["reason"].to_pylist()).most_common()),
    }


def decoded_of(units: list[Unit], index: pa.Table, split: str) -> dict[str, list[int]]:
    """Items, captions and questions of a split: how many were decoded, and of how many.

    An item of which nothing was said counts as neither.
    """
    asked = [row for unit in units for row in unit.rows if row.split == split and (row.captions or row.questions)]
    mine = index.filter(pc.equal(index["split"], split))
    captions, questions = (sum(map(len, mine[name].to_pylist())) for name in ("captions", "questions"))
    return {
        "items": [mine.num_rows, len(asked)],
        "captions": [captions, sum(len(row.captions) for row in asked)],
        "questions": [questions, sum(len(row.questions) for row in asked)],
    }


def draw_samples(out: Path, count: int = 8) -> None:
    """pictures/samples.png: some samples, evenly over the corpus, with what was said of them."""
    reader = ShardReader(out)
    rows = [sample_strip(reader[number]) for number in segment_starts(len(reader), min(count, len(reader)))]
    if rows:
        (out / "pictures").mkdir(exist_ok=True)
        sheet(rows, columns=2 if len(rows) > 1 else 1).save(out / "pictures" / "samples.png")


def sample_strip(sample: Sample) -> Image.Image:
    """Four frames of a sample with what was said of it."""
    frames = sample.frames(segment_starts(len(sample), 4 if len(sample) > 1 else 1))
    said = [*sample.about["captions"][:2], *(f"{q['question']} {q['answer']}" for q in sample.about["questions"][:2])]
    return clip_strip(frames, [f"{sample.about['id']} ({sample.about['split']})", *said])


def most_common_reason(rejected: pa.Table) -> str:
    return Counter(rejected["reason"].to_pylist()).most_common(1)[0][0]
