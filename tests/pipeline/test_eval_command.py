"""`alpro eval`: any model on any labels."""

import json
import shutil

import pyarrow.parquet as pq
import pytest

from alpro import Model
from alpro.errors import InputError
from alpro.files import read_json
from alpro.inference.index import Index
from alpro.inference.index_videos import Embedder, add_videos
from alpro.inference.loading import resolve
from alpro.inference.search import Searcher
from alpro.models.folder import ModelBundle
from alpro.pool import in_this_process
from alpro.stages import decode_videos
from alpro.stages.evaluation.comparison import compare
from alpro.stages.evaluation.labeled_data import ALL_VIDEOS, read_labeled
from tests.conftest import decode_data, write_lines
from tests.pipeline.conftest import QA, RETRIEVAL, write_artifact
from tests.stages.conftest import write_manifest


@pytest.fixture
def data(sample, tmp_path):
    """A manifest of five clips: two have the same caption, one is right for another's caption, one
    is damaged."""
    videos = [f"test-0000{number}.mp4" for number in range(4)]
    for video in videos:
        shutil.copy(sample / "videos" / video, tmp_path)
    (tmp_path / "bad.mp4").write_text("no video")
    question = [{"question": "what moves?", "answer": "ball"}]
    rows = [
        {
            "id": "a",
            "path": videos[0],
            "captions": ["a ball", "one ball"],
            "questions": question,
        },
        {"id": "b", "path": videos[1], "captions": ["A ball"], "questions": question},
        {
            "id": "c",
            "path": videos[2],
            "captions": ["a star"],
            "relevant": ["d", "elsewhere"],
        },
        {"id": "d", "path": videos[3], "captions": ["a box"]},
        {"id": "e", "path": "bad.mp4", "captions": ["a moon"]},
    ]
    return write_lines(tmp_path / "data.jsonl", rows)


# The right videos of the four texts that are decoded.
RIGHT = [(0, 1), (0,), (2, 3), (3,)]


@pytest.fixture
def scored(call, trained, tmp_path):
    """scored(model, data, ...): the rows that `alpro eval` writes, by name, and its output."""
    out = tmp_path / "out"

    def run(*arguments):
        options = ("--workspace", trained, "--device", "cpu", "--dtype", "float32")
        status, printed, err = call("eval", *arguments, *options, "--out", out)
        assert status == 0, err
        return by_name(read_json(out / "results.json")), printed

    return run


def test_a_text_has_all_its_videos(data):
    labels, description = read_labeled(data, "test")
    assert description == ALL_VIDEOS
    assert labels.texts == ["a ball", "one ball", "a star", "a box", "a moon"]
    assert labels.relevant.astype(int).tolist() == [
        [1, 1, 0, 0, 0],
        [1, 0, 0, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1],
    ]
    assert labels.queries("v2t").texts[3] == "a star | a box"


def test_the_split_is_that_of_the_data(data):
    text = data.read_text()
    for name, split in (("a", "test"), ("b", "train")):
        text = text.replace(f'"id": "{name}"', f'"id": "{name}", "split": "{split}"')
    data.write_text(text)

    assert read_labeled(data, "test")[0].ids == ["a"]
    assert read_labeled(data, "train")[0].ids == ["b"]
    with pytest.raises(
        InputError, match=r"no video with a caption .* \(split validation\)"
    ):
        read_labeled(data, "validation")


def test_the_split_is_that_of_a_decoded_corpus(clips):
    gallery, description = read_labeled(clips, "test")

    assert description.startswith("split test")
    assert {sample.metadata["split"] for sample in gallery.videos} == {"test"}


@pytest.fixture
def run_on(tmp_path, resources, inline_pool):
    """run_on(seed): the data, the decoded corpus and the model of a run with this seed of splits."""
    rows = [
        {"id": f"v{n}", "group": f"g{n // 2}", "captions": [f"a ball {n % 30}"]}
        for n in range(40)
    ]
    source = write_manifest(tmp_path / "videos", rows)

    def run(seed):
        config = decode_videos.Config(size=16, validation=0.2, test=0.3, seed=seed)
        described = config.model_dump(mode="json")
        corpus, record = write_artifact(
            tmp_path, "decode_videos", f"d{seed}", config=described
        )
        decode_data(config, source, corpus, resources)
        inputs = {"clips": record}
        model, _ = write_artifact(tmp_path, "finetune_retrieval", f"{seed}", inputs)
        return source, corpus, model

    return run


@pytest.fixture
def own_run(run_on):
    return run_on(3)


def test_models_are_compared_on_what_none_was_trained_on(run_on):
    source, _, first = run_on(3)
    *_, second = run_on(5)

    mine, other, both = (
        set(read_labeled(source, "test", models)[0].ids)
        for models in ([first], [second], [first, second])
    )

    assert both == mine & other != mine


def test_data_of_the_models_own_run_has_its_split(own_run):
    """Without the videos that are also in training. A video that came later is in none, also if a clip
    of its group is."""
    source, corpus, model = own_run
    decoded = pq.read_table(corpus / "index.parquet").to_pylist()
    late = {
        "id": "late",
        "path": "v0.png",
        "group": decoded[0]["group"],
        "caption": "x",
    }
    with source.open("a") as file:
        file.write(json.dumps(late) + "\n")

    shared = pq.read_table(corpus / "overlap.parquet")["id"].to_pylist()
    assert shared
    for split in ("train", "validation", "test"):
        gallery, description = read_labeled(source, split, [model / "model"])
        expected = {row["id"] for row in decoded if row["split"] == split}
        assert set(gallery.ids) == expected.difference(shared)
        assert split in description

    shutil.rmtree(corpus)
    with pytest.raises(InputError, match="decode_videos"):
        read_labeled(source, "test", [model])


def test_other_data_than_that_of_the_models_run_has_all_videos(own_run, data):
    *_, model = own_run

    gallery, description = read_labeled(data, "test", [model])

    assert gallery.ids == [*"abcde"]
    assert description == ALL_VIDEOS


def by_name(rows):
    return {row["name"]: row for row in rows}


def test_retrieval_has_every_right_video_and_its_chance(scored, data, trained):
    rows, _ = scored(RETRIEVAL, data)

    model = Model.load(RETRIEVAL, trained, device="cpu", dtype="float32")
    videos = [row.path for row in read_labeled(data, "test")[0].videos[:4]]
    similarity = model.similarity(["a ball", "one ball", "a star", "a box"], videos)
    right = 0
    for best, videos_of_text in zip(similarity.argmax(1), RIGHT, strict=True):
        right += best in videos_of_text
    first = rows["similarity/t2v/R1"]
    assert first["value"] == pytest.approx(25 * right)
    assert first["chance"] == pytest.approx(100 * (0.5 + 0.25 + 0.5 + 0.25) / 4)
    assert first["items"] == 4
    assert rows["decoded/data"]["value"] == 80
    assert {name.partition("/")[0] for name in rows} == {
        "decoded",
        "similarity",
        "matching",
    }


def test_a_baseline_is_compared_score_by_score(scored, data, clip_folders, tmp_path):
    clip = clip_folders["clip"]

    rows, printed = scored(RETRIEVAL, data, "--baseline", clip)

    out = tmp_path / "out"
    rivals = by_name(read_json(out / "baseline" / "results.json"))
    compared = compare(out / "baseline", out).scores
    differences = {name: one.difference for name, (_, one) in compared.items()}
    # A median rank has no test.
    tested = {name for name in rivals if not name.endswith("MdR")}
    assert differences.keys() == tested
    assert tested
    for name in tested:
        expected = rows[name]["value"] - rivals[name]["value"]
        assert differences[name] == pytest.approx(expected)
    # Four test clips cannot show a difference: the baseline is kept, by the name that was typed.
    assert f"keep {clip}" in printed.splitlines()[-1]


def test_a_baseline_sees_the_frames_of_the_model(
    scored, data, folders, clip_folders, tmp_path, hub
):
    bundle = ModelBundle.from_pretrained(folders["retrieval"] / "model")
    bundle.model.set_frames(2)
    bundle.save_pretrained(tmp_path / "model")

    rows, _ = scored(tmp_path / "model", data, "--baseline", hub(clip_folders["clip"]))

    rivals = by_name(read_json(tmp_path / "out" / "baseline" / "results.json"))
    for scores in (rows, rivals):
        assert scores["similarity/t2v/R1"]["protocol"] == "all pairs, 2 frames"


def test_the_order_of_a_search_with_rerank_is_scored(
    scored, data, trained, tmp_path, monkeypatch
):
    monkeypatch.setattr("alpro.inference.search.RERANKED", 3)
    with in_this_process():
        embedder = Embedder(resolve(RETRIEVAL, trained), device="cpu", dtype="float32")
        add_videos(tmp_path / "index", embedder, data)
    model = Model.load(RETRIEVAL, trained, device="cpu", dtype="float32")
    searcher = Searcher(Index.open(tmp_path / "index"), model)

    scored(RETRIEVAL, data)

    rows = pq.read_table(tmp_path / "out" / "matching_t2v.parquet").to_pylist()
    best = {row["text"]: row["best"] for row in rows}
    for text in ("a ball", "a star"):
        hits = searcher.search(text, k=4, rerank=3).hits
        assert [hit.item["id"] for hit in hits] == best[text]


def test_answers_are_scored(scored, data, trained):
    score = scored(QA, data)[0]["qa/acc"]

    model = Model.load(QA, trained, device="cpu", dtype="float32")
    videos = read_labeled(data, "test")[0].videos[:2]
    right = [model.ask(video, "what moves?", 1)[0][0] == "ball" for video in videos]
    assert (score["value"], score["items"]) == (pytest.approx(50 * sum(right)), 2)


def test_data_that_cannot_be_decoded_has_no_scores(call, trained, tmp_path):
    (tmp_path / "bad.mp4").write_text("no video")
    data = write_lines(tmp_path / "data.jsonl", [{"path": "bad.mp4", "caption": "x"}])

    status, _, err = call("eval", RETRIEVAL, data, "--workspace", trained)

    assert (status, "could be decoded" in err) == (2, True)
