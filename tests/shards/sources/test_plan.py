"""A source is imported once into a table; every record is a row or a reject; every row is in one
unit and one split."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alpro.errors import InputError
from alpro.files import write_json
from alpro.shards.schema import SPLITS, MissingItem, Reject, Row
from alpro.shards.sources.manifest import Manifest, write_manifest
from alpro.shards.sources.plan import DecodePlan, DecodeUnit

pytestmark = pytest.mark.usefixtures("small_row_groups")


@contextmanager
def plan_of(records: list[Row | Reject], **how) -> Iterator[DecodePlan]:
    """The plan of some rows."""
    with TemporaryDirectory() as folder:
        about = write_manifest(iter(records), Path(folder), Path("source"))
        write_json(Path(folder) / "about.json", {"source": "source"} | about)
        yield DecodePlan(Manifest(Path(folder)), **how)


def units_of(rows: list[Row], **how) -> list[DecodeUnit]:
    with plan_of(list(rows), **how) as plan:
        return list(plan.units())


def assign_splits(
    rows: list[Row], validation: float, test: float, seed: int
) -> list[Row]:
    """The rows with their splits, in their original order."""
    done = {
        row.id: row
        for unit in units_of(rows, validation=validation, test=test, seed=seed)
        for row in unit.rows
    }
    return [done[row.id] for row in rows]


def rows_of(groups: list[int], split: str = "") -> list[Row]:
    return [
        Row(
            id=str(number),
            path=Path("a.mp4"),
            kind="video",
            group=f"group {group}",
            split=split,
        )
        for number, group in enumerate(groups)
    ]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.integers(0, 30), min_size=1, max_size=60),
    st.integers(0, 2**31),
    st.sets(st.integers(0, 59)),
    st.randoms(use_true_random=False),
)
def test_a_generated_split_depends_on_the_group_alone(
    groups: list[int], seed: int, removed: set[int], random
):
    """Groups stay whole; rows that are added, removed, reordered or change their texts move no
    other row."""
    rows = rows_of(groups)
    done = assign_splits(rows, validation=0.2, test=0.1, seed=seed)
    assert [row.id for row in done] == [row.id for row in rows]
    split_of = {row.group: row.split for row in done}
    # One split for each group.
    assert {(row.group, row.split) for row in done} == split_of.items()
    kept = [row for number, row in enumerate(rows) if number not in removed]
    changed = random.sample(
        [row.model_copy(update={"captions": ("new",)}) for row in kept], len(kept)
    )
    added = [
        row.model_copy(update={"id": f"new {row.id}"})
        for row in rows_of(list(range(40, 50)))
    ]
    for row in assign_splits([*added, *changed], validation=0.2, test=0.1, seed=seed):
        assert row.split == split_of.get(row.group, row.split)


def test_generated_splits_have_the_given_shares():
    rows = rows_of(list(range(600)))

    splits = [
        row.split for row in assign_splits(rows, validation=0.2, test=0.1, seed=0)
    ]

    # Three standard deviations of a drawn number.
    assert abs(splits.count("test") - 60) < 22
    assert abs(splits.count("validation") - 120) < 30


@pytest.mark.parametrize(
    ("seed", "expected"),
    # SHA-256 of "0/group N" as a fraction: 0.90, 0.18, 0.27, 0.16, 0.78, 0.40, 0.21, 0.51.
    [(0, "tr va tr te tr tr va tr"), (1, "tr te tr tr tr tr tr te")],
)
def test_a_corpus_keeps_its_splits(seed, expected):
    rows = assign_splits(rows_of(list(range(8))), validation=0.1, test=0.17, seed=seed)

    assert " ".join(row.split[:2] for row in rows) == expected


def test_a_row_without_a_split_is_for_training_if_others_have_one():
    rows = [row for split in ("", "test") for row in rows_of([0], split)]
    rows[0] = rows[0].model_copy(update={"id": "x"})

    assert [row.split for row in assign_splits(rows, 0.5, 0.5, 0)] == ["train", "test"]


def files(*names: str, **more) -> list[Row]:
    return [
        Row(id=name, path=Path(name), kind="video", name=name, **more) for name in names
    ]


CLIPS = [
    "star_AB_0.mp4",
    "star_AB_1.mp4",
    "star_CD_10.mp4",
    "star_CD_11.mp4",
    "star_EF_1.mp4",
    "star_EF_2.mp4",
    "one.mp4",
    "two.mp4",
]
GOPRO = [
    "2024-07-01_GX010042.MP4",
    "GX020042.MP4",
    "GH010043.MP4",
    "GH020043.MP4",
    "a/GOPR0198.MP4",
]
GOPRO += ["a/GP010198.MP4", "a/GP020198.MP4", "b.mp4"]
# Names of files, the key that keeps those of a recording in one split, and their groups.
RECORDINGS = {
    "clips": (CLIPS, "prefix", {"star_AB", "star_CD", "star_EF", "one.mp4", "two.mp4"}),
    "in a folder": (
        [f"tv/{name}" for name in CLIPS[:6]],
        "prefix",
        {f"tv/star_{x}" for x in ("AB", "CD", "EF")},
    ),
    "short names": (
        [f"{a}_{n}.mp4" for a in "abcd" for n in range(2)],
        "prefix",
        {*"abcd"},
    ),
    "parts": (
        [f"{a}-part {n}.mp4" for a in "abcd" for n in range(2)],
        "prefix",
        {f"{a}-part" for a in "abcd"},
    ),
    "no separator": (
        [f"walk{a}{n}.mp4" for a in "abc" for n in "01"],
        "prefix",
        {f"walk{a}" for a in "abc"},
    ),
    "copies": (
        [f"{a} ({n}).mp4" for a in "abc" for n in range(2)] + ["d part 1 of 2.mp4"],
        "prefix",
        {*"abc", "d part"},
    ),
    "times": (
        [f"{a}_{n}_{n + 10}.mp4" for a in "abcd" for n in (0, 10)],
        "times",
        {*"abcd"},
    ),
    "chapters": (GOPRO, "chapters", {"0042", "0043", "0198", "b.mp4"}),
}


@pytest.mark.parametrize("kind", RECORDINGS)
def test_files_of_one_recording_are_hinted_at_with_a_ready_key(kind):
    names, key, groups = RECORDINGS[kind]
    with plan_of(files(*names), validation=0.2, test=0.2) as plan:
        assert f"group_pattern = '{key}'" in plan.group_hint()
    with plan_of(files(*names), validation=0.2, test=0.2, group_pattern=key) as plan:
        assert plan.group_hint() == ""
        assert {row.group for unit in plan.units() for row in unit.rows} == groups


@pytest.mark.parametrize(
    "rows",
    [
        files(*CLIPS, split="train"),
        [row for n, name in enumerate(CLIPS) for row in files(name, group=f"of {n}")],
        files(*(f"video{n}.mp4" for n in range(9))),  # that is the name of the data set
        files("a1.mp4", "a2.mp4", "b1.mp4", "b2.mp4", "c.mp4"),
        # A few groups of many files are rather collections.
        files(
            *(f"{name}_{n}.mp4" for name in ("auto", "more", "some") for n in range(4))
        ),
        files("one.mp4", "two.mp4", "three.mp4"),
        # Parts of a file are one file.
        [row.model_copy(update={"id": n}) for n in "ab" for row in files(CLIPS[0])],
        [],
    ],
)
def test_other_names_are_no_recordings(rows):
    with plan_of(rows, validation=0.2, test=0.2) as plan:
        assert plan.group_hint() == ""


def test_a_named_split_whose_files_are_all_missing_stays_named_and_is_empty():
    """Splits that are drawn instead would have training videos in the test."""
    missing = MissingItem(id="x", path="x.mp4", split="test", captions=1)
    rows = [
        row.model_copy(update={"captions": ("a dog",)}) for row in rows_of([*range(40)])
    ]

    with plan_of([*rows, missing], validation=0.1, test=0.1) as plan:
        items = {split: counts["items"] for split, counts in plan.splits().items()}

    assert items == {"train": 40, "validation": 0, "test": 0}


def test_splits_say_what_they_have_and_why_they_are_empty():
    asked = [
        {"question": "who?", "answer": answer, "type": "who"}
        for answer in ("dog", "cat", "dog")
    ]
    row = Row(
        id="a", path=Path("a"), kind="video", captions=("x", "y"), questions=asked
    )
    for split, says in (
        ("train", "name the splits train (1)"),
        ("", "with test = 0, none of"),
    ):
        with plan_of([row.model_copy(update={"split": split})]) as plan:
            splits = plan.splits()

        assert splits["train"] == {
            "items": 1,
            "captions": 2,
            "questions": 3,
            "why_empty": "",
        }
        assert says in splits["test"]["why_empty"]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from(SPLITS), st.sampled_from(["video", "image"])),
        max_size=30,
    ),
    st.integers(1, 9),
)
def test_every_row_is_in_one_unit_of_its_split_and_kind(items, most):
    rows = [
        Row(id=str(n), path=Path("a"), kind=kind, split=split)
        for n, (split, kind) in enumerate(items)
    ]
    units = units_of(rows, max_rows=most)
    assert sorted(row.id for unit in units for row in unit.rows) == sorted(
        row.id for row in rows
    )
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


def test_adding_or_removing_a_row_changes_few_units():
    rows = [
        Row(id=f"clip {n}", path=Path("a"), kind="video", split="train")
        for n in range(400)
    ]
    new = rows[0].model_copy(update={"id": "new"})
    before = contents(units_of(rows, max_rows=16))
    assert len(before) > 25
    for changed in (
        rows[:70] + rows[71:],
        [*rows[:70], new, *rows[70:]],
        [new, *rows],
        [*rows, new],
    ):
        assert len(before - contents(units_of(changed, max_rows=16))) <= 4


def test_rejects_are_kept_in_order():
    bad = [
        Reject(id=f"line {n}", path="", reason="bad row", detail="no path")
        for n in (2, 5)
    ]

    with plan_of([bad[0], *rows_of([0]), bad[1]]) as plan:
        assert plan.reject_table().to_pylist() == [*map(dict, bad)]


@pytest.mark.parametrize(("kinds", "ids"), [("all", "ab"), ("image", "b")])
def test_rows_of_a_kind_are_planned_and_counted(kinds, ids):
    rows = [
        Row(id="a", path=Path("a"), kind="video", captions=("x", "y")),
        Row(id="b", path=Path("b"), kind="image", captions=("z",)),
    ]

    with plan_of([*rows], kinds=kinds) as plan:
        assert [row.id for unit in plan.units() for row in unit.rows] == [*ids]
        assert plan.splits()["train"]["items"] == len(ids)
        assert plan.splits()["train"]["captions"] == (3 if kinds == "all" else 1)


def test_a_row_is_planned_as_it_was_imported():
    member = {"name": "a/0.mp4", "offset": 512, "size": 7}
    asked = [{"question": "what?", "answer": "a dog", "type": "what"}]
    common = {"kind": "video", "split": "train", "group": "g"}
    rows = [
        Row(
            id="a",
            path="filecache::s3://bucket/a.mp4",
            start=1.5,
            meta={"a": [1, None]},
            **common,
        ),
        Row(id="b", path=Path("/b.tar"), member=member, **common),
        Row(id="c", path=Path("/c.mp4"), captions=("x",), questions=asked, **common),
    ]
    (unit,) = units_of(rows)
    assert unit.rows == rows
    assert [row.file_name for row in unit.rows] == ["a.mp4", "0.mp4", "c.mp4"]
    with plan_of(rows) as planned:
        assert planned.evenly_spaced(2) == [rows[0], rows[1]]
        assert planned.evenly_spaced(9) == rows


CLIP_NAMES = [
    "tv/star_ABC_0.mp4",
    "star_DE_10.mp4",
    "other.mp4",
    "https://host/star_ABC_2.mp4",
]
PATTERNS = {
    r"star_(\w+)_\d+": ["ABC", "DE", "other.mp4", "ABC"],
    r"star_[A-Z]+": ["star_ABC", "star_DE", "other.mp4", "star_ABC"],
    r"^(tv)/|^\w+_10": ["tv", "star_DE_10", "other.mp4", "https://host/star_ABC_2.mp4"],
    "prefix": ["tv/star_ABC", "star_DE", "other.mp4", "https://host/star_ABC"],
    "": CLIP_NAMES,
}


@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_gives_the_group_of_rows_without_one(pattern):
    rows = [*files(*CLIP_NAMES), *files("star_ABC_3.mp4", group="mine")]

    units = units_of(rows, group_pattern=pattern)

    groups = {row.id: row.group for unit in units for row in unit.rows}
    assert [groups[row.id] for row in rows] == [*PATTERNS[pattern], "mine"]


def test_a_pattern_that_finds_nothing_is_an_error():
    with pytest.raises(InputError, match=r"group_pattern = 'star_' .*'b\.mp4'"):
        units_of(files("a.mp4", "b.mp4"), group_pattern="star_")

    assert (
        len(units_of(files("a.mp4", group="all have one"), group_pattern="star_")) == 1
    )
