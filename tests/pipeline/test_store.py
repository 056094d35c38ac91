"""The store: fingerprints, the record that makes an artifact, checksums, lineage, and `alpro
artifacts ...`."""

import hashlib
import json
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from alpro.artifact import Record, Source, read_record, require
from alpro.errors import InputError
from alpro.files import read_json, write_json
from alpro.inference.index import Index, IndexSettings
from alpro.names import record_index
from alpro.pipeline.cli import main as cli
from alpro.pipeline.execution.launch import run_stage
from alpro.pipeline.store import artifacts as artifacts_module
from alpro.pipeline.store import checksums
from alpro.pipeline.store.artifacts import Step, Store, check_inputs, hub_commits
from alpro.pipeline.store.checksums import describe_contents, verify
from alpro.stages import STAGES, decode_videos, render_sample
from alpro.stages.execution.interface import STOP, Outcome, Resources, Stop, Stopped
from tests.conftest import REVISION
from tests.pipeline.conftest import write_artifact


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "artifacts")


def sample_step(**config) -> Step:
    return Step("render_sample", "render_sample", render_sample.Config(**config))


def decode_step(sample: Step | None = None, **config) -> Step:
    inputs = {"sample": sample or sample_step()}
    return Step(
        "decode_videos",
        "decode_videos clips",
        decode_videos.Config(**config),
        inputs,
        {"notes": "ab" * 32},
    )


def test_a_fingerprint_changes_with_all_that_decides_the_result_and_with_nothing_else(monkeypatch):
    step = decode_step()
    others = [
        decode_step(size=64),
        decode_step(sample_step(seed=1)),
        replace(step, inputs={"data": sample_step()}),
    ]
    others += [
        replace(step, digests={"notes": "cd" * 32}),
        replace(step, digests={"data": "ab" * 32}),
    ]
    assert len({step.fingerprint, *(other.fingerprint for other in others)}) == 1 + len(others)
    for change in ({"given": {"notes": Path("/elsewhere")}}, {"name": "what people call it"}):
        assert replace(step, **change).fingerprint == step.fingerprint
    for stage in STAGES:
        both = (
            import_module(f"alpro.stages.{stage}").Config.model_fields.keys()
            & Resources.model_fields.keys()
        )
        assert not both, f"{stage} would be rebuilt for other resources: {both}"
    monkeypatch.setattr(decode_videos, "VERSION", 1000)
    assert decode_step().fingerprint != step.fingerprint


def test_the_record_is_written_last_and_describes_the_artifact(store, monkeypatch):
    step = decode_step()
    clock = [5.0]
    monkeypatch.setattr(artifacts_module, "time", SimpleNamespace(monotonic=lambda: clock[0]))

    def work(step: Step, out: Path) -> Outcome:
        assert out == store.folder(step)
        assert store.find(step) is None
        (out / "result.txt").write_text("done")
        for name in ("checkpoints", "parts", "model"):
            (out / name).mkdir()
        (out / "model" / ".weights.0123.part").touch()
        clock[0] += 7.25
        return Outcome({"items": 3}, {"score": 0.5}, ["few"], "float32")

    record = store.make(step, work, {"commit": "abc"})
    assert store.find(step) == record
    assert record.run["seconds"] == 7.2
    assert record.fingerprint == step.fingerprint
    assert record.config == step.config.model_dump(mode="json")
    assert record.inputs["sample"].fingerprint == step.inputs["sample"].fingerprint
    assert (record.counts, record.metrics) == ({"items": 3}, {"score": 0.5})
    assert (record.warnings, record.precision, record.run["commit"]) == (
        ["few"],
        "float32",
        "abc",
    )
    assert {"python", "torch", "av", "ffmpeg"} <= record.versions.keys()
    assert {path.name for path in store.folder(step).rglob("*")} == {
        "result.txt",
        "model",
        "artifact.json",
    }


def test_the_record_has_the_commits_of_the_hubs_models_that_are_named_without_one(
    hub, clip_folders
):
    config = {"clip": hub(clip_folders["clip"]), "vit": "vit.tag", "bert": ""}
    hub(clip_folders["clip"], "timm/vit.tag")
    record = Record(stage="train_prompter", config=config)
    assert hub_commits(record) == {"train_prompter.clip": REVISION, "train_prompter.vit": REVISION}
    config["clip"] += f"@{REVISION}"
    assert (
        hub_commits(replace(record, files={"train_prompter.vit": "the digest of a folder"})) == {}
    )


def test_failing_work_can_be_continued_and_that_of_changed_files_leaves_nothing(store):
    step = decode_step()

    def work(step: Step, out: Path) -> Outcome:
        if fails:
            (out / "half.txt").write_text("half")
            raise OSError("disk full")
        assert (out / "half.txt").exists() == (step.stage == "decode_videos")
        assert not (out / "parts").exists()
        (out / "parts").mkdir()
        return Outcome()

    fails = True
    with pytest.raises(OSError, match="disk full"):
        store.make(step, work, {})
    assert (store.find(step), store.all(), store.snapshot().unfinished()) == (
        None,
        [],
        [store.folder(step)],
    )
    fails = False
    store.make(step, work, {})
    assert store.find(step) is not None
    here = [False, True]
    step = replace(sample_step(), recheck=lambda: here.pop(0))
    with pytest.raises(InputError, match="render_sample"):
        store.make(step, work, {})
    assert store.find(step) is None
    store.make(step, work, {})
    assert store.find(step)
    assert {file.name for file in store.folder(step).iterdir()} == {"artifact.json"}


def test_a_run_waits_for_another_until_it_is_stopped(store, monkeypatch):
    """It says so once."""
    step = sample_step()
    stop = Stop()
    lines: list[str] = []
    with store.lock(step, pytest.fail) as held:
        times = iter([None, None, held.release])
        with monkeypatch.context() as patch:
            patch.setattr(
                Stop, "wait", lambda self, seconds: (release := next(times)) and release()
            )
            with store.lock(step, lines.append):
                assert lines == [f"{step.name}: waiting for another run to build it"]
    token = STOP.set(stop)
    try:
        with store.lock(step):
            stop.request()
            with pytest.raises(Stopped), store.lock(step):
                pass
    finally:
        STOP.reset(token)


def test_what_cannot_be_written_or_is_missing_is_an_input_error(store):
    store.root.mkdir()
    (store.root / "render_sample").write_text("not a folder")
    with pytest.raises(InputError, match=f"{store.root}/render_sample"), store.lock(sample_step()):
        pass
    with pytest.raises(InputError, match=r"index\.parquet"):
        require(store.root, "index.parquet")
    assert require(store.root, "render_sample") == store.root / "render_sample"


# Checksums.

FILES = {"a.tar": b"0123456789", "model/weights": b"weights", "empty": b""}
OTHER = Step("render_sample", "other", render_sample.Config(seed=1))


def build(store: Store, step: Step | None = None, sha256: dict[str, str] | None = None) -> Path:
    step = step or sample_step()

    def work(_: Step, out: Path) -> Outcome:
        for name, content in FILES.items():
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_bytes(content)
        (out / "work.json").write_text("{}")
        return Outcome(sha256=sha256 or {})

    store.make(step, work, {})
    return store.folder(step)


def problems(store: Store) -> list[tuple[str, str, str]]:
    return [(problem.kind, problem.file, problem.detail) for problem in verify(store.all())]


def test_a_record_has_the_size_and_the_sha256_of_every_file(store, monkeypatch):
    folder = build(store)
    recorded = read_json(folder / "artifact.json")["contents"]
    assert recorded == {
        n: {"size": len(c), "sha256": hashlib.sha256(c).hexdigest()} for n, c in FILES.items()
    }
    assert problems(store) == []
    monkeypatch.setattr(checksums, "checksum", lambda path: "1" * 64)
    recorded = describe_contents(
        folder, {"a.tar": "2" * 64, "not there": ""}
    )  # that a stage has hashed
    first = {name: value["sha256"][0] for name, value in recorded.items()}
    assert first == {"a.tar": "2", "empty": "1", "model/weights": "1"}


def test_changed_missing_and_extra_files_are_found(store, monkeypatch):
    folder = build(store)
    (folder / "a.tar").write_bytes(b"0123456780")  # of the same size
    ((kind, file, detail),) = problems(store)
    assert (kind, file, "SHA-256" in detail) == ("damaged", "a.tar", True)
    (folder / "a.tar").write_bytes(b"")
    (folder / "model" / "weights").unlink()
    (folder / "model" / "note").touch()
    (folder / ".a.tar.0456.part").touch()
    assert problems(store) == [
        ("damaged", "a.tar", "0 bytes instead of 10"),
        ("extra", "model/note", ""),
        ("missing", "model/weights", ""),
    ]

    def checksum(path: Path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(checksums, "checksum", checksum)
    assert problems(store)[1] == ("damaged", "empty", "cannot be read: Input/output error")


@pytest.mark.parametrize(
    "change",
    [{"config": {"seed": 5}}, {"metrics": {"test/recall_1": 99.0}}, {"contents": {}}, {"sum": ""}],
)
def test_an_edited_record_is_found_and_not_used(store, change):
    path = build(store) / "artifact.json"
    write_json(path, read_json(path) | change)
    assert ("damaged", "artifact.json") in [problem[:2] for problem in problems(store)]
    with pytest.raises(InputError, match=r"artifact.json was changed"):
        store.find(sample_step())


@pytest.mark.parametrize("name", ["model/weights", "empty"])
@pytest.mark.parametrize(
    "damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"weighty")]
)
def test_a_damaged_input_is_refused_and_no_stage_starts_with_it(store, name, damage):
    folder = build(store)
    check_inputs([folder, str(folder / "model"), "https://elsewhere/shards", folder.parent])
    damage(folder / name)
    for place in (folder, folder / "model"):
        with pytest.raises(InputError, match=rf"{name} is damaged or missing"):
            check_inputs([place])
    step = decode_step()
    with pytest.raises(InputError, match=f"{name} is damaged"):
        run_stage(step, store.folder(step), store, Resources())


def test_the_exit_status_tells_whether_all_is_as_recorded(store, tmp_path, capsys):
    good = build(store)
    bad = build(store, OTHER)
    (bad / "a.tar").write_bytes(b"x")

    def status(*arguments: object) -> int:
        return cli.execute(
            ["artifacts", "verify", *map(str, arguments), "--workspace", str(tmp_path)]
        )

    assert status() == 1
    assert f"damaged  {bad.name}  other  a.tar  1 bytes instead of 10\n" in capsys.readouterr().out
    assert (status(good.name[:6]), status(good.name, bad.name), status("0" * 20)) == (0, 1, 2)
    capsys.readouterr()
    for removed in ({"sum"}, {"sum", "contents"}):
        record = read_json(good / "artifact.json")
        write_json(
            good / "artifact.json",
            {key: value for key, value in record.items() if key not in removed},
        )
        assert (status(), "was changed" in capsys.readouterr().out) == (1, True)
    bad.rename(bad.with_name("0" * 16))
    assert (status("0" * 8), "fingerprint" in capsys.readouterr().out) == (2, False)
    (good / "artifact.json").write_text("")
    assert status() == 1
    lines = [line.split(maxsplit=4)[2:] for line in capsys.readouterr().out.splitlines()]
    assert ["render_sample", "artifact.json", "cannot be read"] in lines
    assert ["other", "artifact.json", "does not match its fingerprint"] in lines


# Lineage, and removal.


def artifact(store: Store, mark: str, name: str, *inputs: str) -> None:
    """Writes an artifact; each is newer than the one before, and larger."""
    day = 1 + len(store.all())
    data = "my videos" if mark == "d" else ""
    arguments = {"config": "sample", "data": data, "changes": ["pretrain.lr=1e-4", "name='my own'"]}
    arguments |= {"folder": "/home/me"}
    run = {
        "at": f"2026-01-0{day}T00:00:00",
        "seconds": 1.0,
        "commit": "abc123+",
        "arguments": arguments,
    }
    more = {
        "name": name,
        "fingerprint": mark * 64,
        "run": run,
        "counts": {"rows": 3},
        "versions": {"torch": "9.9"},
    }
    more |= {"inputs": {source: Source(source, source * 64) for source in inputs}}
    folder, _ = write_artifact(
        store.root.parent, name.split()[0], **more, config={"seed": 7, "lr": 0.1234567891}
    )
    (folder / "data").write_bytes(bytes(day * 100_000))


@pytest.fixture
def many(store) -> Store:
    """Two corpora and two results of each stage; the newer `train` needs a, the older ones b and a;
    f is unfinished."""
    artifact(store, "a", "decode clips")
    artifact(store, "b", "decode stills")
    artifact(store, "c", "train", "a", "b")
    artifact(store, "d", "evaluate", "c", "a")
    artifact(store, "e", "train", "a")
    artifact(store, "0", "evaluate", "e", "a")
    (store.root / "train" / ("f" * 16) / "parts").mkdir(parents=True)
    return store


def marks(artifacts: list) -> str:
    return "".join(record.fingerprint[0] for _, record in artifacts)


def folder_of(store: Store, mark: str) -> Path:
    return next(folder for folder, record in store.all() if record.fingerprint[0] == mark)


def alpro(store: Store, *words: str) -> int:
    """Calls `alpro artifacts ...`; returns its exit status."""
    return cli.execute(["artifacts", *words, "--workspace", str(store.root.parent)])


def test_lineage_has_inputs_first_and_each_once_and_what_no_kept_result_was_built_from_goes_users_first(
    many,
):
    """By default the newest of each name is kept, also a corpus that no result needs."""
    removed = {"": "dc", "0": "dcb", "d": "0e", "c": "0ed", "ec": "0d", "de": "0", "b": "0edca"}
    for kept, expected in removed.items():
        assert marks(many.snapshot().unreachable([mark * 64 for mark in kept])) == expected, kept
    assert marks(many.snapshot().unreachable(["gone"])) == "0edcba"
    records = {record.fingerprint[0]: record for _, record in many.all()}  # oldest first
    assert "".join(records) == "abcde0"
    assert marks(many.snapshot().lineage(records["d"])) == "abcd"
    assert marks(many.snapshot().lineage(records["0"])) == "ae0"
    (folder_of(many, "b") / "artifact.json").unlink()
    assert marks(many.snapshot().lineage(records["d"])) == "acd"


def test_gc_lists_and_then_removes_and_touches_nothing_else(many, tmp_path, capsys):
    for place in ("reports/a.html", "mlflow/1/picture.png", "mlflow.db"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    before = {path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"}
    gone = {file for mark in "cd" for file in folder_of(many, mark).iterdir()}
    alpro(many, "gc")
    printed = capsys.readouterr().out
    assert "c" * 16 in printed
    assert f"alpro artifacts rm {'f' * 16}" in printed
    assert marks(many.all()) == "abcde0"
    alpro(many, "gc", "--yes")
    assert marks(many.all()) == "abe0"
    assert {
        path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"
    } == before - gone
    assert (many.root / "train" / ("f" * 16) / "parts").is_dir()
    capsys.readouterr()
    alpro(many, "gc", "--yes")
    assert "nothing to remove" in capsys.readouterr().out
    alpro(many, "gc", "00", "--yes")
    assert marks(many.all()) == "ae0"


def test_gc_removes_the_units_of_the_corpora_that_it_removes(many, tmp_path, capsys):
    for mark in "ab":
        (tmp_path / "units" / mark).mkdir(parents=True)
        (tmp_path / "units" / mark / "shard.tar").write_bytes(bytes(2 << 20))
        table = pa.table({"name": ["train"], "key": [mark]})
        pq.write_table(table, folder_of(many, mark) / "units.parquet")

    alpro(many, "gc", "00", "--yes")  # built from a

    assert [unit.name for unit in (tmp_path / "units").iterdir()] == ["a"]
    assert "1 units that no corpus is made of: 2.0 MiB" in capsys.readouterr().out


def test_gc_keeps_the_models_of_indexes_and_of_the_registry(many, tmp_path, monkeypatch):
    """c embedded the videos of an index elsewhere, d is registered; neither is the newest of its
    name."""
    settings = IndexSettings(model=str(folder_of(many, "c")), digest="x")
    index = Index.create(tmp_path.with_name("index of another folder"), settings, 8, {})
    record_index(tmp_path, index.place)
    alpro(many, "gc", "--yes")
    assert marks(many.all()) == "abce0"

    (tmp_path / "mlflow.db").touch()
    registry = "alpro.pipeline.tracking.registry.registered_fingerprints"
    monkeypatch.setattr(registry, lambda uri: {"e" * 64})
    alpro(many, "gc", "a" * 16, "--yes")
    assert marks(many.all()) == "abce"


def test_what_lies_outside_of_the_workspace_is_listed_and_stays(many, tmp_path, capsys):
    """Also if an artifact is a link to that of another workspace."""
    folder = folder_of(many, "c")
    other = tmp_path / "another workspace"
    shutil.move(folder, other)
    folder.symlink_to(other)
    assert alpro(many, "gc", "--yes") == 0
    assert folder.name[:8] in capsys.readouterr().out
    assert read_record(other)
    assert marks(many.all()) == "abce0"
    for place in (folder, other):
        with pytest.raises(InputError, match=str(other)):
            many.remove([place])
    assert (other / "data").is_file()


def test_an_interrupted_removal_leaves_no_record_over_an_incomplete_folder(many, monkeypatch):
    def killed(folder: Path) -> None:
        (folder / "data").unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(artifacts_module.shutil, "rmtree", killed)
    folders = [folder for folder, _ in many.snapshot().unreachable()]
    with pytest.raises(KeyboardInterrupt):
        many.remove(folders)
    assert marks(many.all()) == "abce0"
    assert not (folders[0] / "artifact.json").exists()
    assert all((folder / "data").is_file() for folder, _ in many.all())


def test_rm_removes_artifacts_and_unfinished_work_and_nothing_while_a_stage_is_built(many, capsys):
    step = type("Step", (), {"stage": "g", "fingerprint": "9" * 64})()
    with many.lock(step), pytest.raises(InputError, match="g/9999"):
        many.remove([folder_of(many, "d")])
    assert len(many.all()) == 6
    assert alpro(many, "rm", "dd") == 2  # nobody answers here
    assert "--yes" in capsys.readouterr().err
    assert len(many.all()) == 6
    interrupted = f"{many.root / 'train' / ('f' * 16)}/"  # as a shell completes it
    assert alpro(many, "rm", " dd", interrupted, "dddd ", "--yes") == 0
    assert marks(many.all()) == "abce0"
    assert not (many.root / "train" / ("f" * 16)).exists()
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_rm_asks_at_a_terminal(many, monkeypatch, capsys):
    answers = ["", "n", "yes"]
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", lambda question: answers.pop(0))
    for expected in ("abcde0", "abcde0", "abce0"):
        alpro(many, "rm", "dd")
        assert marks(many.all()) == expected
    assert capsys.readouterr().err.count("nothing was removed") == 2


def test_artifacts_are_listed_with_their_scores(store, capsys):
    """Of an evaluation on its split, of a training on the validation split."""
    root = store.root.parent
    scores = {"test/retrieval_vtc/t2v/R1": 51.26, "test/qa/acc": 33.0, "test/other": 1.0}
    write_artifact(root, "evaluate", metrics=scores)
    write_artifact(root, "finetune_qa", metrics={"validation/qa/acc": 44.0})
    write_artifact(root, "cache_prompts", metrics={"loss": 55.5})
    alpro(store, "ls")
    out = capsys.readouterr().out
    assert [score for score in ("51.3", "33.0", "44.0", "55.5") if score in out] == [
        *("51.3", "33.0", "44.0")
    ]


def test_artifacts_are_listed_with_inputs_and_sizes(many, capsys):
    (folder_of(many, "a") / "link").symlink_to("data")
    alpro(many, "ls")
    lines = capsys.readouterr().out.splitlines()
    (line,) = (text for text in lines if text.startswith("c" * 16))
    inputs = ["a", "a" * 8 + ",", "b", "b" * 8]
    assert line.split()[1:] == ["train", "2026-01-03", "00:00", "1", "0.3", "sample", *inputs]
    assert lines[-1] == "6 artifacts, 2.1 MB"
    alpro(many, "ls", "--json")
    rows = json.loads(capsys.readouterr().out)
    assert [row["bytes"] // 100_000 for row in rows] == [1, 2, 3, 4, 5, 6]
    assert (rows[2]["name"], rows[2]["folder"]) == ("train", str(folder_of(many, "c")))


def test_an_artifact_is_shown_with_all_that_it_was_built_from_and_its_command(many, capsys):
    path = folder_of(many, "d") / "artifact.json"
    write_json(path, read_json(path) | {"files": {"data": "12ab"}})
    alpro(many, "show", "dd")
    shown = capsys.readouterr().out
    assert [
        line[0] for line in shown.partition("built from\n")[2].splitlines() if "2026" in line
    ] == [*"abcd"]
    place = "in the folder /home/me, at commit abc123, which lacks changes of the checkout"
    parts = ("lr = 0.1234567891\n", 'torch = "9.9"\n', 'data = "12ab"\n', place)
    assert [part for part in parts if part not in shown] == []
    changes = "--set pretrain.lr=1e-4 --set 'name='\"'\"'my own'\"'\"''"
    data = "--set 'corpora.data.data=\"my videos\"'"
    assert shown.startswith(f"alpro run evaluate --config sample {data} {changes}\n")
    assert "rows = 3" not in shown  # the queries of each score of an evaluation
    alpro(many, "show", "cc")
    shown = capsys.readouterr().out
    assert shown.startswith(f"alpro run train --config sample {changes}\n")
    assert "rows = 3\n" in shown
    write_json(path, read_json(path) | {"run": {"at": "2026-01-01T00:00:00", "seconds": 1.0}})
    alpro(many, "show", "dd")
    assert "alpro run" not in capsys.readouterr().out
