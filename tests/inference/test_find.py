"""Which folder stands for a model, a prompter and its prompts."""

import shutil

import pytest

from alpro.artifact import RECORD_VERSION, find_artifact
from alpro.errors import InputError
from alpro.files import write_json
from alpro.inference.find import find_model, find_prompter, model_digest
from alpro.inference.model import Model

STEPS5 = {"config": "own_videos", "changes": ["finetune_qa.steps=5"]}


@pytest.fixture
def artifact(tmp_path):
    """artifact(stage, mark, at, inputs, name, arguments): one of a fingerprint of this mark, with a file of a model.
    inputs: the marks of the inputs by stage."""

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
    assert find_artifact("decode_videos@ab", tmp_path)[1]["name"] == "decode_videos ab"


def test_a_trial_after_the_last_whole_run_is_not_taken_by_its_stage(artifact, tmp_path):
    def run(name, started, mark, stage="", state="finished"):
        steps = [
            {"stage": "finetune_qa", "fingerprint": mark * 32},
            {"stage": "pretrain", "fingerprint": "c" * 64},
        ]
        values = {"state": state, "stage": stage, "started": started, "steps": steps}
        write_json(tmp_path / "reports" / f"{name}.json", values)

    artifact("finetune_qa", "cd", "2026-01-01T00:00:00")
    trial = artifact("finetune_qa", "ef", "2026-02-01T00:00:00", arguments=STEPS5)
    other = artifact("train_prompter", "aa")  # the runs had none of this stage
    (tmp_path / "reports").mkdir()
    run("whole", "2026-01-01", "cd")
    run("one-stage", "2026-02-01", "ef", stage="finetune_qa")
    run("failed", "2026-02-02", "ef", state="failed")
    (tmp_path / "reports" / "other.json").write_text("[")
    with pytest.raises(
        InputError, match=r"finetune_qa@efefefef .*steps=5.* or finetune_qa@cdcdcdcd"
    ):
        find_model("finetune_qa", tmp_path)
    assert find_model("finetune_qa@ef", tmp_path) == trial
    assert find_model("train_prompter", tmp_path) == other
    run("later", "2026-03-01", "ef")
    assert find_model("finetune_qa", tmp_path) == trial


def test_the_prompter_of_a_model_and_its_prompts(artifact):
    """Those of a prompter are the newest that were embedded with it; a model follows what it was trained with."""
    prompter, without = artifact("train_prompter", "aa"), artifact("train_prompter", "a1")
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
