"""The fingerprints of every shipped configuration, recorded: no move of code changes one.

A changed fingerprint makes everyone's finished runs old: days of training run again. Where that is
meant (a stage's VERSION rises because its output changes, or a key is new), record them again and
say why in the commit:

    python -m tests.pipeline.test_fingerprints
"""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from alpro.files import read_json
from alpro.pipeline.config.command import shipped
from tests.conftest import ROOT
from tests.plans import plan_of

OF_TESTS = "tests/tiny.toml"
RECORDED = Path(__file__).with_name("fingerprints.json")
DATA = {
    "didemo_retrieval": ("didemo", "webvid", "cc3m"),
    "finetune_clip": ("data",),
    "from_clip": ("data",),
    "from_vit": ("data",),
    "from_weights": ("data",),
    "msrvtt_qa": ("msrvtt", "webvid", "cc3m"),
    "msrvtt_retrieval": ("msrvtt", "webvid", "cc3m"),
    "msvd_qa": ("msvd", "webvid", "cc3m"),
    "own_videos": ("data",),
    "webvid_cc3m": ("webvid", "cc3m"),
}
# With a model folder that fits, of this task; "" without one.
STARTS = {
    "sample": ("", "pretrain", "retrieval", "qa"),
    "from_weights": ("pretrain", "retrieval", "qa"),
    "msrvtt_retrieval": ("", "pretrain"),
    "didemo_retrieval": ("", "pretrain"),
    "msrvtt_qa": ("", "pretrain"),
    "msvd_qa": ("", "pretrain"),
}


def names():
    return [*shipped(), OF_TESTS]


def model_folder(root, task):
    """A folder with the files of a model, whose contents only a digest reads."""
    folder = root / task
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"task": task}))
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def fingerprints(name, root):
    """By start and step. Of a corpus that is not there, the fingerprint lacks the digest of its
    files: that has the paths of this machine in it."""
    found = {}
    for start in STARTS.get(name, ("",)):
        corpora = DATA.get(name, ())
        if start:
            # The official pre-training is not part of a run that starts from a model.
            corpora = corpora[:1]
        changes = [f"corpora.{corpus}.data='{root / 'absent'}'" for corpus in corpora]
        if start:
            changes.append(f"pretrained='{model_folder(root, start)}'")
        if start in ("retrieval", "qa"):
            changes += ["finetune_retrieval=false", "finetune_qa=false"]
        source = str(ROOT / name) if name == OF_TESTS else name
        for step in plan_of(source, *changes, workspace=root).steps:
            found[f"{step.name} from {start}" if start else step.name] = (
                step.fingerprint[:16]
            )
    return found


def test_every_shipped_configuration_is_recorded():
    assert read_json(RECORDED).keys() == set(names())


def test_the_papers_pretraining_comes_first_in_each_of_its_tasks():
    recorded = read_json(RECORDED)
    of_the_paper = [
        name for name in STARTS if DATA.get(name, ())[1:] == ("webvid", "cc3m")
    ]

    assert len(of_the_paper) == 4
    for name in of_the_paper:
        assert recorded["webvid_cc3m"].items() <= recorded[name].items()


@pytest.mark.parametrize("name", names())
def test_no_fingerprint_changed(name, tmp_path):
    recorded = read_json(RECORDED)[name]
    assert fingerprints(name, tmp_path) == recorded, f"see {Path(__file__).name}"


if __name__ == "__main__":
    with TemporaryDirectory() as folder:
        every = {name: fingerprints(name, Path(folder)) for name in names()}
    RECORDED.write_text(json.dumps(every, indent=1) + "\n")
