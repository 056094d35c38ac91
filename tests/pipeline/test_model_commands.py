"""The commands that use a trained model."""

import json
import shutil
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from pyarrow import csv

from alpro import Model
from alpro.errors import InputError
from alpro.files import digest, write_json
from alpro.inference.encoding import match_top_k
from alpro.inference.index import Index
from alpro.inference.index_videos import add_videos, settings
from alpro.inference.search import search
from alpro.models.folder import ModelFolder
from alpro.stages import decode_videos
from alpro.stages.evaluation.any_model import Threshold, encode, labeled, labels_of
from tests.conftest import decode_data, in_store
from tests.pipeline.conftest import PROMPTER, QA, RETRIEVAL, write_artifact
from tests.pipeline.test_cli import call
from tests.stages.conftest import write_manifest


@pytest.fixture
def alpro_model(monkeypatch, capsys, trained):
    """alpro_model(command, ...): calls `alpro ...` in the workspace `trained`; its status, output and errors."""

    def run(command, *arguments):
        options = {f"model {word}": ["--workspace", trained] for word in ("export", "register")}
        options |= {"index rm": [], "index ls": []}
        shared = options.get(command, ["--workspace", trained, "--device", "cpu"])
        return call(monkeypatch, capsys, *command.split(), *arguments, *shared)

    return run


@pytest.fixture
def own(videos, tmp_path):
    """A folder of three videos, one of them in a folder of its own, and a file that is none."""
    folder = tmp_path / "videos"
    (folder / "more").mkdir(parents=True)
    for video, place in zip(videos, (folder, folder, folder / "more"), strict=True):
        shutil.copy(video, place)
    (folder / "bad.mp4").write_text("no video")
    return folder


def test_videos_are_indexed_searched_listed_and_removed(
    alpro_model, videos, own, trained, tmp_path
):
    index, text = tmp_path / "index", "a red ball moves left"
    assert alpro_model("index add", index, own)[0] == 2  # no index yet
    status, out, err = alpro_model("index add", index, own, "--model", RETRIEVAL)
    assert (
        status,
        err.startswith(f"rejected: {own / 'bad.mp4'}: unreadable"),
        err.count("\n"),
    ) == (0, True, 1)
    assert out.splitlines()[0] == f"{index}: 3 clips"
    again = alpro_model("index add", index, own)[1].splitlines()
    assert again == [f"{index}: 3 clips", "  0 embedded (0 changed), 4 unchanged", "  0 rejected"]

    model = Model.load(RETRIEVAL, trained, device="cpu")
    expected = search(Index.open(index), model, text, 2)
    assert json.loads(alpro_model("search", index, text, "-k", 2, "--json")[1]) == {
        "text": text,
        **expected.json(),
    }
    lines = alpro_model("search", index, text, "-k", 3, "--rerank", 1)[1].splitlines()
    assert [line.split()[0] for line in lines] == ["rank", "1", "2", "3", "3"]
    assert lines[-1] == "3 clips searched; the best 1 ranked by matching"
    assert len(lines[1].split()) == len(lines[2].split()) + 1  # one has a match
    assert "match" not in alpro_model("search", index, text)[1].splitlines()[0]
    assert "nothing fits" in alpro_model("search", index, text, "--nothing-below", 1)[2]
    assert (
        json.loads(alpro_model("search", index, text, "--filter", "id=none", "--json")[1])["hits"]
        == []
    )

    # Words are one text; a file of texts is a table; the line says what fits the filters.
    words = json.loads(alpro_model("search", index, *text.split(), "-k", 2, "--json")[1])
    assert words == {"text": text, **expected.json()}
    (tmp_path / "texts.txt").write_text("a ball\n\na red ring\n")
    table = alpro_model("search", index, f"@{tmp_path / 'texts.txt'}", "-k", 2)[1].splitlines()
    assert [line[:10].strip() for line in table[1:5]] == ["a ball"] * 2 + ["a red ring"] * 2
    assert alpro_model("search", index, f"@{tmp_path / 'none.txt'}")[0] == 2
    status, out, _ = alpro_model("search", index, text, "--filter", "caption~*dog* kind=VIDEO")
    assert (status, out) == (0, "no clip fits caption~*dog* kind=VIDEO\n")

    first, second, third = own / videos[0].name, own / videos[1].name, own / "more" / videos[2].name
    assert alpro_model("index ls", index)[1].split() == [str(third), str(first), str(second)]
    status, _, err = alpro_model("index rm", index, first, "none.mp4")
    assert (status, "none.mp4" in err) == (2, True)
    first.unlink()
    assert "(missing)" in alpro_model("search", index, text)[1]
    status, out, _ = alpro_model("index rm", index, first, own / "more", own / "bad.mp4")
    assert (status, out.splitlines()[-1]) == (0, f"{index}: 3 removed")
    listed = json.loads(alpro_model("index ls", index, "--json")[1])
    assert (listed["rejected"], [clip["path"] for clip in listed["clips"]]) == (0, [str(second)])
    assert alpro_model("index rm", index, second.stem)[1].splitlines()[0] == str(second)


def test_names_with_escape_codes_are_printed_on_one_line_and_hits_have_captions(
    alpro_model, videos, own, tmp_path
):
    index = tmp_path / "index"
    name = "red\x1b[31m\n.mp4"
    shutil.copy(videos[0], own / name)
    (own / "bad\x1b[2J.mp4").write_text("no video")
    rows = [{"path": name, "caption": f"a dog\x1b[31m {'runs ' * 40}"}, {"path": "bad\x1b[2J.mp4"}]
    (own / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    printed = [alpro_model("index add", index, own / "m.jsonl", "--model", RETRIEVAL)]
    printed += [alpro_model("search", index, "a ball"), alpro_model("index ls", index)]
    assert "a dog" in printed[1][1]
    assert max(map(len, printed[1][1].splitlines())) < len(str(own)) + 120  # a shortened caption
    printed += [alpro_model("index rm", index, "none\x1b[31m"), alpro_model("index rm", index, own)]
    for _, out, err in printed:
        assert "\x1b" not in out + err
    assert printed[2][1].count("\n") == 1


def test_an_index_keeps_its_options_when_videos_are_added(alpro_model, own, videos, tmp_path):
    index = tmp_path / "index"
    for number in (1, 2):
        row = {"path": videos[number].name, "day": str(number)}
        shutil.copy(videos[number], own)
        (own / f"{number}.jsonl").write_text(json.dumps(row) + "\n")
        options = ("--model", RETRIEVAL, "--columns", "day", "--window", 0.5) if number == 1 else ()
        assert alpro_model("index add", index, own / f"{number}.jsonl", *options)[0] == 0
    clips = json.loads(alpro_model("index ls", index, "--json")[1])["clips"]
    assert {clip["columns"]["day"] for clip in clips} == {"1", "2"}
    assert all(clip["end"] - clip["start"] <= 0.5 for clip in clips)


def test_the_device_and_precision_reach_every_model(
    alpro_model, videos, own, tmp_path, monkeypatch
):
    calls, real = [], Model.load
    monkeypatch.setattr(
        Model, "load", lambda *a, **options: calls.append(options) or real(*a, **options)
    )
    index = tmp_path / "index"
    alpro_model("index add", index, own, "--model", RETRIEVAL, "--dtype", "bfloat16")
    alpro_model("search", index, "a ball", "--dtype", "float16")
    alpro_model("model ask", QA, videos[0], "what?", "--dtype", "bfloat16")
    assert calls == [
        {"device": "cpu", "dtype": dtype} for dtype in ("bfloat16", "float16", "bfloat16")
    ]
    for arguments in (
        ("search", index, "\u4f60\u597d"),
        ("model ask", QA, videos[0], "\u4f60\u597d?"),
    ):
        assert "\u4f60\u597d" in alpro_model(*arguments)[2]


def test_a_question_is_answered_from_the_list_and_entities_of_a_region_are_named(
    alpro_model, videos, trained
):
    def words(ranked):
        return [{"text": word, "probability": pytest.approx(p)} for word, p in ranked]

    status, out, err = alpro_model("model ask", QA, videos[0], "what moves?", "--json")
    expected = Model.load(QA, trained, device="cpu").ask(videos[0], "what moves?")
    assert (status, err, json.loads(out)["answers"]) == (0, "", words(expected))
    _, out, _ = alpro_model("model ask", QA, videos[0], "what moves?", "-k", 1)
    assert out.split() == ["answer", "probability", expected[0][0], f"{expected[0][1]:.3f}"]
    status, out, err = alpro_model(
        "model entities", PROMPTER, videos[0], "--box", "0.5,0,0.25,1", "--json"
    )
    expected = Model.load(PROMPTER, trained, device="cpu").entities(
        videos[0], (0.5, 0, 0.25, 1), top_k=5
    )
    assert (status, err, json.loads(out)["entities"]) == (0, "", words(expected))
    _, _, err = alpro_model("model entities", PROMPTER, videos[0])
    assert "one of these is always named" in err
    assert json.loads(out)["box"] == [0.5, 0, 0.25, 1]


def test_a_pre_trained_model_names_entities_of_a_video_with_a_caption(
    alpro_model, videos, pretrained
):
    status, out, err = alpro_model(
        "model entities", pretrained, videos[0], "--text", "a ball", "--json", "-k", 2
    )
    assert (status, err) == (0, "")
    own = Model.load(pretrained, device="cpu").entities(videos[0], top_k=2, text="a ball")
    assert json.loads(out)["entities"] == [
        {"text": word, "probability": pytest.approx(p)} for word, p in own
    ]
    _, out, _ = alpro_model("model entities", pretrained / "prompter", videos[0], "-k", 1)
    assert (
        out.split()[2]
        == Model.load(pretrained / "prompter", device="cpu").entities(videos[0], top_k=1)[0][0]
    )


def test_an_exported_model_has_a_card_of_its_artifact(alpro_model, trained, tmp_path):
    """Its scores are those of its own evaluation, with intervals; that of the other model in it is left out."""
    score = {
        "what": "fine-tuned by matching",
        "metric": "R@1",
        "direction": "t2v",
        "value": 51.5,
        "unit": "%",
    }
    score |= {
        "table": "retrieval",
        "higher_is_better": True,
        "protocol": "",
        "baseline": "",
        "chance": 0.5,
    }
    score |= {"items": 1200}
    scores = [
        score | {"name": "retrieval/t2v/R1", "low": 44.25, "high": 58.0},
        score | {"name": "qa/acc", "what": "question answering", "low": None, "high": None},
    ]
    own, retrieval = tmp_path / "workspace", digest("finetune_retrieval")
    about = {
        "name": "decode_videos films",
        "counts": {"samples": 1300, "train": 1000, "captions": 2600},
    }
    _, films = write_artifact(own, "decode_videos", **about)
    about = {
        "config": {"lr": 1e-4, "batch_size": 64},
        "counts": {"steps": 500},
        "versions": {"torch": "2.13.0"},
    }
    folder, model = write_artifact(own, "finetune_retrieval", inputs={"films": films}, **about)
    inputs = {
        "retrieval": model,
        "qa": {"stage": "finetune_qa", "fingerprint": digest("finetune_qa")},
    }
    evaluated, _ = write_artifact(own, "evaluate", inputs=inputs, config={"split": "test"})
    write_json(evaluated / "results.json", scores)
    shutil.copytree(
        trained / "artifacts" / "finetune_retrieval" / retrieval[:16] / "model", folder / "model"
    )

    status, out, err = alpro_model(
        "model export", folder, tmp_path / "out", "--license", "cc-by-4.0"
    )
    assert (status, err) == (0, "")
    assert (
        out
        == f"{tmp_path / 'out'}: a retrieval model for transformers; README.md is its model card\n"
    )
    card = (tmp_path / "out" / "README.md").read_text()
    assert "license: cc-by-4.0\n" in card
    assert f"| finetune_retrieval | {retrieval[:16]} | 500 | 64 | 0.0001 |" in card
    assert f"| films | {films['fingerprint'][:8]} | 1,300 | 2,600 | 0 | 0 |" in card
    assert "| fine-tuned by matching | t2v R@1 | 51.5 [44.2, 58.0] | 0.5 % | 1200 |" in card
    assert "question answering" not in card
    header = yaml.safe_load(card.split("---")[1])
    assert "sentence-transformers" in header["tags"]
    (scores,) = header["model-index"][0]["results"]
    assert scores["metrics"][0]["type"] == "R@1"
    assert 51.5 in [metric["value"] for metric in scores["metrics"]]
    assert "SentenceTransformer(folder" in card
    assert "Built 2026-01-01, commit abc, with torch 2.13.0." in card


def test_a_model_without_a_record_has_a_card_that_says_so(alpro_model, trained, tmp_path):
    source = next((trained / "artifacts" / "finetune_qa").glob("*/model"))
    status, _, err = alpro_model("model export", source, tmp_path / "out")
    assert (status, err) == (0, "")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "no evaluation of this model is known" in card
    assert "Answers come from a closed list of 3:" in card


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("model ask", "0000", "VIDEO", "what?"), "0000"),
        (("model ask", "FOLDER", "VIDEO", "what?"), "FOLDER"),
        (("model ask", RETRIEVAL, "VIDEO", "what?"), "finetune_qa"),
        (("model ask", QA, "FOLDER", "what?"), "--out"),
        (("model ask", QA, "FOLDER/notes.txt", "what?"), "FOLDER/notes.txt"),
        (("model ask", QA, "FOLDER/none.mp4", "what?"), "none.mp4"),
        (("model ask", QA, "FOLDER", "what?", "--out", "FOLDER/a.txt"), "a.txt"),
        (("model ask", QA, "FOLDER", "what?", "--out", "FOLDER/notes.txt"), "notes.txt"),
        (("model ask", QA, "FOLDER", "what?", "--out", "none/a.csv"), "none/a.csv: its folder"),
        (("model entities", PROMPTER, "VIDEO", "--box", "0.5,0,0.6,1"), "--box"),
        (("search", "FOLDER/none", "a"), "index.json"),
        (("search", "FOLDER/empty", "a"), "empty"),
        (("search", "FOLDER/empty", "a", "--nothing-below", "nan"), "--nothing-below"),
        (("index add", "FOLDER/i", "FOLDER/none", "--model", RETRIEVAL), "FOLDER/none"),
        (("index add", "FOLDER/i", "FOLDER/nothing", "--model", RETRIEVAL), "FOLDER/nothing"),
        (("index add", "FOLDER/j", "FOLDER/bad", "--model", RETRIEVAL), "FOLDER/j"),
        (
            ("index add", "FOLDER/k", "FOLDER/bad", "--model", "models:/none@best"),
            "models:/none@best",
        ),
        (("index add", "FOLDER/notes.txt", "FOLDER/bad", "--model", RETRIEVAL), "FOLDER/notes.txt"),
        (("model export", RETRIEVAL, "FOLDER/bad"), "FOLDER/bad"),
        (("model register", digest("cache_prompts")[:8], "--name", "shapes"), "cache_prompts"),
    ],
)
def test_mistakes_are_one_line(alpro_model, videos, tmp_path, arguments, named):
    (tmp_path / "notes.txt").write_text("no video")
    for folder in ("empty", "nothing", "bad"):
        (tmp_path / folder).mkdir()
    write_json(tmp_path / "empty" / "index.json", {"model": "x", "digest": "y"})
    (tmp_path / "bad" / "a.mp4").write_text("no video")
    real = {"VIDEO": str(videos[0]), "FOLDER": str(tmp_path)}
    for name, value in real.items():
        arguments = [argument.replace(name, value) for argument in arguments]
        named = named.replace(name, value)
    status, _, err = alpro_model(*arguments)
    lines = [line for line in err.splitlines() if not line.startswith("rejected: ")]
    assert (status, len(lines), lines[0].startswith("error: "), named in lines[0]) == (
        2,
        1,
        True,
        True,
    ), err


@pytest.mark.parametrize("end", ["parquet", "csv"])
def test_many_videos_are_one_table(alpro_model, own, videos, tmp_path, end):
    rows = [{"path": "bad.mp4"}, {"path": videos[0].name}, {"path": videos[1].name}, {"file": "x"}]
    (own / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = pq.read_table if end == "parquet" else csv.read_csv
    for command, word, options in (
        (("model ask", QA), "answer", ("what moves?", "-k", 9)),
        (("model entities", PROMPTER), "entity", ("--box", "0,0,0.5,1", "-k", 2)),
    ):
        out = tmp_path / f"{word}.{end}"
        status, printed, _ = alpro_model(*command, own / "m.jsonl", *options, "--out", out)
        assert (status, printed) == (0, f"{out}: 4 rows\n")
        table = read(out)
        places = range(1, 4 if word == "answer" else 3)  # the model has three answers
        columns = [name for n in places for name in (f"{word}_{n}", f"probability_{n}")]
        assert table.column_names[4:] == [*columns, "error"]
        bad, *good, broken = table.to_pylist()
        assert (bad["id"], bad["error"][:10], broken["error"][:7]) == (
            "bad",
            "unreadable",
            "bad row",
        )
        for row, video in zip(good, videos, strict=False):
            single = json.loads(alpro_model(*command, own / video.name, *options, "--json")[1])
            words = single["answers" if word == "answer" else "entities"]
            assert [row[f"{word}_{n}"] for n in places] == [one["text"] for one in words]
            assert [row[f"probability_{n}"] for n in places] == pytest.approx(
                [one["probability"] for one in words]
            )
            assert not row["error"]


# `alpro eval`: any model on any labels.


@pytest.fixture
def data(sample, tmp_path):
    """A manifest of five clips: two have the same caption, one is right for another's caption, one is damaged."""
    videos = [
        Path(shutil.copy(video, tmp_path)).name
        for video in sorted((sample / "videos").glob("test-*.mp4"))[:4]
    ]
    (tmp_path / "bad.mp4").write_text("no video")
    question = [{"question": "what moves?", "answer": "ball"}]
    rows = [
        {"id": "a", "path": videos[0], "captions": ["a ball", "one ball"], "questions": question},
        {"id": "b", "path": videos[1], "captions": ["A ball"], "questions": question},
        {"id": "c", "path": videos[2], "captions": ["a star"], "relevant": ["d", "elsewhere"]},
        {"id": "d", "path": videos[3], "captions": ["a box"]},
        {"id": "e", "path": "bad.mp4", "captions": ["a moon"]},
    ]
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "data.jsonl"


@pytest.fixture
def scored(monkeypatch, capsys, trained):
    """scored(model, data, ...): the parsed output of `alpro eval`."""

    def run(*arguments):
        options = ("--json", "--workspace", trained, "--device", "cpu", "--dtype", "float32")
        status, out, err = call(monkeypatch, capsys, "eval", *arguments, *options)
        assert status == 0, err
        return json.loads(out)

    return run


def test_a_text_has_all_its_videos(data):
    items, what = labeled(data, "test")
    labels = labels_of(items)
    assert what == "all: the data names no split"
    assert labels.texts == ["a ball", "one ball", "a star", "a box", "a moon"]
    assert labels.relevant.astype(int).tolist() == [
        [1, 1, 0, 0, 0],
        [1, 0, 0, 0, 0],
        [0, 0, 1, 1, 0],
        [0, 0, 0, 1, 0],
        [0, 0, 0, 0, 1],
    ]
    assert labels.queries("v2t").texts[3] == "a star | a box"


def test_the_split_is_that_of_the_data(data, clips, memory):
    splits = {"a": "test", "b": "train"}
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows = [row | ({"split": splits[row["id"]]} if row["id"] in splits else {}) for row in rows]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [item.id for item in labeled(data, "test")[0]] == ["a"]
    assert [item.id for item in labeled(data, "train")[0]] == ["b"]
    with pytest.raises(
        InputError, match=r"no video with a caption or a question \(split validation\)"
    ):
        labeled(data, "validation")
    items, what = labeled(clips, "test")
    assert what.startswith("split test")
    assert {item.about["split"] for item in items} == {"test"}
    in_store(clips / "index.parquet", *clips.glob("*.tar"))
    fetched = [item.source for item in labeled(memory, "test")[0]]
    assert {sample.fetched for sample in fetched} == {None}  # not all frames in memory
    assert np.array_equal(fetched[0].frames(), items[0].source.frames())


def test_data_of_the_models_own_run_has_its_split(trained, tmp_path, resources, inline_pool):
    """Also a video that came later, by its group, and files by their names where ids differ; other data has all videos,
    and a corpus that is gone is a mistake."""
    rows = [{"id": f"v{n}", "group": f"g{n // 2}", "captions": [f"a ball {n}"]} for n in range(40)]
    source, root = write_manifest(tmp_path / "videos", rows), tmp_path / "workspace"
    config = decode_videos.Config(size=16, validation=0.2, test=0.3, seed=3)
    corpus, clips = write_artifact(root, "decode_videos", config=config.model_dump(mode="json"))
    decode_data(config, source, corpus, resources)
    model, _ = write_artifact(root, "finetune_retrieval", inputs={"clips": clips})
    shutil.copytree(
        next((trained / "artifacts" / "finetune_retrieval").iterdir()) / "model", model / "model"
    )

    decoded = pq.read_table(corpus / "index.parquet", columns=["id", "split", "group"]).to_pylist()
    for split in ("train", "validation", "test"):
        items, what = labeled(source, split, [model])
        assert sorted(item.id for item in items) == sorted(
            row["id"] for row in decoded if row["split"] == split
        )
        assert split in what
        again = source.with_name("again.csv")
        again.write_text(
            "id,path,caption\n" + "".join(f"other-v{n},v{n}.png,a ball\n" for n in range(40))
        )
        assert {item.id for item in labeled(again, split, [model])[0]} == {
            f"other-{item.id}" for item in items
        }
    with source.open("a") as file:
        late = {"id": "late", "path": "v0.png", "group": decoded[-1]["group"], "caption": "x"}
        file.write(json.dumps(late) + "\n")
    assert "late" in {
        item.id for item in labeled(source, decoded[-1]["split"], [model / "model"])[0]
    }
    other = source.with_name("other.jsonl")
    other.write_text(json.dumps({"id": "foreign", "path": "foreign.png", "caption": "x"}) + "\n")
    items, what = labeled(other, "test", [model])
    assert (len(items), what) == (1, "all: the data names no split")
    assert labeled(other, "test", [model, other.parent])[1].startswith(
        f"{what}, and no record says"
    )
    shutil.rmtree(corpus)
    with pytest.raises(InputError, match="decode_videos"):
        labeled(source, "test", [model])


def test_retrieval_is_that_of_the_model_and_of_the_baseline(
    scored, data, trained, clip_folders, tmp_path, hub
):
    found = scored(RETRIEVAL, data, "--baseline", clip_folders["clip"], "--out", tmp_path / "out")
    assert (
        scored(RETRIEVAL, data, "--baseline", hub(clip_folders["clip"]))["baseline"]
        == found["baseline"]
    )
    assert {row["name"] for row in scored("my/clip", data)["results"]} > {
        row["name"] for row in found["baseline"]
    }
    rows = {row["name"]: row for row in found["results"]}
    assert rows["decoded/data"]["value"] == 80
    assert {name.partition("/")[0] for name in rows} == {"decoded", "similarity", "rerank"}
    similarity = Model.load(RETRIEVAL, trained, device="cpu", dtype="float32").similarity(
        ["a ball", "one ball", "a star", "a box"],
        [item.source.path for item in labeled(data, "test")[0][:4]],
    )
    right = [similarity[0].argmax() in (0, 1), similarity[1].argmax() == 0]
    right += [similarity[2].argmax() in (2, 3), similarity[3].argmax() == 3]
    assert rows["similarity/t2v/R1"]["value"] == pytest.approx(25 * sum(map(bool, right)))
    assert rows["similarity/t2v/R1"]["items"] == 4
    assert rows["similarity/t2v/R1"]["chance"] == pytest.approx(100 * (0.5 + 0.25 + 0.5 + 0.25) / 4)
    rivals = {row["name"]: row for row in found["baseline"]}
    assert (
        found["differences"].keys()
        == rivals.keys()
        == {name for name in rows if name.startswith("similarity/")}
    )
    for name, difference in found["differences"].items():
        assert difference["difference"] == pytest.approx(
            rows[name]["value"] - rivals[name]["value"]
        )
    assert {name.rpartition("/")[2] for name in rivals} == {"R1", "R5", "R10", "MdR", "mAP"}
    assert (
        rows["similarity/t2v/R1"]["protocol"]
        == rivals["similarity/t2v/R1"]["protocol"]
        == "all pairs, 4 frames"
    )
    two = ModelFolder.from_pretrained(
        next((trained / "artifacts" / "finetune_retrieval").iterdir()) / "model"
    )
    two.model.set_frames(2)
    two.save_pretrained(tmp_path / "two")
    other = scored(
        tmp_path / "two", data, "--baseline", clip_folders["clip"]
    )  # with the frames of the model
    used = {
        row["protocol"]
        for row in other["results"] + other["baseline"]
        if row["name"] == "similarity/t2v/R1"
    }
    assert used == {"all pairs, 2 frames"}
    assert (tmp_path / "out" / "baseline" / "scores.parquet").is_file()
    assert json.loads((tmp_path / "out" / "results.json").read_text()) == found["results"]


def test_the_order_of_a_search_with_rerank_is_scored(scored, data, trained, tmp_path, monkeypatch):
    monkeypatch.setattr("alpro.stages.evaluation.any_model.RERANKED", 3)
    scored(RETRIEVAL, data, "--out", tmp_path / "out")
    best = {
        row["text"]: row["best"]
        for row in pq.read_table(tmp_path / "out" / "rerank_t2v.parquet").to_pylist()
    }
    model = Model.load(RETRIEVAL, trained, device="cpu", dtype="float32")
    items, videos = encode(model, labeled(data, "test")[0])
    folder = next((trained / "artifacts" / "finetune_retrieval").iterdir())
    add_videos(tmp_path / "index", model, settings(tmp_path / "index", folder), data)
    texts = ["a ball", "a star"]
    scores = match_top_k(model.folder.model, model.texts(texts), videos, 3, directions=("t2v",))[0]
    for text, row in zip(texts, scores, strict=True):
        hits = search(Index.open(tmp_path / "index"), model, text, k=4, rerank=3).hits
        assert (
            [hit.item["id"] for hit in hits]
            == best[text]
            == [items[i].id for i in np.argsort(-row)]
        )


def test_a_threshold_is_wrong_least_often():
    """By hand: at 0.5, of the best similarities 0.45, 0.5, 0.7, 0.9, the first of which is a wrong video's, one
    is below, and of the others (texts without their videos) 0.35, 0.45, 0.45, 0.47 all are."""
    right, wrong = np.array([0.3, 0.5, 0.7, 0.9]), np.array([0.45, 0.47, 0.45, 0.35])
    similarity = np.stack([right, wrong, right - 1], axis=1)
    threshold = Threshold.of(similarity, np.tile([True, False, True], (4, 1)))
    assert vars(threshold) == {"similarity": pytest.approx(0.5), "missed": 0.25, "accepted": 0}
    assert Threshold.of(similarity, np.ones((4, 3), bool)).missed == 0


def test_answers_and_entities_are_scored(scored, data, monkeypatch, capsys, trained):
    rows = {row["name"]: row for row in scored(QA, data)["results"]}
    model, items = Model.load(QA, trained, device="cpu", dtype="float32"), labeled(data, "test")[0]
    right = [model.ask(item.source, "what moves?", 1)[0][0] == "ball" for item in items[:2]]
    assert (rows["qa/acc"]["value"], rows["qa/acc"]["items"]) == (pytest.approx(50 * sum(right)), 2)
    rows = {row["name"]: row for row in scored(PROMPTER, data)["results"]}
    prompter = Model.load(PROMPTER, trained, device="cpu", dtype="float32")
    truths = [({"ball"}, 0), ({"ball"}, 1), ({"star"}, 2), ({"box"}, 3)]
    known = [(truth, i) for truth, i in truths if truth <= set(prompter.folder.entities)]
    right = [prompter.entities(items[i].source, top_k=1)[0][0] in truth for truth, i in known]
    assert rows["entities/acc"]["value"] == pytest.approx(100 * np.mean(right))
    status, out, _ = call(
        monkeypatch, capsys, "eval", PROMPTER, data, "--workspace", trained, "--device", "cpu"
    )
    assert (status, "mAP" in out, "best constant" in out, "--nothing-below" in out) == (
        0,
        True,
        True,
        True,
    )
