"""Splits keep groups whole; every row is in one unit, and a new or removed row changes few units."""

import gc
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpro.shards.schema import SPLITS, Reject, Row
from alpro.shards.sources.manifest import scan_manifest
from alpro.shards.sources.plan import DecodePlan, DecodeUnit, SimilarNames


@contextmanager
def plan_of(records: list[Row | Reject], **how) -> Iterator[DecodePlan]:
    """The plan of some rows."""
    with TemporaryDirectory() as folder, DecodePlan.create(Path(folder), iter(records), **how) as plan:
        yield plan


def units_of(rows: list[Row], **how) -> list[DecodeUnit]:
    with plan_of(list(rows), **how) as plan:
        return list(plan.units())


def assign_splits(rows: list[Row], validation: float, test: float, seed: int) -> list[Row]:
    """The rows with their splits, in their original order."""
    done = {row.id: row for unit in units_of(rows, validation=validation, test=test, seed=seed) for row in unit.rows}
    return [done[row.id] for row in rows]


def rows_of(groups: list[int], split: str = "") -> list[Row]:
    return [
        Row(id=str(number), path=Path("a.mp4"), kind="video", group=f"group {group}", split=split)
        for number, group in enumerate(groups)
    ]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=60),
    st.integers(0, 2**31),
    st.sets(st.integers(0, 59)),
    st.randoms(use_true_random=False),
)
def test_a_generated_split_depends_on_the_group_alone(groups: list[int], seed: int, removed: set[int], random):
    """Groups stay whole; rows that are added, removed, reordered or change their texts move no other row."""
    rows = rows_of(groups)
    done = assign_splits(rows, validation=0.2, test=0.1, seed=seed)
    assert [row.id for row in done] == [row.id for row in rows]
    split_of = {row.group: row.split for row in done}
    assert {(row.group, row.split) for row in done} == split_of.items()  # one split for each group
    kept = [row for number, row in enumerate(rows) if number not in removed]
    changed = random.sample([row.model_copy(update={"captions": ("new",)}) for row in kept], len(kept))
    added = [row.model_copy(update={"id": f"new {row.id}"}) for row in rows_of(list(range(40, 50)))]
    for row in assign_splits([*added, *changed], validation=0.2, test=0.1, seed=seed):
        assert row.split == split_of.get(row.group, row.split)


def test_generated_splits_have_the_given_shares():
    splits = [row.split for row in assign_splits(rows_of(list(range(2000))), validation=0.2, test=0.1, seed=0)]
    assert abs(splits.count("test") - 200) < 45  # three standard deviations of a drawn number
    assert abs(splits.count("validation") - 400) < 55
    assert {row.split for row in assign_splits(rows_of([1, 2, 3]), 0.0, 0.0, 0)} == {"train"}
    assert {row.split for row in assign_splits(rows_of([1, 2, 3]), 0.6, 0.6, 0)} <= {"test", "validation"}
    # SHA-256 of "0/group N" as a fraction: 0.90, 0.18, 0.27, 0.16, 0.78, 0.40, 0.21, 0.51; a corpus keeps its splits
    drawn = [row.split[:2] for row in assign_splits(rows_of(list(range(8))), 0.1, 0.17, 0)]
    assert drawn == ["tr", "va", "tr", "te", "tr", "tr", "va", "tr"]


def test_another_seed_gives_another_split():
    rows = rows_of(list(range(40)))
    first, again, other = ([row.split for row in assign_splits(rows, 0.25, 0.25, seed)] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_clips_of_one_video_stay_in_one_split(tmp_path):
    clips = [{"path": f"{v}.mp4", "caption": "x", "start": s, "end": s + 1} for v in range(10) for s in range(3)]
    (tmp_path / "clips.jsonl").write_text("".join(json.dumps(clip) + "\n" for clip in clips))
    rows = [
        row for unit in units_of(scan_manifest(tmp_path / "clips.jsonl"), validation=0.3, test=0.3) for row in unit.rows
    ]
    assert len({(row.path, row.split) for row in rows}) == 10
    assert {row.split for row in rows} == {"train", "validation", "test"}


def files(*names: str, **more) -> list[Row]:
    return [Row(id=name, path=Path(name), kind="video", **{"group": name, **more}) for name in names]


CLIPS = [
    *("star_AB_0.mp4", "star_AB_1.mp4", "star_CD_10.mp4", "star_CD_11.mp4", "star_CD_12.mp4", "star_EF_1.mp4"),
    *("star_EF_2.mp4", "one.mp4", "two.mp4"),
]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (files(*CLIPS), SimilarNames(7, "star_AB_", ("star_AB_0.mp4", "star_AB_1.mp4"))),
        (files(*(f"tv/{name}" for name in CLIPS)), SimilarNames(7, "star_AB_", ("star_AB_0.mp4", "star_AB_1.mp4"))),
        (files(*CLIPS, split="train"), None),  # the rows have splits
        ([row for n, name in enumerate(CLIPS) for row in files(name, group=f"of {n}")], None),  # the rows have groups
        (files(*(f"video{n}.mp4" for n in range(9))), None),  # that is the name of the data set
        (files("a1.mp4", "a2.mp4", "b1.mp4", "b2.mp4", "c.mp4"), None),
        # Five files of one name beside three small groups: rather a collection of videos than the clips of one.
        (files(*CLIPS, *(f"auto_{n}.mp4" for n in range(5))), None),
        (files("one.mp4", "two.mp4", "three.mp4"), None),
        (files(*CLIPS[:1], *CLIPS[2:3], "other.mp4"), None),
        ([], None),
    ],
)
def test_similar_file_names_are_detected(rows, expected):
    with plan_of(rows, validation=0.2, test=0.2) as plan:
        assert plan.similar_names() == expected
    with plan_of(rows) as plan:  # all for training
        assert plan.similar_names() is None


def test_windows_of_a_file_count_as_one_file():
    windows = [row.model_copy(update={"id": f"{n}"}) for n, row in enumerate(files("star_AB_1.mp4", "star_AB_1.mp4"))]
    with plan_of([*windows, *files("b.mp4", "c.mp4")], validation=0.2, test=0.2) as plan:
        assert plan.similar_names() is None


def test_given_splits_are_kept_and_other_rows_are_for_training():
    names = ["train", "validation", "", "test", ""]
    rows = [Row(id=str(i), path=Path(f"{i}.mp4"), kind="video", split=name) for i, name in enumerate(names)]
    splits = [row.split for row in assign_splits(rows, 0.5, 0.5, seed=0)]
    assert splits == ["train", "validation", "train", "test", "train"]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(SPLITS), st.sampled_from(["video", "image"])), max_size=30),
    st.integers(1, 9),
)
def test_every_row_is_in_one_unit_of_its_split_and_kind(items, most):
    rows = [Row(id=str(n), path=Path("a"), kind=kind, split=split) for n, (split, kind) in enumerate(items)]
    units = units_of(rows, max_rows=most)
    assert sorted(row.id for unit in units for row in unit.rows) == sorted(row.id for row in rows)
    assert len({unit.name for unit in units}) == len(units)
    last = {unit.name.rpartition("-")[0]: unit.name for unit in units}
    for unit in units:
        place = unit.name.rpartition("-")[0]
        assert (1 if unit.name == last[place] else most // 2) <= len(unit.rows) <= most
        assert {f"{row.split}-{row.kind}" for row in unit.rows} == {place}
        numbers = [int(row.id) for row in unit.rows]
        assert numbers == sorted(numbers)


def contents(units: list[DecodeUnit]) -> set[tuple[str, ...]]:
    return {tuple(row.id for row in unit.rows) for unit in units}


def new(rows: list[Row]) -> Row:
    return rows[0].model_copy(update={"id": "new"})


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[:70] + rows[71:],
        lambda rows: [*rows[:70], new(rows), *rows[70:]],
        lambda rows: [new(rows), *rows],
        lambda rows: [*rows, new(rows)],
    ],
    ids=["removed", "inserted", "first", "last"],
)
def test_adding_or_removing_a_row_changes_few_units(change):
    rows = [Row(id=f"clip {n}", path=Path("a"), kind="video", split="train") for n in range(1000)]
    before, after = (contents(units_of(r, max_rows=16)) for r in (rows, change(rows)))
    assert len(before) > 62
    assert len(before - after) <= 4


def test_rejects_are_kept_in_order_and_counted():
    bad = [Reject(id=f"line {n}", path="", reason="bad row", detail="no path") for n in (2, 5)]
    with plan_of([bad[0], Row(id="a", path=Path("a"), kind="video", captions=("x", "y")), bad[1]]) as plan:
        assert list(plan.rejects()) == bad
        assert (plan.count("rows"), plan.count("rejects"), plan.count("units")) == (1, 2, 1)
        assert plan.texts_by_split()["train"] == {"items": 1, "captions": 2, "questions": 0}


def test_urls_are_preserved():
    rows = [Row(id="a", path="s3://bucket/a.mp4", kind="video"), Row(id="b", path=Path("/b.mp4"), kind="video")]
    (unit,) = units_of(rows)
    assert [row.path for row in unit.rows] == ["s3://bucket/a.mp4", Path("/b.mp4")]


def held() -> int:
    """How many rows are in memory."""
    return sum(type(one) is Row for one in gc.get_objects())


def test_few_rows_are_in_memory(tmp_path):
    lines = (json.dumps({"path": f"{number}.mp4", "captions": ["a man rides", "a horse"]}) for number in range(1000))
    (tmp_path / "m.jsonl").write_text("\n".join(lines))
    before, most = held(), 0

    def watched(rows: Iterable[Row | Reject]) -> Iterator[Row | Reject]:
        nonlocal most
        for number, row in enumerate(rows):
            most = max(most, held()) if number % 300 == 299 else most
            yield row

    with DecodePlan.create(tmp_path, watched(scan_manifest(tmp_path / "m.jsonl")), 0.1, 0.1, max_rows=64) as plan:
        assert most - before <= 3
        assert max(held() - before for number, _ in enumerate(plan.units()) if number % 4 == 3) <= 2 * 64
        assert plan.count("units") > 15
