"""Which folder stands for a model, a prompter and its prompts."""

import shutil

import pytest

from alpro.artifact import RECORD_VERSION
from alpro.files import read_json, write_json
from alpro.inference.loading import Found, resolve
from alpro.inference.names import write_refs
from tests.conftest import one_line


@pytest.fixture
def artifact(tmp_path):
    """artifact(stage, mark, at, inputs): one of a fingerprint of this mark, with a file of a model.

    inputs: the marks of the inputs by stage.
    """

    def build(stage, mark, at="", inputs=None):
        folder = tmp_path / "artifacts" / stage / (mark * 8)
        file = (
            "prompts.safetensors" if stage == "cache_prompts" else "model/config.json"
        )
        (folder / file).parent.mkdir(parents=True)
        (folder / file).write_text("{}")
        sources = {}
        for source, source_mark in (inputs or {}).items():
            fingerprint = source_mark * 32
            sources[source.split("_")[-1]] = {
                "stage": source,
                "fingerprint": fingerprint,
            }
        record = {
            "version": RECORD_VERSION,
            "stage": stage,
            "name": stage,
            "run": {"at": at},
            "fingerprint": mark * 32,
            "inputs": sources,
        }
        write_json(folder / "artifact.json", record)
        return folder

    return build


@pytest.fixture
def prompter(artifact):
    """A prompter, with prompts of two days; the older ones have trained a model."""
    prompter = artifact("train_prompter", "aa")
    artifact("cache_prompts", "bd", "2026-01-02", {"train_prompter": "aa"})
    artifact("cache_prompts", "be", "2026-01-03", {"train_prompter": "aa"})
    artifact("cache_prompts", "bf", "2026-01-04", {"train_prompter": "99"})
    artifact("pretrain", "ca", inputs={"cache_prompts": "bd"})
    artifact("finetune_qa", "da", inputs={"decode_videos": "dd", "pretrain": "ca"})
    return prompter


def run(workspace, **steps):
    write_refs(
        workspace, "sample", (), {name: mark * 32 for name, mark in steps.items()}
    )


def test_a_model_is_found_by_the_names_of_its_artifact(artifact, tmp_path):
    folder = artifact("finetune_qa", "ef")
    run(tmp_path, finetune_qa="ef")

    for name in ("finetune_qa", "sample/finetune_qa", "efef", folder, str(folder)):
        assert resolve(name, tmp_path) == Found(folder)


def test_a_folder_without_a_model_is_refused(artifact, tmp_path):
    (tmp_path / "empty").mkdir()

    for name in (tmp_path / "empty", "evaluate", "c", "~nosuchuser", "größe/modell"):
        with one_line(str(name)):
            resolve(name, tmp_path)


def test_a_mistyped_stage_and_one_of_a_variant_are_not_asked_of_the_hub(
    tmp_path, monkeypatch
):
    """Anybody may have a model of this name there."""
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda *_, **__: pytest.fail("asked")
    )
    write_refs(tmp_path, "sample", [], {"pretrain": "cd" * 32})
    write_refs(tmp_path, "other", ["finetune_qa.lr=1"], {"finetune_qa": "cd" * 32})

    for name in ("sample/pretrai", "other/finetune_qa"):
        with one_line("no artifact of this name"):
            resolve(name, tmp_path)


def test_a_prompter_has_the_newest_prompts_that_were_embedded_with_it(
    prompter, artifact, tmp_path
):
    without = artifact("train_prompter", "a1")
    newest = prompter.parents[1] / "cache_prompts" / ("be" * 8)

    assert resolve(prompter, tmp_path) == Found(prompter, newest)
    assert resolve(without, tmp_path) == Found(without)


def test_prompts_stand_for_their_prompter(prompter, tmp_path):
    older = prompter.parents[1] / "cache_prompts" / ("bd" * 8)

    assert resolve(older, tmp_path) == Found(prompter, older)


def test_a_damaged_prompter_is_refused(prompter, tmp_path):
    record = read_json(prompter / "artifact.json")
    record["contents"] = {"x": {"sha256": "0"}}
    write_json(prompter / "artifact.json", record)

    with one_line("damaged"):
        resolve("bebe", tmp_path)


@pytest.mark.parametrize(
    "name",
    ["config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json"],
)
def test_the_digest_of_a_model_has_all_that_decides_what_it_computes(
    name, folders, tmp_path
):
    folder = shutil.copytree(folders["retrieval"], tmp_path / "copy")
    assert Found(folder).digest == Found(folders["retrieval"]).digest

    with (folder / "model" / name).open("ab") as file:
        file.write(b" ")

    assert Found(folder).digest != Found(folders["retrieval"]).digest


def test_the_digest_of_a_model_has_its_kind_of_weights(clip_folders):
    assert Found(clip_folders["pickled"]).digest != Found(clip_folders["clip"]).digest


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """The folder of the hub's only model, a CLIP, when it has been downloaded; and what was
    asked."""
    cache = tmp_path / "cache"
    asked = []

    def download(repository, revision, allow_patterns, local_files_only):
        asked.append((repository, revision, local_files_only))
        if local_files_only and not cache.exists():
            raise FileNotFoundError("not in the cache")
        if repository == "nobody/nothing":
            raise ConnectionError("Name or service not known")
        cache.mkdir(exist_ok=True)
        (cache / "config.json").write_text('{"model_type": "clip"}')
        (cache / "model.safetensors").touch()
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    return cache, asked


def test_a_name_of_the_hub_is_its_folder_in_the_cache(hub_cache, tmp_path):
    """Downloaded once."""
    cache, asked = hub_cache

    for _ in range(2):
        assert resolve("openai/clip", tmp_path) == Found(cache)

    assert asked == [("openai/clip", None, local) for local in (True, False, True)]


def test_without_a_network_one_line_says_what_to_do(hub_cache, tmp_path):
    with one_line("hf download nobody/nothing --revision v1 --local-dir FOLDER"):
        resolve("nobody/nothing@v1", tmp_path)


def test_another_model_of_the_hub_is_refused(tmp_path, monkeypatch):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    (tmp_path / "model.safetensors").touch()
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda *_, **__: str(tmp_path)
    )

    with one_line("google/bert: it has no config.json of a clip or siglip"):
        resolve("google/bert", tmp_path)
