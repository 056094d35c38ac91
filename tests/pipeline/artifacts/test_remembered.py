"""The digest of a manifest is remembered while no file of it has changed."""

import json
import os
from pathlib import Path

import pytest

from alpro.errors import InputError
from alpro.pipeline.artifacts import digests as module
from alpro.pipeline.artifacts.digests import Digests, digest_data


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
    monkeypatch.setattr(module, "scan_source", lambda source, *rest: seen.append(source) or scan(source, *rest))
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
