"""What a search of an index ranks and groups."""

import os

import numpy as np
import pytest

from alpro.errors import InputError
from alpro.inference.index import EMPTY, Index, IndexSettings
from alpro.inference.loading import Found
from alpro.inference.model import Model
from alpro.inference.search import Searcher, drop_neighbors
from alpro.shards.clip import DecodeError

TEXT = "a red ball moves left"


def paths(result):
    return [hit.item["path"] for hit in result]


def count_matched(result):
    return sum(hit.match is not None for hit in result)


@pytest.fixture
def scores(searcher, model):
    """Similarity and match of TEXT with each file, as the model computes them."""
    files = [item["path"] for item in searcher.index.rows()]
    similarity = dict(
        zip(files, model.similarity([TEXT], files)[0].tolist(), strict=True)
    )
    match = dict(zip(files, model.match([TEXT], files)[0].tolist(), strict=True))
    return similarity, match


def test_clips_are_ranked_by_similarity(searcher, scores):
    result = searcher.search(TEXT)
    similarity, _ = scores
    expected = sorted(similarity.values(), reverse=True)
    assert [similarity[path] for path in paths(result)] == pytest.approx(
        expected, abs=1e-5
    )
    assert result.clips == 5
    assert count_matched(result) == 0


def test_the_most_similar_clips_are_ranked_by_matching_on_request(searcher, scores):
    _, match = scores
    hits = searcher.search(TEXT).hits
    margin = {path: np.log(p / (1 - p)) for path, p in match.items()}
    order = sorted(
        hits[:4], key=lambda hit: -(margin[hit.item["path"]] + hit.similarity)
    )

    result = searcher.search(TEXT, rerank=4)

    assert paths(result) == paths([*order, hits[4]])
    assert [hit.match is None for hit in result] == [False] * 4 + [True]
    for hit in result.hits[:4]:
        assert hit.match == pytest.approx(match[hit.item["path"]], abs=1e-5)


def test_pages_of_a_search_are_the_search(searcher):
    whole = [hit.item["key"] for hit in searcher.search(TEXT, rerank=4)]
    pages = [searcher.search(TEXT, 2, offset=at, rerank=4) for at in (0, 2, 4, 6)]
    assert [hit.item["key"] for page in pages for hit in page] == whole
    assert count_matched(pages[2]) == 0  # a page after the reranked clips


def test_clips_that_cannot_be_matched_follow_with_a_note(searcher):
    """The scores of other clips stay their own."""
    before = searcher.search(TEXT, rerank=5).hits
    bad = before[1].item["path"]
    stat = os.stat(bad)
    with open(bad, "r+b") as file:
        file.write(b"\0" * stat.st_size)
    os.utime(bad, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # the same identity

    *others, last = searcher.search(TEXT, rerank=5)

    matches = {hit.item["path"]: hit.match for hit in before}
    assert all(hit.match == pytest.approx(matches[hit.item["path"]]) for hit in others)
    assert last.item["path"] == bad
    assert last.match is None
    assert last.note.startswith("unreadable")


@pytest.mark.parametrize("rerank", [0, 5])
def test_files_that_are_gone_or_changed_are_noted(rerank, searcher, own):
    (own / "0.mp4").unlink()
    (own / "1.mp4").write_bytes(b"something else")
    found = searcher.search(TEXT, rerank=rerank)
    notes = {hit.item["id"]: hit.note for hit in found if hit.note}
    assert notes == {"0": "missing", "1": "changed since"}
    if rerank:
        assert {hit.item["id"] for hit in found.hits[-2:]} == notes.keys()


def test_the_ranking_that_was_better_on_validation_is_the_default(
    searcher, monkeypatch
):
    for ranking, matched in {"matching": 5, "similarity": 0}.items():
        monkeypatch.setattr(searcher.model.folder, "ranking", ranking)
        assert count_matched(searcher.search(TEXT)) == matched
        assert count_matched(searcher.search(TEXT, rerank=2)) == 2


def test_a_prompter_ranks_by_similarity_alone(update, own, tmp_path):
    update(own, task="prompter")
    found = Searcher.open(tmp_path / "index", device="cpu").search(
        "a red ball", rerank=3
    )
    assert len(found.hits) == 5
    assert count_matched(found) == 0
    assert "cannot re-rank" in found.note


def test_a_file_or_an_embedding_has_similar_clips(searcher, own, model):
    for query in (own / "0.mp4", str(own / "0.mp4"), model.encode(own / "0.mp4")):
        found = searcher.similar(query, 2)
        assert [hit.item["id"] for hit in found] == ["0", "3"]  # copies of one video
    with pytest.raises(DecodeError, match=r"missing: .*none\.mp4"):
        searcher.similar(own / "none.mp4")
    with pytest.raises(DecodeError):
        searcher.similar(own / "notes.mp4")
    with pytest.raises(InputError, match="dim"):
        searcher.similar(np.ones(3, np.float32))


def test_a_condition_and_words_choose_what_is_ranked(searcher):
    result = searcher.search(TEXT, where="id < '2'", words="mp4")

    assert {hit.item["id"] for hit in result} == {"0", "1"}
    assert result.clips == 2
    assert result.total == 5


def test_the_model_of_an_index_is_that_of_its_embeddings(searcher, folders):
    with pytest.raises(InputError, match="another model"):
        searcher.index.find_model(Found(folders["qa"]))
    searcher.index.change_settings(digest="other")
    with pytest.raises(OSError, match="of another model"):
        searcher.search(TEXT)


@pytest.mark.parametrize(
    ("model", "message"), [("qa", "have changed"), ("gone", "--model")]
)
def test_a_model_whose_files_have_changed_or_moved_is_refused(
    model, message, searcher, folders
):
    searcher.index.change_settings(model=str(folders["qa"].with_name(model)))

    with pytest.raises(InputError, match=message):
        Searcher.open(searcher.index.place)


def test_a_model_that_has_moved_is_named(searcher, folders, tmp_path):
    searcher.index.change_settings(model=str(tmp_path / "gone"))

    opened = Searcher.open(searcher.index.place, folders["retrieval"], device="cpu")
    assert opened.search("a dog").clips == 5


def test_a_model_is_looked_up_in_the_workspace(searcher, tmp_path):
    with pytest.raises(InputError, match=f"{tmp_path}/artifacts"):
        Searcher.open(searcher.index.place, "finetune_qa", workspace=tmp_path)


WORDS = {
    "a red ball": [],
    "a ball of the parliament, parliament!": ["parliament"],
    "\u4f60 ball!": ["\u4f60"],
    "\U0001f600": ["\U0001f600"],
    "बिल्ली": ["बिल्ली"],  # one word, with its combining marks
}


@pytest.mark.parametrize("text", WORDS)
def test_words_that_the_model_does_not_know_are_named(text, model):
    words = ", ".join(WORDS[text])
    line = f"the model does not know: {words}; the scores may mean nothing."
    assert model.note(text) == (line if words else "")


@pytest.mark.parametrize("kind", ["retrieval", "clip"])
def test_a_text_that_is_too_long_says_where_it_is_truncated(
    kind, folders, clip_folders
):
    model = Model.load((folders | clip_folders)[kind], device="cpu")
    length = model.folder.model.text_length(30)
    text = "a red ball " * length + "parliament"
    assert f"reads only the first {length} tokens" in model.note(text)
    assert not model.note("a red ball")
    with pytest.warns(UserWarning, match="1 of 2"):
        model.encode(["a red ball", text])


WINDOWS = [("a", 10), ("a", 11), ("a", 12), ("a", 9), ("a", 8), ("a", 20), ("b", 0)]


@pytest.mark.parametrize(
    ("parts", "best"),
    [
        ([(7 * 1.1, 7 * 1.1 + 1.1), (6 * 1.1, 6 * 1.1 + 1.1)], 1),  # they touch
        ([(0.0, 30.0), (10.0, 40.0), (41.0, 42.0)], 2),  # parts that a manifest names
    ],
)
def test_parts_that_overlap_or_touch_are_one_hit(parts, best):
    items = [{"path": "a", "start": start, "end": end} for start, end in parts]

    assert len(drop_neighbors(items)) == best


def test_neighbors_of_a_hit_hide_no_other(tmp_path, model):
    """Windows of two seconds, in the order of their similarity."""
    settings = IndexSettings(model="", digest="", window=2.0, stride=1.0)
    size = model.encode("a").size
    index = Index.create(tmp_path / "index", settings, size, {})
    query = np.eye(1, size, dtype=np.float32)[0]
    rows = []
    for number, (path, start) in enumerate(WINDOWS):
        item = EMPTY | {"key": f"{number}", "path": path, "id": path, "identity": ""}
        item |= {
            "start": start,
            "end": start + 2.0,
            "vector": query * (1 - number / 10),
        }
        rows.append(item)
    index.write(rows)

    hits = Searcher(index, model).similar(query, k=3).hits

    assert [hit.item["start"] for hit in hits] == [10, 20, 0]
