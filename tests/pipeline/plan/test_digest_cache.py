"""The digest of a manifest is remembered while no file of it has changed."""

import json
import os
from contextlib import contextmanager
from pathlib import Path

import pytest

from alpro.errors import InputError
from alpro.pipeline.plan import digest_cache as remembered
from alpro.pipeline.plan import digests as module
from alpro.pipeline.plan.dag import planned
from alpro.pipeline.plan.digests import Digests, digest_data
from alpro.shards.sources import annotations


@pytest.fixture
def manifest(tmp_path) -> Path:
    for name in "ab":
        (tmp_path / f"{name}.mp4").write_text(name)
    file = tmp_path / "m.jsonl"
    rows = [{"path": f"{name}.mp4", "caption": name} for name in ("a", "b", "gone")]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


@pytest.fixture
def parsed(monkeypatch) -> list[Path]:
    """The manifests that were parsed."""
    seen, scan = [], module.scan_source
    monkeypatch.setattr(
        module, "scan_source", lambda source, *rest, **more: seen.append(source) or scan(source, *rest, **more)
    )
    return seen


def digest_of(manifest: Path, **options):
    return digest_data(manifest, Digests(manifest.parent / "digests.sqlite"), **options)


def test_an_unchanged_manifest_is_parsed_once(manifest, parsed):
    first = digest_of(manifest)
    assert [digest_of(manifest) for _ in range(2)] == [first, first]
    assert len(parsed) == 1
    assert first.has_media


def write_again(path: Path) -> None:
    path.write_bytes(path.read_bytes())
    os.utime(path, ns=(1, 1))


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (lambda folder: (folder / "a.mp4").write_text("A, another film"), True),
        (lambda folder: (folder / "b.mp4").unlink(), True),
        (lambda folder: (folder / "gone.mp4").write_text("here"), True),
        (lambda folder: (folder / "m.jsonl").write_text('{"path": "a.mp4", "caption": "another"}'), True),
        (lambda folder: write_again(folder / "a.mp4"), False),
        (lambda folder: [path.unlink() for path in (folder / "manifests").glob("*.parquet")], False),
        (lambda folder: [path.write_text("{") for path in (folder / "manifests").glob("*.json")], False),
        (lambda folder: [path.write_text("x") for path in (folder / "manifests").glob("*.parquet")], False),
    ],
    ids=["a file", "less", "more", "the manifest", "only the time", "lost states", "a torn digest", "torn states"],
)
def test_any_change_is_seen(manifest, parsed, change, differs):
    first = digest_of(manifest)
    change(manifest.parent)
    second = digest_of(manifest)
    assert (second != first) == differs
    assert len(parsed) == 2
    assert digest_of(manifest) == second
    assert len(parsed) == 2


def test_what_a_store_has_may_change_unseen_and_is_not_remembered(tmp_path, parsed):
    manifest = tmp_path / "m.jsonl"
    manifest.write_text('{"path": "https://example.org/a.mp4", "caption": "a"}')
    assert digest_of(manifest, ask=False) == digest_of(manifest, ask=False)
    assert len(parsed) == 2
    assert list((tmp_path / "manifests").iterdir()) == []


def test_a_second_command_reads_no_row(manifest, monkeypatch):
    rows = []

    def scan(*place, **options):
        for row in annotations.scan_manifest(*place, **options):
            rows.append(row)
            yield row

    monkeypatch.setattr(annotations, "scan_source", scan)
    monkeypatch.setattr(module, "scan_source", lambda place, *_, note: scan(place))

    def read() -> tuple[bool, int]:
        rows.clear()
        config = planned("", "own_videos", str(manifest), [], manifest.parent)[0]
        return config.finetune_qa is not None, len(rows)

    assert [read(), read()] == [(False, 6), (False, 0)]  # searched for questions, then digested
    question = {"path": "a.mp4", "questions": [{"question": "what?", "answer": "dog"}]}
    manifest.write_text("\n".join(map(json.dumps, [question, {"path": "b.mp4", "caption": "b"}])))
    assert [read(), read()] == [(True, 3), (True, 0)]


def test_options_have_digests_of_their_own(manifest, parsed):
    digest_of(manifest), digest_of(manifest, ask=False)
    assert len(parsed) == 2


def test_nothing_is_kept_of_a_manifest_that_cannot_be_read(manifest, parsed):
    manifest.write_text('{"path": "a.mp4", "caption": "a", "id": 1}\n{"path": "b.mp4", "caption": "b", "id": 1}')
    for _ in range(2):
        with pytest.raises(InputError, match="also used"):
            digest_of(manifest)
    assert len(parsed) == 2
    assert list((manifest.parent / "manifests").iterdir()) == []


def test_files_are_read_by_threads_and_in_order(tmp_path):
    files = [tmp_path / f"{n}.mp4" for n in range(50)]
    for n, file in enumerate(files):
        if n % 7:
            file.write_text(str(n % 5))
    digests = Digests(tmp_path / "digests.sqlite")
    first = digests.of(files)
    assert first == digests.of(files) == digests.of(files[::-1])[::-1]
    assert [value == "missing" for value in first] == [n % 7 == 0 for n in range(50)]
    assert len(set(first)) == 6


@pytest.fixture
def annotated(tmp_path) -> Path:
    """A folder of videos, with WebVid's table beside it."""
    for name in ("page/1", "page/2", "other/3"):
        (tmp_path / "videos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "videos" / f"{name}.mp4").write_text(name)
    rows = ["videoid,contentUrl,duration,page_dir,name"]
    rows += [f"{n},https://example.org/{n}.mp4,PT10S,{page},clip {n}" for n, page in ((1, "page"), (3, ""), (4, ""))]
    (tmp_path / "table.csv").write_text("\n".join(rows))
    return tmp_path / "videos"


def annotated_digest(videos: Path, **options):
    return digest_of(videos, annotations={"train": videos.parent / "table.csv"}, **options)


def test_unchanged_annotation_files_are_parsed_once(annotated, parsed):
    first = annotated_digest(annotated)
    assert [annotated_digest(annotated) for _ in range(2)] == [first, first]
    assert len(parsed) == 1
    other = annotated.parent / "other.csv"
    other.write_text((annotated.parent / "table.csv").read_text().replace("clip 1", "clip one"))
    assert digest_of(annotated, annotations={"train": other}) != first
    assert len(parsed) == 2


@pytest.mark.parametrize(
    ("change", "differs"),
    [
        (lambda videos: (videos / "page/1.mp4").write_text("another film"), True),
        (lambda videos: (videos / "page/1.mp4").unlink(), True),
        (lambda videos: (videos / "other/4.webm").write_text("found by its name"), True),
        (lambda videos: (videos / "page/3.mp4").write_text("the name is ambiguous now"), True),
        (lambda videos: [(videos / "new").mkdir(), (videos / "new/4.mp4").write_text("here")], True),
        (lambda videos: (videos / "page/9.mp4").write_text("no row names it"), False),
        (lambda videos: (videos.parent / "table.csv").write_text("videoid,page_dir,name\n1,page,another"), True),
    ],
    ids=["a file", "less", "more", "ambiguous", "a new folder", "another file", "the table"],
)
def test_any_change_of_annotated_videos_is_seen(annotated, parsed, change, differs):
    first = annotated_digest(annotated)
    os.utime(annotated / "page", ns=(1, 1))  # the change may be within a tick of the file system's clock
    second = annotated_digest(annotated)
    assert (second, len(parsed)) == (first, 2)
    change(annotated)
    third = annotated_digest(annotated)
    assert (third != first) == differs
    assert len(parsed) == 3
    assert annotated_digest(annotated) == third
    assert len(parsed) == 3


def test_videos_in_a_linked_folder_are_not_remembered(annotated, parsed):
    """What such a folder has may change without a change of the folders that were walked."""
    (annotated / "link").symlink_to(annotated / "other")
    assert annotated_digest(annotated) == annotated_digest(annotated)
    assert len(parsed) == 2


def test_names_that_lead_through_a_link_are_not_remembered(annotated, parsed):
    (annotated.parent / "mount").symlink_to(annotated)
    table = annotated.parent / "list.jsonl"
    table.write_text(json.dumps({"clip_name": f"{annotated.parent}/mount/page/1.mp4", "caption": "a clip"}))
    first, second = (digest_of(annotated, annotations={"train": table}) for _ in range(2))
    assert first == second
    assert first.has_media
    assert len(parsed) == 2


def test_a_folder_with_texts_beside_its_videos_is_not_remembered(tmp_path, parsed):
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "a.mp4").write_text("a")
    (tmp_path / "videos" / "a.txt").write_text("a clip")
    first, second = (digest_of(tmp_path / "videos") for _ in range(2))
    assert first == second
    assert len(parsed) == 2


def test_other_code_has_digests_of_its_own(manifest, parsed, monkeypatch):
    first, code = digest_of(manifest), remembered.source_code()
    assert {"manifest", "records", "downloads", "identity", "credentials", "files", "digests"} <= set(map(stem, code))
    monkeypatch.setattr(remembered, "source_code", lambda: code | {next(iter(code)): "changed"})
    assert digest_of(manifest) == first
    assert len(parsed) == 2


def stem(name: str) -> str:
    return Path(name).stem


def test_two_commands_may_read_one_manifest(tmp_path, monkeypatch):
    """The other one also removes the states, as what a store has is not remembered."""
    write = remembered.atomic_write

    @contextmanager
    def removed_by_the_other(path):
        with write(path) as temporary:
            yield temporary
        path.unlink()

    monkeypatch.setattr(remembered, "atomic_write", removed_by_the_other)
    manifest = tmp_path / "m.jsonl"
    manifest.write_text('{"path": "https://example.org/a.mp4", "caption": "a"}')
    assert digest_of(manifest, ask=False).here
