"""The commands that use a trained model."""

import json
import shutil

import pytest
import yaml

from alpro import Model
from alpro.files import digest, write_json
from alpro.inference.index import Index
from alpro.inference.search import Searcher
from alpro.pool import in_this_process
from tests.pipeline.conftest import PROMPTER, QA, RETRIEVAL, write_artifact
from tests.pipeline.test_cli import call


@pytest.fixture
def alpro_model(monkeypatch, capsys, trained):
    """alpro_model(command, ...): calls `alpro ...` in the workspace `trained`; its status, output
    and errors."""

    def run(command, *arguments):
        options = {f"model {word}": ["--workspace", trained] for word in ("export", "register")}
        options |= {"index rm": [], "index ls": []}
        shared = options.get(command, ["--workspace", trained, "--device", "cpu"])
        with in_this_process():
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


# Index and search.

TEXT = "a red ball moves left"


@pytest.fixture
def index(alpro_model, own, tmp_path):
    """An index of the videos of `own`."""
    status, *_ = alpro_model("index add", tmp_path / "index", own, "--model", RETRIEVAL)
    assert status == 0
    return tmp_path / "index"


def test_a_folder_is_indexed_once(alpro_model, index, own):
    out = alpro_model("index add", index, own)[1]

    assert out.splitlines() == [
        f"{index}: 3 clips, 0 of them with a caption; 1 rejected",
        "  0 embedded (0 changed), 4 unchanged, 0 removed",
    ]


def test_a_rejected_video_is_named(alpro_model, own, tmp_path):
    _, _, err = alpro_model("index add", tmp_path / "index", own, "--model", RETRIEVAL)

    assert f"rejected: {own / 'bad.mp4'}: unreadable" in err


@pytest.mark.parametrize("words", [[TEXT], TEXT.split()])
def test_a_search_prints_what_the_searcher_finds(words, alpro_model, index, trained):
    model = Model.load(RETRIEVAL, trained, device="cpu")
    expected = Searcher(Index.open(index), model).search(TEXT, 2)

    out = alpro_model("search", index, *words, "-k", 2, "--json")[1]

    assert json.loads(out) == {"text": TEXT, **expected.json()}


def test_the_best_hits_are_ranked_by_matching(alpro_model, index):
    lines = alpro_model("search", index, TEXT, "-k", 3, "--rerank", 1)[1].splitlines()

    assert [line.split()[0] for line in lines] == ["rank", "1", "2", "3", "3"]
    assert lines[-1] == "3 clips searched; the best 1 ranked by matching"
    assert len(lines[1].split()) == len(lines[2].split()) + 1  # one has a match


def test_texts_of_a_file_are_one_table(alpro_model, index, tmp_path):
    (tmp_path / "texts.txt").write_text("a ball\n\na red ring\n")

    table = alpro_model("search", index, f"@{tmp_path / 'texts.txt'}", "-k", 2)[1].splitlines()

    assert [line[:10].strip() for line in table[1:5]] == ["a ball"] * 2 + ["a red ring"] * 2


def test_a_search_without_a_hit_says_what_fits_nothing(alpro_model, index):
    filters = ("--words", "dog", "--where", "start > 1")

    assert "nothing fits" in alpro_model("search", index, TEXT, "--nothing-below", 1)[2]
    assert alpro_model("search", index, TEXT, *filters)[:2] == (
        0,
        "no clip fits start > 1 and the words 'dog'\n",
    )


def test_clips_are_listed_and_removed_by_file_folder_or_id(alpro_model, index, own, videos):
    first = own / videos[0].name
    second = own / videos[1].name
    listed = alpro_model("index ls", index)[1].split()
    first.unlink()
    missing = alpro_model("search", index, TEXT)[1]
    _, removed, _ = alpro_model("index rm", index, first, own / "more", own / "bad.mp4")

    assert listed == sorted(map(str, (first, second, own / "more" / videos[2].name)))
    assert "(missing)" in missing
    assert removed.splitlines()[-1] == f"{index}: 3 removed"
    left = json.loads(alpro_model("index ls", index, "--json")[1])
    assert (left["rejected"], [clip["path"] for clip in left["clips"]]) == ([], [str(second)])
    assert alpro_model("index rm", index, second.stem)[1].splitlines()[0] == str(second)


def test_names_with_escape_codes_are_printed_on_one_line(alpro_model, videos, own, tmp_path):
    index = tmp_path / "index"
    name = "red\x1b[31m\n.mp4"
    shutil.copy(videos[0], own / name)
    (own / "bad\x1b[2J.mp4").write_text("no video")
    rows = [{"path": name, "caption": f"a dog\x1b[31m {'runs ' * 40}"}, {"path": "bad\x1b[2J.mp4"}]
    (own / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    printed = [alpro_model("index add", index, own / "m.jsonl", "--model", RETRIEVAL)]
    printed += [alpro_model("search", index, "a ball"), alpro_model("index ls", index)]
    printed += [alpro_model("index rm", index, "none\x1b[31m"), alpro_model("index rm", index, own)]

    for _, out, err in printed:
        assert "\x1b" not in out + err
    assert printed[2][1].count("\n") == 1
    assert "a dog" in printed[1][1]
    assert max(map(len, printed[1][1].splitlines())) < len(str(own)) + 120  # a shortened caption


def test_the_device_and_precision_reach_a_model(alpro_model, videos, trained):
    expected = Model.load(QA, trained, device="cpu", dtype="bfloat16").ask(videos[0], "what?")

    _, out, _ = alpro_model("model ask", QA, videos[0], "what?", "--dtype", "bfloat16", "--json")

    assert json.loads(out)["answers"] == probabilities(expected)
    assert expected != Model.load(QA, trained, device="cpu").ask(videos[0], "what?")


# Questions and entities.


def probabilities(ranked: list) -> list[dict]:
    return [{"text": word, "probability": pytest.approx(p)} for word, p in ranked]


def test_a_question_is_answered_from_the_list(alpro_model, videos, trained):
    expected = Model.load(QA, trained, device="cpu").ask(videos[0], "what moves?")

    _, as_json, _ = alpro_model("model ask", QA, videos[0], "what moves?", "--json")
    _, as_text, _ = alpro_model("model ask", QA, videos[0], "what moves?", "-k", 1)

    assert json.loads(as_json)["answers"] == probabilities(expected)
    assert as_text.split() == ["answer", "probability", expected[0][0], f"{expected[0][1]:.3f}"]


def test_entities_of_a_region_are_named(alpro_model, videos, trained):
    prompter = Model.load(PROMPTER, trained, device="cpu")
    expected = prompter.entities(videos[0], (0.5, 0, 0.25, 1), top_k=5)

    box = ("--box", "0.5,0,0.25,1")
    _, as_json, _ = alpro_model("model entities", PROMPTER, videos[0], *box, "--json")
    _, _, note = alpro_model("model entities", PROMPTER, videos[0])

    assert json.loads(as_json)["entities"] == probabilities(expected)
    assert "one of these is always named" in note


def test_a_pre_trained_model_names_entities_of_a_video_with_a_caption(
    alpro_model, videos, pretrained
):
    expected = Model.load(pretrained, device="cpu").entities(videos[0], top_k=2, text="a ball")

    options = ("--text", "a ball", "--json", "-k", 2)
    _, out, _ = alpro_model("model entities", pretrained, videos[0], *options)

    assert json.loads(out)["entities"] == probabilities(expected)


# Export.


def test_an_exported_model_has_a_card_of_its_artifact(alpro_model, trained, tmp_path):
    """Its scores are those of its own evaluation, with intervals; that of the other model in it is
    left out."""
    score = {
        **{"model": "fine-tuned", "what": "by matching", "metric": "R@1", "direction": "t2v"},
        **{"value": 51.5, "low": 44.25, "high": 58.0, "unit": "%", "table": "retrieval"},
        **{"higher_is_better": True, "protocol": "", "baseline": "", "chance": 0.5},
        **{"items": 1200, "name": "matching/t2v/R1"},
    }
    own = tmp_path / "workspace"
    retrieval = digest("finetune_retrieval")
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
    inputs = {"model": model}
    evaluated, _ = write_artifact(own, "evaluate", inputs=inputs, config={"split": "test"})
    write_json(evaluated / "results.json", [score])
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
    assert f"| films | {films.fingerprint[:8]} | 1,300 | 2,600 | 0 | 0 |" in card
    assert "| fine-tuned, by matching | t2v R@1 | 51.5 [44.2, 58.0] | 0.5 % | 1200 |" in card
    header = yaml.safe_load(card.split("---")[1])
    assert "sentence-transformers" in header["tags"]
    assert "SentenceTransformer(folder" in card
    assert "Built 2026-01-01, commit abc, with torch 2.13.0." in card


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("model ask", "0000", "VIDEO", "what?"), "0000"),
        (("model ask", RETRIEVAL, "VIDEO", "what?"), "finetune_qa"),
        (("model ask", "mine/finetune_qa", "VIDEO", "?"), "`alpro run finetune_qa --config mine`"),
        (("model ask", QA, "FOLDER/none.mp4", "what?"), "none.mp4"),
        (("model entities", PROMPTER, "VIDEO", "--box", "0.5,0,0.6,1"), "--box"),
        (("search", "FOLDER/none", "a"), "no index"),
        (("search", "FOLDER/earlier", "a"), "an earlier version"),
        (("index add", "FOLDER/i", "FOLDER/nothing", "--model", RETRIEVAL), "FOLDER/nothing"),
        (("index add", "FOLDER/j", "FOLDER/bad", "--model", RETRIEVAL), "FOLDER/j"),
        (("model export", RETRIEVAL, "FOLDER/bad"), "FOLDER/bad"),
        (("model register", digest("cache_prompts")[:8], "--name", "shapes"), "cache_prompts"),
    ],
)
def test_mistakes_are_one_line(alpro_model, videos, tmp_path, arguments, named):
    (tmp_path / "notes.txt").write_text("no video")
    for folder in ("earlier", "nothing", "bad"):
        (tmp_path / folder).mkdir()
    write_json(tmp_path / "earlier" / "index.json", {"model": "x", "digest": "y"})
    (tmp_path / "bad" / "a.mp4").write_text("no video")
    places = {"VIDEO": str(videos[0]), "FOLDER": str(tmp_path)}
    for word, place in places.items():
        arguments = [argument.replace(word, place) for argument in arguments]
        named = named.replace(word, place)

    status, _, err = alpro_model(*arguments)

    (line,) = (one for one in err.splitlines() if not one.startswith(("rejected: ", "note: ")))
    assert (status, line[:7]) == (2, "error: ")
    assert named in line
