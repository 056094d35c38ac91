"""The commands that use a trained model."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyarrow import csv

from alpro import Model
from alpro.artifact import RECORD_VERSION
from alpro.files import digest, write_json
from alpro.inference.index import Index
from alpro.inference.model import UNKNOWN
from tests.pipeline.test_cli import call


@pytest.fixture(scope="module")
def workspace(trained):
    """A workspace with a model of each kind, and the prompts of the prompter."""
    return trained


@pytest.fixture
def alpro_model(monkeypatch, capsys, workspace):
    """alpro_model(command, ...): calls `alpro ...` in the workspace; its status, output and errors."""

    def run(command, *arguments):
        options = {"model export": ["--workspace", workspace], "index rm": [], "index ls": []}
        shared = options.get(command, ["--workspace", workspace, "--device", "cpu"])
        return call(monkeypatch, capsys, *command.split(), *arguments, *shared)

    return run


@pytest.fixture(scope="module")
def videos(sample):
    return sorted((sample / "videos").glob("test-*.mp4"))[:3]


RETRIEVAL, QA, PROMPTER = (digest(stage)[:8] for stage in ("finetune_retrieval", "finetune_qa", "train_prompter"))


def test_videos_are_indexed_once_and_searched(alpro_model, videos, workspace, tmp_path):
    folder, index = tmp_path / "videos", tmp_path / "index"
    folder.mkdir()
    for video in videos:
        shutil.copy(video, folder)
    (folder / "bad.mp4").write_text("no video")
    status, out, err = alpro_model("index add", index, folder, "--model", RETRIEVAL)
    assert (status, err) == (0, f"rejected: {folder / 'bad.mp4'}: unreadable: moov atom not found\n")
    assert out.splitlines() == [
        f"{index}: 3 clips",
        "  3 embedded, 0 unchanged since an earlier run",
        f"  1 rejected (1 unreadable): {index / 'rejects.parquet'}",
    ]
    status, out, err = alpro_model("index add", index, folder, "--model", RETRIEVAL, "--json")
    assert (status, err) == (0, "")
    assert json.loads(out) == {
        "clips": 3,
        "embedded": 0,
        "rejected": 0,
        "skipped": 4,
        "replaced": 0,
        "reasons": {},
    }

    text = "a red ball moves left"
    status, out, err = alpro_model("search", index, text, "-k", 2, "--json")
    assert (status, err) == (0, "")
    found = json.loads(out)
    assert (found["clips"], found["matched"], len(found["hits"])) == (3, 3, 2)
    assert found["seconds"].keys() == {"index", "model", "text", "similarity", "matching"}
    model = Model.load(RETRIEVAL, workspace, device="cpu")
    for hit in found["hits"]:
        assert hit["similarity"] == pytest.approx(model.similarity([hit["path"]], [text]).item(), abs=1e-5)
        assert hit["match"] == pytest.approx(model.match([hit["path"]], [text]).item(), abs=1e-5)
    _, out, _ = alpro_model("search", index, text)
    assert out.splitlines()[0].split() == ["rank", "similarity", "match", "video"]
    assert found["hits"][0]["path"] in out.splitlines()[1]
    assert out.splitlines()[-1].startswith("3 clips by similarity, 3 by matching: index ")


def test_videos_are_listed_and_removed(alpro_model, videos, tmp_path):
    """The vectors and the names are gone at once, those of rejects too; what is not there changes nothing."""
    folder, index = tmp_path / "videos", tmp_path / "index"
    (folder / "more").mkdir(parents=True)
    for video, place in zip(videos, (folder, folder, folder / "more"), strict=True):
        shutil.copy(video, place)
    (folder / "bad.mp4").write_text("no video")
    refused = f"error: {index}: no index yet; --model MODEL creates it\n"
    assert alpro_model("index add", index, folder) == (2, "", refused)
    alpro_model("index add", index, folder, "--model", RETRIEVAL)
    first, second, third = (folder / videos[0].name, folder / videos[1].name, folder / "more" / videos[2].name)
    status, out, _ = alpro_model("index ls", index)
    assert (status, out.split()) == (0, [str(third), str(first), str(second)])
    status, _, err = alpro_model("index rm", index, first, "none.mp4")
    assert (status, "not in this index: none.mp4;" in err) == (2, True)
    before = Index.open(index).embeddings[0].copy()

    first.unlink()
    status, out, _ = alpro_model("index rm", index, first, folder / "more", folder / "bad.mp4")
    assert (status, out.splitlines()[-1]) == (0, f"{index}: 3 removed")
    left = Index.open(index)
    assert json.loads(alpro_model("index ls", index, "--json")[1]) == {
        "model": left.about.model,
        "rejected": 0,
        "clips": [{"id": second.stem, "path": str(second), "kind": "video", "start": None, "end": None, "columns": {}}],
    }
    assert np.array_equal(left.embeddings[0], before[2:])
    contents = b"".join(file.read_bytes() for file in index.iterdir())
    assert [name.encode() in contents for name in (first.stem, second.stem, third.stem, "bad")] == [0, 1, 0, 0]
    assert before[0].tobytes() not in contents
    shutil.rmtree(folder / "more")
    (folder / "bad.mp4").unlink()
    assert json.loads(alpro_model("index add", index, folder, "--json")[1])["skipped"] == 1
    assert json.loads(alpro_model("index rm", index, second.stem, "--json")[1]) == {"removed": [str(second)]}
    assert len(Index.open(index)) == 0


def test_vectors_are_written_as_parquet(alpro_model, videos, tmp_path, monkeypatch):
    """Of several parts, a row group at a time; plain products of them rank as the search by similarity does."""
    monkeypatch.setattr("alpro.inference.index.GROUP_CLIPS", 1)
    index, out = tmp_path / "index", tmp_path / "vectors.parquet"
    for n, some in enumerate((videos[:1], videos[1:])):
        folder = tmp_path / f"videos {n}"
        folder.mkdir()
        for video in some:
            shutil.copy(video, folder)
        alpro_model("index add", index, folder, "--model", RETRIEVAL)
    assert alpro_model("index ls", index, "--out", out) == (0, f"{out}: 3 clips, 16 numbers each\n", "")
    file = pq.ParquetFile(out)
    assert (file.num_row_groups, file.schema_arrow.names) == (
        3,
        ["id", "path", "kind", "start", "end", "columns", "embedding"],
    )
    assert file.schema_arrow.field("embedding").type == pa.list_(pa.float32(), 16)
    about = Index.open(index).about
    assert file.schema_arrow.metadata[b"digest"].decode() == about.digest
    table = file.read()
    listed = json.loads(alpro_model("index ls", index, "--json")[1])["clips"]
    clips = table.drop_columns("embedding").to_pylist(maps_as_pydicts="strict")
    assert [clip | {"columns": clip["columns"] or {}} for clip in clips] == listed
    vectors = table["embedding"].combine_chunks().flatten().to_numpy().reshape(3, 16)
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(1)
    hits = json.loads(alpro_model("search", index, "a ball", "--rerank", 0, "--json")[1])["hits"]
    scores = vectors @ Model.from_pretrained(about.model, device="cpu").embed_texts(["a ball"])[0].numpy()
    best = [(table["id"][row].as_py(), pytest.approx(scores[row])) for row in np.argsort(-scores)]
    assert [(hit["id"], hit["similarity"]) for hit in hits] == best
    for refused, message in {"v.csv": "must end with .parquet", "no/v.parquet": "No such file"}.items():
        status, _, err = alpro_model("index ls", index, "--out", tmp_path / refused)
        assert (status, message in err, err.count("\n")) == (2, True, 1)


def test_the_options_of_a_search_reach_it(alpro_model, videos, tmp_path, monkeypatch):
    """And those of every model: its device and its precision."""
    calls, real = [], Model.from_pretrained
    monkeypatch.setattr(Model, "from_pretrained", lambda *a, **options: calls.append(options) or real(*a, **options))
    index, single = tmp_path / "index", tmp_path / "videos"
    single.mkdir()
    for video in videos:
        shutil.copy(video, single)
    assert alpro_model("index add", index, single, "--model", RETRIEVAL, "--dtype", "bfloat16")[0] == 0
    _, out, _ = alpro_model("search", index, "a ball", "-k", 3, "--rerank", 1, "--dtype", "float16", "--json")
    assert [hit["match"] is None for hit in json.loads(out)["hits"]] == [False, True, True]
    alpro_model("ask", QA, videos[0], "what?", "--dtype", "bfloat16")
    assert calls == [{"device": "cpu", "dtype": dtype} for dtype in ("bfloat16", "float16", "bfloat16")]
    shutil.rmtree(single)
    _, out, err = alpro_model("search", index, "\u4f60\u597d", "--rerank", 0)
    assert out.count("(missing)") == 3
    assert err == f"note: {UNKNOWN}\n"
    _, _, err = alpro_model("ask", QA, videos[0], "\u4f60\u597d?")
    assert err == f"note: {UNKNOWN}\n"


def test_a_question_is_answered_from_the_list(alpro_model, videos, workspace):
    status, out, err = alpro_model("ask", QA, videos[0], "what moves?", "--json")
    assert (status, err) == (0, "")
    expected = Model.load(QA, workspace, device="cpu").ask(videos[0], "what moves?")
    assert json.loads(out)["answers"] == [{"text": a, "probability": pytest.approx(p)} for a, p in expected]
    _, out, _ = alpro_model("ask", QA, videos[0], "what moves?", "-k", 1)
    assert out == f"{expected[0][0]}  {expected[0][1]:.3f}\n"


def test_entities_of_a_region_are_named(alpro_model, videos, workspace):
    status, out, err = alpro_model("entities", PROMPTER, videos[0], "--box", "0.5,0,0.25,1", "--json")
    assert (status, err) == (0, "")
    model = Model.load(PROMPTER, workspace, device="cpu")
    expected = model.entities(videos[0], (0.5, 0, 0.25, 1), top_k=5)
    printed = json.loads(out)
    assert printed["box"] == [0.5, 0, 0.25, 1]
    assert printed["entities"] == [{"text": word, "probability": pytest.approx(p)} for word, p in expected]


def test_a_pre_trained_model_answers_beside_its_prompter(alpro_model, videos, pretrained):
    status, out, err = alpro_model("entities", pretrained, videos[0], "--text", "a ball", "--json", "-k", 2)
    assert (status, err) == (0, "")
    prompter = Model.from_pretrained(pretrained / "prompter", device="cpu").entities(videos[0], top_k=2)
    own = Model.from_pretrained(pretrained, device="cpu").entities(videos[0], top_k=2, text="a ball")
    for key, expected in (("entities", prompter), ("model_entities", own)):
        assert json.loads(out)[key] == [{"text": word, "probability": pytest.approx(p)} for word, p in expected]
    _, out, _ = alpro_model("entities", pretrained, videos[0], "-k", 1)
    assert [line.split()[0] for line in out.splitlines()] == ["prompter:", prompter[0][0], "model:", own[0][0]]
    shutil.rmtree(pretrained / "prompter")
    _, out, _ = alpro_model("entities", pretrained, videos[0], "-k", 1)
    assert out.split()[0] == own[0][0]


def test_an_exported_model_has_a_card_of_its_artifact(alpro_model, workspace, tmp_path):
    """Its scores are those of its own evaluation, with intervals; that of the other model in it is left out."""
    scores = [
        {"name": "retrieval/t2v/R1", "what": "fine-tuned retrieval", "metric": "R@1", "direction": "t2v"}
        | {"value": 51.5, "low": 44.25, "high": 58.0, "unit": "%", "chance": 0.5, "items": 1200},
        {"name": "qa/acc", "what": "question answering", "metric": "all", "direction": "", "value": 99.0}
        | {"low": None, "high": None, "unit": "%", "chance": 1.0, "items": 7},
    ]
    retrieval, qa = digest("finetune_retrieval"), digest("finetune_qa")
    records = {
        "decode_videos": {"name": "decode_videos films", "counts": {"samples": 1300, "train": 1000, "captions": 2600}},
        "finetune_retrieval": {
            "inputs": {"films": {"stage": "decode_videos", "fingerprint": digest("decode_videos")}},
            "config": {"lr": 1e-4, "batch_size": 64},
            "counts": {"steps": 500},
            "versions": {"torch": "2.13.0"},
            "run": {"at": "2026-01-02T00:00:00", "commit": "abc"},
        },
        "evaluate": {
            "inputs": {
                "retrieval": {"stage": "finetune_retrieval", "fingerprint": retrieval},
                "qa": {"stage": "finetune_qa", "fingerprint": qa},
            },
            "config": {"split": "test"},
        },
    }
    own = tmp_path / "workspace"
    for stage, record in records.items():
        folder = own / "artifacts" / stage / digest(stage)[:16]
        folder.mkdir(parents=True)
        common = {"version": RECORD_VERSION, "stage": stage, "name": stage, "fingerprint": digest(stage), "inputs": {}}
        common |= {"config": {}, "counts": {}, "versions": {}, "run": {"at": "2026-01-01T00:00:00"}}
        write_json(folder / "artifact.json", common | record)
    source = workspace / "artifacts" / "finetune_retrieval" / retrieval[:16] / "model"
    folder = own / "artifacts" / "finetune_retrieval" / retrieval[:16]
    shutil.copytree(source, folder / "model")
    write_json(own / "artifacts" / "evaluate" / digest("evaluate")[:16] / "results.json", scores)

    status, out, err = alpro_model("model export", folder, tmp_path / "out", "--license", "cc-by-4.0")
    assert (status, err) == (0, "")
    assert out == f"{tmp_path / 'out'}: a retrieval model for transformers; README.md is its model card\n"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: cc-by-4.0\n" in card
    assert f"| finetune_retrieval | {retrieval[:16]} | 500 | 64 | 0.0001 |" in card
    assert "| films | 1,300 | 1,000 | 0 | 0 | 2,600 | 0 | 0 |" in card
    assert "| fine-tuned retrieval | t2v R@1 | 51.5 % | 44.2 to 58.0 | 0.5 | 1,200 |" in card
    assert "question answering" not in card
    assert "Built 2026-01-02, commit abc, with torch 2.13.0." in card
    for heading in ("Training", "Data", "Evaluation", "Limits", "License"):
        assert f"\n## {heading}\n" in card


def test_a_model_without_a_record_has_a_card_that_says_so(alpro_model, workspace, tmp_path):
    source = next((workspace / "artifacts" / "finetune_qa").glob("*/model"))
    status, _, err = alpro_model("model export", source, tmp_path / "out")
    assert (status, err) == (0, "")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "no evaluation of this model is known" in card
    assert "Answers come from a closed list of 2:" in card
    status, _, err = alpro_model("model export", source, tmp_path / "out")
    assert (status, err) == (2, f"error: {tmp_path / 'out'}: exists already; choose another folder\n")


def test_mistakes_are_one_line(alpro_model, videos, workspace, tmp_path):
    text, empty = tmp_path / "notes.txt", tmp_path / "empty"
    text.write_text("no video")
    empty.mkdir()
    write_json(empty / "index.json", {"model": "x", "digest": "y", "embed_dim": 16})
    (tmp_path / "nothing").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.mp4").write_text("no video")
    for arguments, message in {
        ("ask", "0000", videos[0], "what?"): "0000: no such folder, and no artifact starts with it",
        ("ask", tmp_path, videos[0], "what?"): "not a model folder",
        ("ask", RETRIEVAL, videos[0], "what?"): "this retrieval model does not answer questions; load a model of",
        ("ask", QA, videos[0], " "): "the question is empty",
        ("ask", QA, text, "what?"): f"{text}: unreadable: ",
        ("ask", QA, tmp_path / "none.mp4", "what?"): "none.mp4: missing",
        ("entities", RETRIEVAL, videos[0]): "this retrieval model names no entities, and no prompter",
        ("entities", PROMPTER, text): f"{text}: unreadable: ",
        ("search", tmp_path / "none", "a"): "no index.json; `alpro index add",
        ("search", empty, "a"): "the index is empty; `alpro index add` adds videos to it",
        ("search", empty, ""): "the text is empty",
        ("index add", tmp_path / "i", tmp_path / "none", "--model", RETRIEVAL): "no such file or folder",
        ("index add", tmp_path / "i", tmp_path / "nothing", "--model", RETRIEVAL): "no video or image in this folder",
        ("index add", tmp_path / "j", tmp_path / "bad", "--model", RETRIEVAL): "none of the videos could be decoded",
        (
            "index add",
            tmp_path / "k",
            tmp_path / "bad",
            "--model",
            "models:/none@best",
        ): "models:/none@best: no MLflow store",
    }.items():
        status, _, err = alpro_model(*arguments)
        lines = [line for line in err.splitlines() if not line.startswith("rejected: ")]
        assert status == 2, arguments
        assert len(lines) == 1, err
        assert lines[0].startswith("error: ")
        assert message in lines[0]


def test_a_box_over_the_edge_is_refused(alpro_model, videos):
    status, _, err = alpro_model("entities", PROMPTER, videos[0], "--box", "0.5,0,0.6,1")
    assert status == 2
    assert "argument --box: 0.5,0,0.6,1 is not a region of the frame" in err


@pytest.mark.parametrize("end", ["parquet", "csv"])
def test_many_videos_are_one_table_and_a_stopped_command_continues(alpro_model, videos, tmp_path, monkeypatch, end):
    folder, out = tmp_path / "videos", tmp_path / f"answers.{end}"
    folder.mkdir()
    copies = [shutil.copy(video, folder) for video in videos]
    (folder / "bad.mp4").write_text("no video")
    command, real, asked = ("ask", QA, folder, "what moves?", "-k", 9, "--out", out), Model.ask, []

    def ask(self, file, *more):
        asked.append(file.path.name)
        if len(asked) == 2:
            raise KeyboardInterrupt
        return real(self, file, *more)

    expected = json.loads(alpro_model("ask", QA, copies[0], "what moves?", "--json")[1])["answers"][0]
    monkeypatch.setattr(Model, "ask", ask)
    assert alpro_model(*command)[0] == 130
    assert not out.exists()
    journal = out.with_name(f"{out.name}.part")
    journal.write_text(journal.read_text() + '["cut')
    message = "of another model or request"
    assert message in alpro_model("ask", QA, folder, "who moves?", "--out", out)[2]
    status, printed, _ = alpro_model(*command)
    assert (status, printed) == (0, f"{out}: 4 rows\n")
    assert [asked[0], *asked[2:]] == [video.name for video in videos]
    table = pq.read_table(out) if end == "parquet" else csv.read_csv(out)
    rows = {row["id"]: row for row in table.to_pylist()}
    assert table.column_names[4:] == ["answer_1", "probability_1", "answer_2", "probability_2", "error"]
    assert rows["bad"]["error"].startswith("unreadable")
    row = rows[videos[0].stem]
    assert (row["answer_1"], row["path"]) == (expected["text"], str(copies[0]))
    assert row["probability_1"] == pytest.approx(expected["probability"])
    assert [file.name for file in tmp_path.glob("answers*")] == [out.name]
    assert "exists already" in alpro_model(*command)[2]


def test_entities_of_many_videos_are_a_table(alpro_model, videos, tmp_path):
    rows = "".join(json.dumps({"path": str(video)}) + "\n" for video in videos[:1])
    (videos[0].parent / "some.jsonl").write_text(rows)
    out = tmp_path / "entities.csv"
    options = ("--box", "0,0,0.5,1", "-k", 2)
    assert alpro_model("entities", PROMPTER, videos[0].parent / "some.jsonl", *options, "--out", out)[0] == 0
    single = json.loads(alpro_model("entities", PROMPTER, videos[0], *options, "--json")[1])["entities"]
    (row,) = csv.read_csv(out).to_pylist()
    assert [row["entity_1"], row["entity_2"]] == [entity["text"] for entity in single]
    assert row["probability_2"] == pytest.approx(single[1]["probability"])
    assert ".parquet or .csv" in alpro_model("entities", PROMPTER, videos[0].parent, "--out", tmp_path / "a.txt")[2]
