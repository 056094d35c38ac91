"""From other people's weights to scores on own videos, without editing a file: the recipes of docs/reproduce.md."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
import torch

from alpro.errors import InputError
from alpro.files import read_json, write_json
from alpro.models.alpro import Alpro
from alpro.models.clip_prompter import is_clip
from alpro.models.folder import ModelFolder
from alpro.pipeline.cli.main import execute
from alpro.pipeline.cli.options import Source
from alpro.pipeline.config.load import load_config
from alpro.pipeline.plan import dag as planning
from tests.official_checkpoints import one_head, to_official
from tests.test_paper_configurations import make

SHORT = ["finetune_retrieval.negative_pool_size=2"]
SHORT += [
    f"{stage}.{change}"
    for stage in ("finetune_retrieval", "finetune_qa")
    for change in ("frames=3", "batch_size=4", "phases=[{corpora=['data'], steps=2}]", "validation.times=1")
]
SIZES = ["corpora.data.size=32", "corpora.data.frames=4", "evaluate.min_decoded_share=0.5"]
SHORT += ["finetune_retrieval.phases=[{corpora=['data'], steps=2}]", "finetune_retrieval.validation.times=1"]
SHORT += ["finetune_qa.frames=3", "finetune_qa.batch_size=4", "finetune_qa.phases=[{corpora=['data'], steps=2}]"]
SHORT += ["finetune_qa.validation.times=1"]


@pytest.fixture(scope="module")
def official(tmp_path_factory, tiny_model, vocabulary) -> Path:
    """Small random checkpoints in the form of the official code, with their tokenizer and answers."""
    folder = tmp_path_factory.mktemp("official")
    tokenizer = vocabulary / "tokenizer.json"
    config = one_head(tiny_model(len(json.loads(tokenizer.read_text())["model"]["vocab"])))
    torch.manual_seed(0)
    torch.save(
        {"model": to_official(Alpro(config, entities=4).state_dict(), config)}, folder / "alpro_pretrained_ckpt.pt"
    )
    torch.save(to_official(Alpro(config).state_dict(), config), folder / "msrvtt_ret.pt")
    torch.save(to_official(Alpro(config, answers=3).state_dict(), config, "text_encoder."), folder / "msrvtt_qa.pt")
    (folder / "unigrams.txt").write_text("circle 90\nsquare 70\ntriangle 50\nstar 20\n")
    (folder / "train_ans2label.json").write_text(json.dumps({"circle": 0, "square": 1, "left": 2}))
    for file in folder.glob("*.pt"):
        task = {"msrvtt_ret": "retrieval", "msrvtt_qa": "qa"}.get(file.stem, "pretrain")
        words = {"pretrain": "--words unigrams.txt", "qa": "--words train_ans2label.json"}.get(task, "")
        words = words.replace("--words ", f"--words {folder}/")
        line = f"model import {file} {folder / task} --task {task} --tokenizer {tokenizer} {words}"
        assert execute(shlex.split(line)) == 0
    return folder


@pytest.fixture
def planned(sample, tmp_path, monkeypatch):
    """planned(config, model folder, *options): the configuration of `alpro run ... --pretrained`."""

    def load(config: str, model: Path, *options: str):
        data = sample / "clips.jsonl"
        source = Source(str(data), str(model), (*SIZES, *options))
        return load_config(config, source.data, source.changes(tmp_path / "w"))

    return load


def test_a_checkpoint_is_scored_as_it_is_or_searches_own_videos_and_is_fine_tuned(
    official, planned, tmp_path, inline_pool
):
    assert ModelFolder.from_pretrained(official / "pretrain").entities == ["circle", "square", "triangle", "star"]
    assert ModelFolder.from_pretrained(official / "qa").answers == ["circle", "square", "left"]
    folders = make(planned("from_weights", official / "pretrain", *SHORT), tmp_path / "run")
    assert folders.keys() == {"decode_videos data", "zero_shot", "finetune_retrieval", "finetune_qa", "evaluate"}
    for name in ("zero_shot", "evaluate"):
        assert (folders[name] / "results.json").is_file()
    assert ModelFolder.from_pretrained(folders["finetune_retrieval"] / "model").task == "retrieval"
    without = ("finetune_retrieval=false", "finetune_qa=false")
    for task in ("retrieval", "qa"):
        folders = make(planned("from_weights", official / task, *without), tmp_path / "run")
        assert folders.keys() == {"decode_videos data", "evaluate"}
        assert (folders["evaluate"] / "results.json").is_file()


@pytest.mark.parametrize(
    ("stage", "tables"), [("", ["evaluate", "finetune_retrieval", "finetune_qa"]), ("zero_shot", ["evaluate"])]
)
def test_longer_texts_than_the_text_encoder_takes_are_refused_before_anything_runs(
    stage, tables, official, sample, tmp_path
):
    model = shutil.copytree(official / "pretrain", tmp_path / "model")
    values = read_json(model / "config.json")
    values["model"]["text"]["max_length"] = 36
    write_json(model / "config.json", values)
    changes = [f"pretrained={json.dumps(str(model))}", "train_prompter=false", "pretrain=false"]
    with pytest.raises(InputError) as error:
        planning.planned(stage, "from_weights", str(sample / "clips.jsonl"), changes, tmp_path / "workspace")
    changed = [f"{table}.max_text_tokens=32" for table in tables]
    expected = " ".join(f"--set {change}" for change in changed)
    assert str(error.value) == f"{model}: its text encoder takes 36 tokens; {expected}"
    planning.planned(stage, "from_weights", str(sample / "clips.jsonl"), [*changes, *changed], tmp_path / "workspace")


def test_own_videos_from_both_towers_of_a_clip(clip_folders, sample, tmp_path, inline_pool, capsys):
    """The whole path of `from_clip` with small random weights: scores are not measured, but beside the CLIP's."""
    clip = clip_folders["clip"]
    changes = [*SIZES, *SHORT, f"train_prompter.clip={clip}", f"pretrain.vit={clip}", "pretrain.bert="]
    changes += ["train_tokenizer.tokenizer=train", "build_vocabulary.entities=8", "evaluate.controls=[]"]
    changes += ["model.embed_dim=16", "model.init=scratch", "pretrain.negative_pool_size=2"]
    changes += [
        "model.video={image_size=32, frames=3}",  # the rest is that of the CLIP
        "model.text={width=16, depth=2, fusion_layer=1, heads=2, max_length=40}",
        "train_prompter.max_text_tokens=24",
    ]
    for stage in ("train_prompter", "pretrain"):
        changes += [f"{stage}.batch_size=8", f"{stage}.accumulation_steps=2"]
        changes += [f"{stage}.phases=[{{corpora=['data'], steps=2}}]"]
    folders = make(load_config("from_clip", str(sample / "clips.jsonl"), changes), tmp_path / "run")
    assert is_clip(folders["train_prompter"] / "model")
    assert all((folders[stage] / "results.json").is_file() for stage in ("evaluate", "zero_shot"))
    (tmp_path / "run" / "mlflow.db").touch()  # nothing is left to do: no run starts
    options = ["--data", str(sample / "clips.jsonl"), "--workspace", str(tmp_path / "run")]
    options += [f"--set={change}" for change in changes]
    assert execute(["run", "train_prompter", "--config", "from_clip", *options]) == 0
    assert f"model - {clip.name}, frames averaged" in capsys.readouterr().out
