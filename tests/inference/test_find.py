"""Which folder stands for a model, a prompter and its prompts."""

import shutil
from pathlib import Path

import pytest

from alpro.artifact import RECORD_VERSION
from alpro.errors import InputError
from alpro.files import checksum, write_json
from alpro.inference.find import find_model, find_prompter, model_digest, resolve
from alpro.inference.index import Index, IndexSettings
from alpro.inference.model import Model
from alpro.inference.search import Searcher
from alpro.names import find_artifact, record_run

STEPS5 = {"config": "own_videos", "changes": ["finetune_qa.steps=5"]}


@pytest.fixture
def artifact(tmp_path):
    """artifact(stage, mark, at, inputs, name, arguments): one of a fingerprint of this mark, with a
    file of a model. inputs: the marks of the inputs by stage."""

    def build(stage, mark, at="", inputs=None, name="", arguments=None):
        folder = tmp_path / "artifacts" / stage / (mark * 8)
        kind = "prompts.safetensors" if stage == "cache_prompts" else "model/config.json"
        (folder / kind).parent.mkdir(parents=True)
        (folder / kind).write_text("{}")
        named = {
            of.split("_")[-1]: {"stage": of, "fingerprint": m * 32}
            for of, m in (inputs or {}).items()
        }
        about = {
            "version": RECORD_VERSION,
            "stage": stage,
            "name": name or stage,
            "fingerprint": mark * 32,
        }
        run = {"at": at, "arguments": arguments or {}}
        write_json(folder / "artifact.json", {**about, "inputs": named, "run": run})
        return folder

    return build


def test_a_stage_stands_for_the_artifact_that_was_built_last(artifact, tmp_path, capsys):
    """Whatever the times of its files: that of a fetched one is when it was fetched."""
    new = artifact("finetune_qa", "ef", "2026-02-01T10:20:30+00:00", arguments=STEPS5)
    old = artifact("finetune_qa", "cd", "2026-01-01T00:00:00+00:00")
    line = "efefefef (own_videos finetune_qa.steps=5, 2026-02-01 10:20)"
    assert [find_model(name, tmp_path) for name in ("finetune_qa", "finetune-qa")] == [new, new]
    assert capsys.readouterr().err == f"finetune_qa: {line}\nfinetune-qa: {line}\n"
    for name in ("finetune_qa@cd", "finetune-qa@cdcd", "cdcdcd", "cd" * 32, old, str(old)):
        assert find_model(name, tmp_path) == old
    artifact("pretrain", "ce")
    (tmp_path / "empty").mkdir()
    for name in (
        "evaluate",
        "c",
        "f",
        "../x",
        "finetune_qa@ee",
        tmp_path / "empty",
    ):  # two, and none
        with pytest.raises(InputError, match=str(name)):
            find_model(name, tmp_path)
    assert capsys.readouterr().err == ""
    for content in ("", "[]", "{"):  # after a power failure
        (new / "artifact.json").write_text(content)
        assert find_model("finetune_qa", tmp_path) == old
        assert "artifact.json is corrupt" in capsys.readouterr().err
    for mark in ("ab", "ba"):  # a stage with several corpora stands for none of them
        artifact("decode_videos", mark, mark, name=f"decode_videos {mark}")
    with pytest.raises(
        InputError, match=r"several artifacts; name one: decode_videos@baba.* or decode_videos@abab"
    ):
        find_artifact("decode_videos", tmp_path)
    assert find_artifact("decode_videos@ab", tmp_path)[1].name == "decode_videos ab"


def test_a_stage_is_that_of_the_last_command_and_config_stage_stays(artifact, tmp_path):
    full = artifact(
        "finetune_qa", "cd", "2026-01-01T00:00:00", arguments={"config": "sample", "changes": []}
    )
    trial = artifact(
        "finetune_qa", "ef", "2026-02-01T00:00:00", arguments=STEPS5 | {"config": "sample"}
    )
    other = artifact(
        "finetune_qa",
        "ab",
        "2026-01-15T00:00:00",
        arguments={"config": "/x/mine.toml", "changes": ["a=1"]},
    )

    def command(mark, config="sample", changes=()):
        arguments = {"config": config, "data": "", "changes": list(changes), "stage": ""}
        record_run(tmp_path, arguments, {"finetune_qa": mark * 32})

    assert find_model("finetune_qa", tmp_path) == trial  # by the records alone
    assert find_model("sample/finetune_qa", tmp_path) == full
    assert find_model("mine/finetune-qa", tmp_path) == other
    command("cd")  # it built nothing: it found what it needed
    assert find_model("finetune_qa", tmp_path) == full
    command("ef", changes=STEPS5["changes"])
    (tmp_path / "runs.jsonl").open("a").write('{"at": "2099", "artif')  # the power failed
    assert find_model("finetune_qa", tmp_path) == trial
    assert find_model("sample/finetune_qa", tmp_path) == full
    command("cd", config="own_videos")
    assert find_model("own_videos/finetune_qa", tmp_path) == full
    shutil.rmtree(full)
    assert find_model("finetune_qa", tmp_path) == trial
    assert find_model("sample/finetune_qa", tmp_path) == trial  # what is left of it
    with pytest.raises(InputError, match=r"own_videos/finetune_qa: .*no artifact of this name"):
        find_model("own_videos/finetune_qa", tmp_path)


def test_a_mistyped_name_is_answered_with_the_similar_one(artifact, tmp_path, monkeypatch):
    """The hub, where anybody may have a model of this name, is not asked."""
    monkeypatch.setattr("alpro.inference.find.hub_folder", lambda name: pytest.fail(name))
    artifact("pretrain", "cd", arguments={"config": "sample", "changes": []})
    for name, meant in {
        "sample/pretrai": "sample/pretrain",
        "smple/pretrain": "sample/pretrain",
        "pretrian": "pretrain",
    }.items():
        for find in (find_model, find_artifact):
            with pytest.raises(InputError, match=rf"{name}: no .*did you mean {meant}\?"):
                find(name, tmp_path)


def test_the_corpora_of_the_last_command_alone_are_the_choice(artifact, tmp_path):
    clips, stills, mine = (
        artifact(
            "decode_videos", mark, "2026-01-01", name=f"decode_videos {name}", arguments=arguments
        )
        for mark, name, arguments in (
            ("ab", "clips", {"config": "sample"}),
            ("cd", "stills", {"config": "sample"}),
            ("ef", "data", {"config": "from_clip"}),
        )
    )
    arguments = {"config": "from_clip", "data": "videos", "changes": [], "stage": ""}
    record_run(tmp_path, arguments, {"decode_videos data": "ef" * 32})
    assert find_artifact("decode_videos", tmp_path)[0] == mine
    assert find_artifact("decode_videos stills", tmp_path)[0] == stills
    with pytest.raises(InputError, match=r"sample/decode_videos: several artifacts.*clips.*"):
        find_artifact("sample/decode_videos", tmp_path)
    assert find_artifact("decode_videos@ab", tmp_path)[0] == clips


def test_the_prompter_of_a_model_and_its_prompts(artifact):
    """Those of a prompter are the newest that were embedded with it; a model follows what it was
    trained with."""
    prompter = artifact("train_prompter", "aa")
    without = artifact("train_prompter", "a1")
    newest = artifact("cache_prompts", "be", "2026-01-03", {"train_prompter": "aa"})
    older = artifact("cache_prompts", "bd", "2026-01-02", {"train_prompter": "aa"})
    artifact("cache_prompts", "bf", "2026-01-04", {"train_prompter": "99"})
    pretrained = artifact("pretrain", "ca", inputs={"cache_prompts": "bd"})
    qa = artifact("finetune_qa", "da", inputs={"decode_videos": "dd", "pretrain": "ca"})
    assert find_prompter(prompter) == (prompter, newest)
    assert find_prompter(older) == (prompter, older)
    assert find_prompter(without) == (without, None)
    for folder in (pretrained, qa):
        assert find_prompter(folder, follow=True) == (prompter, older)
        assert find_prompter(folder) == (folder, None)
    (qa / "prompter").mkdir()  # as in an imported checkpoint
    for name in ("config.json", "prompts.safetensors"):
        (qa / "prompter" / name).write_text("{}")
    assert find_prompter(qa, follow=True) == (qa / "prompter", qa / "prompter")
    write_json(
        prompter / "artifact.json", {"version": RECORD_VERSION, "contents": {"x": {"sha256": "0"}}}
    )
    with pytest.raises(InputError, match="damaged"):
        find_prompter(newest)


def test_a_prompter_is_loaded_with_its_prompts_by_any_name(folders, artifact, tmp_path, videos):
    prompter = artifact("train_prompter", "aa")
    prompts = artifact("cache_prompts", "bb", inputs={"train_prompter": "aa"})
    shutil.copytree(folders["prompter"], prompter, dirs_exist_ok=True)
    shutil.copytree(folders["prompts"], prompts, dirs_exist_ok=True)
    for name in ("aaaa", "bb" * 32, "train_prompter", prompter, prompts):
        assert len(Model.load(name, tmp_path, device="cpu").entities(videos[0])) == 3


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"]
)
def test_the_digest_of_a_model_has_all_that_decides_what_it_computes(
    folders, clip_folders, tmp_path, name
):
    assert model_digest(clip_folders["pickled"]) != model_digest(clip_folders["clip"])
    folder = shutil.copytree(folders["retrieval"], tmp_path / "copy")
    assert model_digest(folder) == model_digest(folders["retrieval"])
    with (folder / "model" / name).open("ab") as file:
        file.write(b" ")
    assert model_digest(folder) != model_digest(folders["retrieval"])
    (folder / "model" / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json"):
        model_digest(folder)


def test_a_name_of_the_hub_is_its_folder_in_the_cache(tmp_path, monkeypatch):
    """Downloaded once, and as the hub's own cache has it; without a network, one line says what to
    do."""
    cache = tmp_path / "cache"
    asked = []

    def download(repository, revision, allow_patterns, local_files_only):
        asked.append((repository, revision, local_files_only))
        if local_files_only and not cache.exists():
            raise FileNotFoundError("not in the cache")
        if repository == "nobody/nothing":
            raise ConnectionError("Name or service not known")
        if not cache.exists():
            cache.mkdir()
            (cache / "config.json").write_text('{"model_type": "clip"}')
            (cache / "model.safetensors").write_text("")
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(
        InputError, match="hf download nobody/nothing --revision v1 --local-dir clip"
    ):
        find_model("nobody/nothing@v1", tmp_path)
    asked.clear()
    assert [find_model("openai/clip", tmp_path) for _ in range(2)] == [cache, cache]
    assert asked == [("openai/clip", None, local) for local in (True, False, True)]
    (cache / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(InputError, match=r"openai/clip: it has no config.json of a clip or siglip"):
        find_model("openai/clip", tmp_path)


def test_the_model_of_an_index_is_verified_and_identified_by_reading_its_weights_once(
    folders, tmp_path, monkeypatch
):
    """Weights of gigabytes take longer to read than a search; that the model is loaded comes on
    top."""
    folder = shutil.copytree(folders["retrieval"], tmp_path / "finetune_retrieval" / ("ab" * 8))
    files = [path for path in folder.rglob("*") if path.is_file()]
    contents = {str(path.relative_to(folder)): {"sha256": checksum(path)} for path in files}
    record = {"version": RECORD_VERSION, "stage": "finetune_retrieval", "name": "x", "inputs": {}}
    write_json(folder / "artifact.json", {**record, "fingerprint": "ab" * 32, "contents": contents})
    settings = IndexSettings(model=str(folder), digest=model_digest(folder))
    index = Index.create(tmp_path / "index", settings, 8, {})

    read: list[str] = []

    def counted(path: Path) -> str:
        read.append(Path(path).name)
        return checksum(path)

    for module in ("alpro.artifact", "alpro.inference.find"):
        monkeypatch.setattr(f"{module}.checksum", counted)
    for is_named in (False, True):
        Searcher.open(index, resolve(folder, tmp_path) if is_named else "", device="cpu")
        assert read.count("model.safetensors") == 1
        read.clear()
    (folder / "model" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(InputError, match="damaged"):
        Searcher.open(index, device="cpu")
