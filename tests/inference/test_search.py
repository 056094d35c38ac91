"""What a search of an index ranks, groups and filters. Parts and batches have two clips."""

import os
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alpro.errors import InputError
from alpro.inference import clips as clips_module
from alpro.inference import index as index_module
from alpro.inference.filters import filter_mask
from alpro.inference.index import ITEMS, Index
from alpro.inference.search import (
    Hit,
    group_windows,
    list_clips,
    most_similar,
    search,
    similar,
    similar_hits,
)
from alpro.shards.decoding import decode_video as decode
from alpro.shards.reader import read_index
from alpro.shards.seeking import video_seconds

TEXT = "a red ball moves left"


def opened(tmp_path):
    return Index.open(tmp_path / "index")


def test_samples_of_a_decoded_corpus_are_indexed_and_matched(update, clips, model, tmp_path):
    counts, _ = update(clips)
    assert counts.embedded == len(opened(tmp_path)) == read_index(clips, ["id"]).num_rows > 20
    assert update(clips)[0].embedded == 0
    found = search(opened(tmp_path), model, TEXT, k=5, rerank=5)
    assert all(hit.match is not None and hit.item["caption"] for hit in found.hits)
    assert found.hits[0].location.startswith(str(clips))


@given(
    values=st.lists(st.sampled_from([-1.0, -0.5, 0.0, 0.25, 0.5, 0.9]), max_size=9),
    kept=st.lists(st.booleans(), min_size=9, max_size=9),
    k=st.integers(1, 10),
)
def test_the_most_similar_rows_are_those_of_a_stable_sort(values, kept, k):
    matrix = np.array([[value, 1.0] for value in values], np.float32).reshape(-1, 2)
    chosen = np.array(kept[: len(values)], bool)
    rows, scores = most_similar(matrix, np.array([1, 0], np.float32), k, chosen)
    expected = sorted(np.flatnonzero(chosen), key=lambda row: (-values[row], row))[:k]
    assert rows.tolist() == expected
    assert scores.tolist() == pytest.approx([values[row] for row in expected])


def test_clips_are_ranked_by_similarity_and_on_request_the_best_by_matching(
    filled, model, monkeypatch
):
    """Only those that are matched are decoded."""
    decoded = []
    paths = [filled.item(i)["path"] for i in range(5)]
    similarity = dict(zip(paths, model.similarity([TEXT], paths)[0].tolist(), strict=True))
    probability = dict(zip(paths, model.match([TEXT], paths)[0].tolist(), strict=True))
    monkeypatch.setattr(
        clips_module,
        "decode_video",
        lambda path, *rest, **options: decoded.append(path) or decode(path, *rest, **options),
    )
    found = search(filled, model, TEXT)
    plain = [hit.item["path"] for hit in found.hits]
    assert [similarity[path] for path in plain] == pytest.approx(
        sorted(similarity.values(), reverse=True), abs=1e-5
    )
    assert (found.clips, found.matched, found.hits[0].match, found.nothing_fits) == (
        5,
        0,
        None,
        None,
    )
    assert decoded == []
    first = similar_hits(filled, model.encode(TEXT), 4, np.ones(5, bool))
    margin = {path: np.log(p / (1 - p)) for path, p in probability.items()}
    order = sorted(first, key=lambda hit: -(margin[hit.item["path"]] + hit.similarity))
    found = search(filled, model, TEXT, rerank=4)
    assert {str(path) for path in decoded} == {hit.item["path"] for hit in first}
    assert len(decoded) == 4
    assert [hit.item["path"] for hit in found.hits] == [
        *(hit.item["path"] for hit in order),
        plain[4],
    ]
    assert [hit.match is None for hit in found.hits] == [False] * 4 + [True]
    for hit in found.hits[:4]:
        assert hit.match == pytest.approx(probability[hit.item["path"]], abs=1e-5)
    pages = [
        hit.number
        for at in (0, 2, 4, 6)
        for hit in search(filled, model, TEXT, 2, at, rerank=4).hits
    ]
    assert pages == [hit.number for hit in found.hits]
    assert search(filled, model, TEXT, 2, 4, rerank=4).matched == 0  # a page after them
    against = lambda alpro, text, videos, pairs: -0.5 * (videos.features @ text.features[0])  # noqa: E731
    with monkeypatch.context() as patch:  # half of the similarity is left
        patch.setattr("alpro.inference.search.match", against)
        assert [hit.item["path"] for hit in search(filled, model, TEXT, rerank=5).hits] == plain
    best = max(similarity.values())
    for below, nothing in ((best + 0.01, True), (best - 0.01, False)):
        assert search(filled, model, TEXT, nothing_below=below).nothing_fits is nothing


def test_clips_that_cannot_be_matched_follow_with_a_note(filled, own, model):
    """One that cannot be decoded is in the first of two batches: the scores of the second stay
    those of its own clips. One that is gone or changed is noted without a rerank, too."""
    first = search(filled, model, TEXT, rerank=5)
    bad = similar_hits(filled, model.encode(TEXT), 5, np.ones(5, bool))[1].item["path"]
    stat = os.stat(bad)
    with open(bad, "r+b") as file:
        file.write(b"\0" * (stat.st_size))
    os.utime(bad, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the same identity
    found = search(filled, model, TEXT, rerank=5)
    others = [hit for hit in first.hits if hit.item["path"] != bad]
    assert [hit.number for hit in found.hits[:-1]] == [hit.number for hit in others]
    assert [hit.match for hit in found.hits[:-1]] == pytest.approx([hit.match for hit in others])
    assert (found.hits[-1].item["path"], found.hits[-1].match, found.matched) == (bad, None, 4)
    assert found.hits[-1].note.startswith("unreadable")
    (own / "0.mp4").unlink()
    (own / "1.mp4").write_bytes(b"something else")
    for rerank in (0, 5):
        found = search(filled, model, TEXT, rerank=rerank)
        notes = {hit.item["id"]: hit.note for hit in found.hits if hit.note}
        assert (notes["0"], notes["1"]) == ("missing", "changed since")
        assert len(notes) <= 3
    assert {hit.item["id"] for hit in found.hits[-len(notes) :]} == notes.keys()


def test_the_ranking_that_was_better_on_validation_is_the_default(
    filled, update, own, model, tmp_path, monkeypatch
):
    for ranking, matched in {"matching": 5, "similarity": 0}.items():
        monkeypatch.setattr(model.folder, "ranking", ranking)
        assert search(filled, model, TEXT).matched == matched
        assert search(filled, model, TEXT, rerank=2).matched == 2
    shutil.rmtree(tmp_path / "index")
    update(own, task="prompter")  # which has no matching head
    index = opened(tmp_path)
    found = search(index, index.load_model(device="cpu"), "a red ball", rerank=3)
    assert (len(found.hits), found.matched, found.note) == (5, 0, "")


def test_words_that_the_model_does_not_know_are_named(model):
    cases = {
        "a politician gives a speech in parliament": ["politician", "gives", "speech", "parliament"]
    }
    cases |= {"a red ball": [], "a ball of the parliament, parliament": ["parliament"]}
    cases |= {
        "\u4f60\u597d?": ["\u4f60\u597d"],
        "\u4f60 ball!": ["\u4f60"],
        "\U0001f600": ["\U0001f600"],
        "बिल्ली": ["बिल्ली"],  # one word, with its combining marks
    }
    for text, unknown in cases.items():
        assert model.unknown_words(text) == unknown
        assert bool(model.note(text)) == bool(unknown)
        assert all(word in model.note(text) for word in unknown)


def test_filters_and_numbers_of_clips_through_all_parts(tmp_path):
    """Of an index of clips without files, in two parts."""
    folder = tmp_path / "index"
    empty = dict.fromkeys(ITEMS.names)
    folder.mkdir()
    writer = index_module.IndexWriter(
        folder, index_module.About(model="m", digest="d", columns=("day", "views"))
    )
    rows = [("7", "/v/2024/caf\u00e9.mp4", "video", None, {"day": "2024-02-01", "views": "9"})]
    rows += [("07", "/v/2023/b.mp4", "video", 3.0, {"day": "2024-01-01", "views": "10"})]
    rows += [("red", "/v/2024/c.png", "image", None, {"views": "many"})]
    for number, (id, path, kind, start, columns) in enumerate(rows):
        item = {
            "id": id,
            "path": path,
            "kind": kind,
            "start": start,
            "end": start and start + 2.0,
            "duration": (9.5, 2.0, None)[number],
            "identity": "",
        }
        item |= {"columns": list(columns.items()), "caption": ["a ball", None, "two balls"][number]}
        writer.add(empty | item, np.array([number == 0, number == 1, number == 2], np.float32))
        writer.commit()
    writer.finish()
    table = Index.open(folder)
    cases = {
        "": [0, 1, 2],
        "kind=image": [2],
        "kind!=image": [0, 1],
        "path~*/2024/*": [0, 2],
        "path~*?.png": [2],
        "id=7": [0],  # texts: 07 is another one
        "id>=07 id<7": [1],
        "views<10": [0],
        "views>=9 kind=video": [0, 1],
        "views=9.0": [0],
        "views=many": [2],
        "caption~*ball*": [0, 2],
        "day>=2024-01-15": [0],
        "day=": [],
        "start>0": [1],
        " end <= 5 ": [1],
        # Several conditions, whatever stands between them; case and the form of accents.
        "kind=video caption~*BALL*": [0],
        "kind = video; caption ~ *ball* ;": [0],
        "kind=video, and Day>=2024-01-01 AND VIEWS>9": [1],
        'caption="A BALL" kind=Video': [0],
        'caption~"* ball*"': [0, 2],
        "path~*cafe\u0301*": [0],
        # Seconds.
        "duration<10": [0, 1],
        "duration>0:05": [0],
        "duration<=2s": [1],
        "duration <= 2 seconds": [1],
        "kind==image": [2],
        "kind<>image": [0, 1],
        "caption=~*ball* kind~=im*": [2],
        # Words are in the caption, the file name or the id, not in the folder.
        "ball": [0, 2],
        "BALL image": [],
        "ball kind=image": [2],
        "b.mp4": [1],
        "2024": [],
        '"two balls"': [2],
        "red": [2],
        '"a ball" "or"': [],
    }
    for text, expected in cases.items():
        filters = [text] if text else []
        assert filter_mask(table, filters).nonzero()[0].tolist() == expected, text
        assert [hit.number for hit in list_clips(table, filters=filters).hits] == expected
        found = similar(table, np.array([1, 2, 3], np.float32), filters=filters)
        assert ([hit.number for hit in found], found.clips) == (expected[::-1], len(expected))
    assert filter_mask(table, ["kind=video", "ball"]).tolist() == [True, False, False]
    found = list_clips(table, filters=["kind=VIDEO dog"])
    assert (found.conditions, found.total) == (("kind=VIDEO", '"dog"'), 3)
    assert 'no clip fits kind=VIDEO "dog"' in found.summary
    assert list_clips(table).summary == "3 clips searched"

    assert [table.item(n)["id"] for n in range(3)] == ["7", "07", "red"]
    assert [hit.number for hit in similar(table, table.embeddings[2], k=1, without=2).hits] == [0]
    wrong = (
        "=3",
        "color=red",
        "start~1",
        "end>soon",
        "duration<x",
        "red or ball",
        "not red",
        "kind:video",
        'id="7',
        '""',
        "kind=\udcff",
    )
    for text in wrong:
        with pytest.raises(InputError):
            filter_mask(table, [text])
    with pytest.raises(InputError, match="another model"):
        similar(table, np.zeros(2, np.float32))


def test_a_search_finds_the_window_of_a_film_that_shows_a_clip(
    update, videos, model, film, tmp_path
):
    """Two minutes of one clip, with another one at 80 s: it is the clip that is searched for."""
    common, rare, _ = videos
    count = round(120 / video_seconds(rare))
    films = film(
        "film.mp4", [rare if number == count * 2 // 3 else common for number in range(count)]
    )
    assert update(films, 10.0)[0].embedded == 23  # one every 5 seconds
    hits = similar_hits(opened(tmp_path), model.encode(rare), 3, np.ones(23, bool))
    assert (hits[0].item["start"], hits[0].item["end"], hits[0].span) == (80, 90, (75, 90))
    assert hits[0].remarks == ["neighbors fit too: 75-90 s"]
    assert all(hit.item["end"] < 80 or hit.item["start"] > 90 for hit in hits[1:])


def test_windows_of_several_files_are_grouped_by_file():
    """In order of similarity; a window that touches a group's best one belongs to it."""
    windows = [
        ("a", 10, 20),
        ("b", 15, 25),
        ("a", 20, 30),
        ("a", 31, 40),
        ("a", 5, 15),
        ("c", None, None),
    ]
    items = [dict(zip(("path", "start", "end"), window, strict=True)) for window in windows]
    groups = group_windows(
        [Hit(item, number, 1 - number / 10) for number, item in enumerate(items)]
    )
    assert [(hit.number, hit.span) for hit in groups] == [
        (0, (5, 30)),
        (1, (15, 25)),
        (3, (31, 40)),
        (5, None),
    ]
    items = [{"path": "a", "start": 0, "end": n + 1} for n in range(40)] + [
        {"path": "b", "start": 0, "end": 1}
    ]
    falling = np.linspace(1, 0.5, 41, dtype=np.float32)[:, None]
    about = SimpleNamespace(window=1.0)
    index = SimpleNamespace(embeddings=falling, about=about, item=items.__getitem__)
    hits = similar_hits(index, np.ones(1, np.float32), 2, np.ones(41, bool))
    assert [hit.item["path"] for hit in hits] == ["a", "b"]  # the forty are one hit
