"""The commands that use a trained model."""

import json
import shutil

import pytest
import yaml

from alpro import Model
from alpro.files import digest, write_json
from alpro.inference.index import INDEXES, Index
from alpro.inference.search import Searcher
from alpro.pool import in_this_process
from tests.conftest import write_lines
from tests.pipeline.conftest import PROMPTER, QA, RETRIEVAL, write_artifact
from tests.pipeline.score_rows import score_row


@pytest.fixture
def alpro_model(call, trained):
    """alpro_model(command, ...): calls `alpro ...` in the workspace `trained`; its status, output
    and errors."""

    def run(command, *arguments):
        options = []
        if not command.startswith(("index rm", "index ls")):
            options += ["--workspace", trained]
            if not command.startswith(("model export", "model register")):
                options += ["--device", "cpu"]

        with in_this_process():
            return call(*command.split(), *arguments, *options)

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


def test_what_changed_in_a_folder_is_indexed_and_a_rejected_video_is_named(
    alpro_model, index, own
):
    (own / "bad.mp4").write_text("no video either")

    _, out, _ = alpro_model("index add", index, own)

    err = alpro_model("index ls", index)[2]
    assert f"rejected: {own / 'bad.mp4'}: unreadable" in err
    assert out.splitlines() == [
        f"{index}: 3 clips; 1 rejected (see `alpro index ls`)",
        "  0 embedded, 0 updated, 3 unchanged, 0 removed",
    ]


def test_the_index_of_a_failed_run_is_noted_for_gc(
    alpro_model, own, tmp_path, trained, monkeypatch
):
    def fail(index):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Index, "optimize", fail)

    assert (
        alpro_model("index add", tmp_path / "index", own, "--model", RETRIEVAL)[0] != 0
    )

    assert f"\t{tmp_path / 'index'}\n" in (trained / INDEXES).read_text()


def test_a_search_prints_what_the_searcher_finds(alpro_model, index, trained):
    model = Model.load(RETRIEVAL, trained, device="cpu")
    expected = Searcher(Index.open(index), model).search(TEXT, 2, rerank=1)

    options = ("-k", 2, "--rerank", 1, "--json")
    out = alpro_model("search", index, *TEXT.split(), *options)[1]

    assert json.loads(out) == {"text": TEXT, **expected.json()}


def test_clips_are_listed_and_removed_by_file_folder_or_id(
    alpro_model, index, own, videos
):
    first = own / videos[0].name
    second = own / videos[1].name
    third = own / "more" / videos[2].name
    assert alpro_model("index ls", index)[1].split() == sorted(
        map(str, (first, second, third))
    )

    first.unlink()
    assert "missing" in alpro_model("search", index, TEXT)[1]

    removed = alpro_model("index rm", index, first, own / "more", own / "bad.mp4")[1]
    assert removed.splitlines()[-1] == f"{index}: 3 removed"
    assert alpro_model("index ls", index)[1:] == (
        f"{second}\n",
        f"1 clips of {Index.open(index).settings.model}\n",
    )
    assert alpro_model("index rm", index, second.stem)[1].splitlines()[0] == str(second)


def test_names_with_escape_codes_are_printed_on_one_line(
    alpro_model, videos, own, tmp_path
):
    index = tmp_path / "index"
    name = "red\x1b[31m\n.mp4"
    shutil.copy(videos[0], own / name)
    (own / "bad\x1b[2J.mp4").write_text("no video")
    rows = [
        {"path": name, "caption": f"a dog\x1b[31m {'runs ' * 40}"},
        {"path": "bad\x1b[2J.mp4"},
    ]
    manifest = write_lines(own / "m.jsonl", rows)

    added = alpro_model("index add", index, manifest, "--model", RETRIEVAL)
    found = alpro_model("search", index, "a ball")
    listed = alpro_model("index ls", index)
    removed = alpro_model("index rm", index, "none\x1b[31m")

    for _, out, err in (added, found, listed, removed):
        assert "\x1b" not in out + err
    assert listed[1].count("\n") == 1
    assert "a dog" in found[1]
    # A shortened caption.
    assert max(map(len, found[1].splitlines())) < len(str(own)) + 120


# Questions and entities.


def probabilities(ranked):
    return [[word, f"{p:.3f}"] for word, p in ranked]


def printed(out):
    _, *lines = out.splitlines()
    return [line.rsplit(maxsplit=1) for line in lines]


def test_a_question_is_answered_from_the_list(alpro_model, videos, trained):
    ((answer, probability),) = Model.load(QA, trained, device="cpu").ask(
        videos[0], "what moves?", 1
    )

    _, out, _ = alpro_model("model ask", QA, videos[0], "what moves?", "-k", 1)

    assert out.split() == ["answer", "probability", answer, f"{probability:.3f}"]


def test_the_precision_reaches_a_model(alpro_model, videos, trained):
    exact = Model.load(QA, trained, device="cpu").ask(videos[0], "what?")
    expected = Model.load(QA, trained, device="cpu", dtype="bfloat16").ask(
        videos[0], "what?"
    )

    _, out, _ = alpro_model("model ask", QA, videos[0], "what?", "--dtype", "bfloat16")

    assert printed(out) == probabilities(expected) != probabilities(exact)


def test_entities_of_a_region_are_named(alpro_model, videos, trained):
    prompter = Model.load(PROMPTER, trained, device="cpu")
    expected = prompter.entities(videos[0], (0.5, 0, 0.25, 1), top_k=5)

    box = ("--box", "0.5,0,0.25,1")
    _, out, note = alpro_model("model entities", PROMPTER, videos[0], *box)

    assert printed(out) == probabilities(expected)
    assert "is always named" in note


# Export.


def test_an_exported_model_has_a_card_of_its_artifact(alpro_model, folders, tmp_path):
    """Its scores are those of its own evaluation; those of the other model in it are left out."""
    counts = {"samples": 1300, "train": 1000, "captions": 2600}
    _, films = write_artifact(
        tmp_path, "decode_videos", name="decode_videos films", counts=counts
    )
    folder, model = write_artifact(
        tmp_path,
        "finetune_retrieval",
        inputs={"films": films},
        config={"lr": 1e-4, "batch_size": 64},
        counts={"steps": 500},
    )
    shutil.copytree(folders["retrieval"] / "model", folder / "model")
    evaluated, _ = write_artifact(
        tmp_path, "evaluate", inputs={"model": model}, config={"split": "test"}
    )
    own = score_row(model="fine-tuned", low=44.25, high=58.0)
    write_json(evaluated / "results.json", [own, score_row(what="of CLIP")])

    out = tmp_path / "out"
    status, printed, err = alpro_model(
        "model export", folder, out, "--license", "cc-by-4.0"
    )

    assert (status, err) == (0, "")
    assert printed.startswith(f"{out}: a retrieval model for transformers")
    card = (out / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["license"] == "cc-by-4.0"
    assert (
        f"The artifact finetune_retrieval {model.fingerprint}, built 2026-01-01, commit abc"
        in card
    )
    assert '"lr": 0.0001' in card
    assert (
        "| fine-tuned, by similarity | t2v R@1 | 60.0 [44.2, 58.0] | 0.5 % | 500 |"
        in card
    )
    assert "of CLIP" not in card


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("model ask 0000 clip.mp4 what?", "0000"),
        (f"model ask {RETRIEVAL} clip.mp4 what?", "finetune_qa"),
        (
            "model ask mine/finetune_qa clip.mp4 what?",
            "mine/finetune_qa: no such folder",
        ),
        (f"model ask {QA} none.mp4 what?", "none.mp4"),
        (f"model entities {PROMPTER} clip.mp4 --box 0.5,0,0.6,1", "box 0.5,0,0.6,1"),
        ("search none a", "no index"),
        ("search earlier a", "an earlier version"),
        (f"index add index nothing --model {RETRIEVAL}", "nothing: "),
        (f"index add index bad --model {RETRIEVAL}", "index: "),
        (f"model export {RETRIEVAL} bad", "bad: "),
        (
            f"model register {digest('cache_prompts')[:8]} --name shapes",
            "cache_prompts",
        ),
    ],
)
def test_mistakes_are_one_line(
    command, named, alpro_model, videos, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clip.mp4").symlink_to(videos[0])
    for folder in ("earlier", "nothing", "bad"):
        (tmp_path / folder).mkdir()
    write_json(tmp_path / "earlier" / "index.json", {"model": "x", "digest": "y"})
    (tmp_path / "bad" / "a.mp4").write_text("no video")

    status, _, err = alpro_model(command)

    lines = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert status == 2
    (line,) = lines
    assert line.startswith("error: ")
    assert named in line
