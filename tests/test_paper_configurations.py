"""The configurations of the paper, each with its own code on a few clips annotated in that data
set's form: decode, one step, evaluation; and other people's weights as their beginning."""

import tomllib

import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer

from alpro.files import read_json, write_json
from alpro.models.alpro import Alpro
from alpro.models.folder import is_clip
from alpro.models.official import import_checkpoint
from alpro.pipeline.cli.options import Source
from alpro.pipeline.config.command import CONFIGS, shipped
from alpro.pipeline.config.load import read_settings
from alpro.pipeline.plan.digests import Digests
from alpro.pipeline.plan.plan import build_steps
from alpro.pipeline.store.artifacts import Store
from alpro.stages import TRAININGS
from alpro.stages.evaluation.score_names import full_name
from alpro.stages.execution.interface import Resources
from tests.conftest import read_lines, write_lines
from tests.official_checkpoints import to_official
from tests.plans import configure

RESOURCES = Resources(workers=1, device="cpu", checkpoint_interval=3600)
SPLITS = {"train": "train.jsonl", "validation": "val.jsonl", "test": "test.jsonl"}


@pytest.fixture(scope="module")
def official(tmp_path_factory, tiny_model, vocabulary):
    """Small random checkpoints in the form of the official code, with their tokenizer and
    answers."""
    folder = tmp_path_factory.mktemp("official")
    tokenizer = vocabulary / "tokenizer.json"
    config = tiny_model(len(read_json(tokenizer)["model"]["vocab"]))
    torch.manual_seed(0)
    words = {
        "pretrain": ["circle", "square", "star"],
        "qa": ["circle", "left"],
        "retrieval": [],
    }
    for task, labels in words.items():
        model = Alpro(
            config, **{"entities" if task == "pretrain" else "answers": len(labels)}
        )
        prefix = "text_encoder" if task == "qa" else "text_encoder.bert"
        state = to_official(model.state_dict(), config, prefix)
        file = folder / f"{task}.pt"
        torch.save({"model": state} if task == "pretrain" else state, file)
        write_json(folder / "words.json", labels)
        names = folder / "words.json" if labels else None
        import_checkpoint(
            file, folder / task, task, str(tokenizer), words=names, sizes=config
        )
    return folder


@pytest.fixture(scope="module")
def pretrained(official):
    """A small pre-trained model that came in as an official checkpoint."""
    return official / "pretrain"


@pytest.fixture(scope="module")
def rows(sample):
    actual = read_lines(sample / "clips.jsonl")
    return [row for row in actual if not row["id"].startswith("broken")]


def annotate(folder, rows, describe):
    """Write rows as official files, one for each split; the changes that name them."""
    changes = []
    for split, name in SPLITS.items():
        lines = []
        for row in rows:
            if row["split"] == split:
                lines += describe(row)
        write_lines(folder / name, lines)
        changes.append(f"annotations.{split}={folder / name}")
    return changes


def make(config, folder):
    """Every stage in this process; the folder of each."""
    folder.mkdir(exist_ok=True)
    store = Store(folder / "artifacts")
    folders = {}
    for step in build_steps(config, Digests(folder / "digests.sqlite"))[1]:
        inputs = {
            name: store.folder(other) for name, other in step.inputs.items()
        } | dict(step.given)
        store.make(
            step,
            lambda s, out, i=inputs: s.module.run(
                s.config, s.module.Inputs.of(i), out, RESOURCES
            ),
            {},
        )
        folders[step.name] = store.folder(step)
    return folders


# What the paper and the official code train with. Batches are over all GPUs, parts of accumulation
# included.
COMMON = {"weight_decay": 1e-3, "min_lr_ratio": 0.0}
PRETRAINING = {
    "warmup_ratio": 0.05,
    "max_grad_norm": 20.0,
    "max_text_tokens": 30,
    "sampling": "halves",
    "lr": 1e-4,
}
PRETRAINING |= {
    "augmentation": "official",
    "random_crop": 0.875,
    "normalization": "clip",
    "times": 10,
}
FINE_TUNING = {"warmup_ratio": 0.1, "sampling": "random", "random_crop": 1.0}
RETRIEVAL = FINE_TUNING | {
    "frames": 8,
    "augmentation": "none",
    "accumulation_steps": 1,
    "times": 20,
    "top_k": 0,
}
QA = FINE_TUNING | {
    "frames": 16,
    "augmentation": "official",
    "accumulation_steps": 2,
    "batch_size": 192,
    "lr": 5e-5,
}
QA |= {"max_text_tokens": 40}
BATCHES = {"batch_size": 256, "accumulation_steps": 1, "negative_pool_size": 16}
LOSSES = {"steps": 100_000, "mlm_probability": 0.15, "threshold": 0.2}
# Where gradients are accumulated over two parts, the official code clips their sum, this one their
# mean: half the norm clips alike.
PAPER = {
    ("webvid_cc3m", "train_prompter"): PRETRAINING
    | {
        "batch_size": 256,
        "accumulation_steps": 2,
        "epochs": 10,
        "max_grad_norm": 20.0 / 2,
    },
    ("webvid_cc3m", "pretrain"): PRETRAINING | BATCHES | LOSSES,
    ("msrvtt_retrieval", "finetune_retrieval"): {
        **RETRIEVAL,
        **{"batch_size": 64, "negative_pool_size": 8, "max_text_tokens": 40},
        **{"epochs": 5, "lr": 2.5e-5, "max_grad_norm": 5.0},
    },
    ("didemo_retrieval", "finetune_retrieval"): {
        **RETRIEVAL,
        **{"batch_size": 96, "negative_pool_size": 12, "max_text_tokens": 50},
        **{"epochs": 10, "lr": 4e-5, "max_grad_norm": 20.0},
    },
    ("msrvtt_qa", "finetune_qa"): QA
    | {"epochs": 10, "max_grad_norm": 5.0 / 2, "answers": 1500, "times": 50},
    ("msvd_qa", "finetune_qa"): QA
    | {"epochs": 15, "max_grad_norm": 20.0 / 2, "answers": 2423, "times": 30},
}
# The size of stored frames (a crop of 0.875 of 256 is 224) and, of an evaluation, frames and texts
# (0: as in training).
STORED = {"webvid": 256, "cc3m": 256, "msrvtt": 224, "didemo": 224, "msvd": 224}
EVALUATED = {
    "msrvtt_retrieval": (8, 40),
    "didemo_retrieval": (8, 50),
    "msrvtt_qa": (0, 0),
    "msvd_qa": (0, 0),
}


def shipped_config(name):
    """A configuration of the paper with what a person gives it."""
    data = {"webvid_cc3m": ["corpora.webvid.data='x'", "corpora.cc3m.data='x'"]}
    corpus = name.split("_")[0]
    return configure(
        name, *data.get(name, [f"corpora.{corpus}.data='x'", "pretrained='x'"])
    )


def test_every_training_stage_of_the_papers_configurations_is_in_the_table():
    others = {
        "sample",
        "own_videos",
        "from_weights",
        "finetune_clip",
        "from_clip",
        "from_vit",
    }
    stages = set()
    for name in {*shipped()} - others - {"tiny"}:
        table = tomllib.loads((CONFIGS / f"{name}.toml").read_text())
        stages |= {(name, stage) for stage in table.keys() & {*TRAININGS}}
    assert stages == PAPER.keys()


@pytest.mark.parametrize(("name", "stage"), PAPER)
def test_every_number_is_that_of_the_paper(name, stage):
    config = shipped_config(name)
    training = getattr(config, stage)
    (phase,) = training.phases
    values = (
        training.model_dump() | training.validation.model_dump() | phase.model_dump()
    )
    expected = COMMON | PAPER[name, stage]
    assert {key: values[key] for key in expected} == expected
    for corpus in phase.corpora:
        assert config.corpora[corpus].size == STORED[corpus]
    if stage == "finetune_retrieval":
        # With 20 captions of a video, a run would validate 99 million pairs.
        assert training.validation.captions == 1
    if stage.startswith("finetune"):
        assert (config.evaluate.frames, config.evaluate.max_text_tokens) == EVALUATED[
            name
        ]
        assert (training.validation.videos, config.evaluate.top_k) == (0, 0)
    else:
        # The official code picks either with equal chance.
        assert phase.weights == (1, 1)
        assert (training.vit, training.bert) == (
            "vit_base_patch16_224.orig_in21k_ft_in1k",
            "bert-base-uncased",
        )


def test_the_model_and_the_losses_are_those_of_the_paper():
    config = shipped_config("webvid_cc3m")
    video = config.model.video
    text = config.model.text
    sizes = {
        "image_size": 224,
        "patch_size": 16,
        "frames": 4,
        "depth": 12,
        "drop_path": 0.1,
    }
    assert video.model_dump(include=set(sizes)) == sizes
    sizes = {"depth": 12, "fusion_layer": 6, "dropout": 0.1, "vocab_size": 30522}
    assert text.model_dump(include=set(sizes)) == sizes
    for encoder in (video, text):
        assert (encoder.width, encoder.heads, encoder.mlp_ratio) == (768, 12, 4)
    assert (config.model.embed_dim, config.model.temperature) == (256, 0.07)
    computed = {name: weight for name, weight in config.pretrain.weights if weight}
    assert computed == dict.fromkeys(("vtc", "vtm", "mlm", "pem"), 1.0)
    vocabulary = config.build_vocabulary
    assert (vocabulary.entities, config.train_tokenizer.tokenizer) == (
        1000,
        "bert-base-uncased",
    )
    # Every noun counts.
    assert (vocabulary.min_noun_share, vocabulary.exclude) == (0, ())


def decode_and_fine_tune(name, annotations, sample, pretrained, folder):
    """Take a step of a configuration of the paper, on annotations of the sample's videos."""
    corpus, task = name.split("_")
    stage = f"finetune_{task}"
    changes = [f"corpora.{corpus}.{change}" for change in annotations]
    changes += [
        f"corpora.{corpus}.data={sample / 'videos'}",
        f"corpora.{corpus}.size=32",
    ]
    changes += [
        f"{stage}.phases=[{{corpora=['{corpus}'], steps=1}}]",
        f"{stage}.batch_size=8",
    ]
    changes += [f"{stage}.max_text_tokens=24"]
    if task == "retrieval":
        changes.append(f"{stage}.negative_pool_size=4")
    return make(configure(name, *changes, f"pretrained={pretrained}"), folder)


def read_items(folders):
    """Return the number of items of each score."""
    items = {}
    for name, folder in folders.items():
        if name.startswith("evaluate"):
            for row in read_json(folder / "results.json"):
                items[full_name(row)] = row["items"]
    return items


def test_a_paragraph_of_didemo_is_the_captions_of_a_video(
    tmp_path, pretrained, sample, rows, inline_pool
):
    annotations = annotate(
        tmp_path,
        rows,
        lambda row: [{"caption": row["captions"], "clip_name": row["id"]}],
    )

    folders = decode_and_fine_tune(
        "didemo_retrieval", annotations, sample, pretrained, tmp_path
    )

    assert folders.keys() == {
        "decode_videos didemo",
        "finetune_retrieval",
        "evaluate pretrained",
        "evaluate retrieval",
    }
    items = read_items(folders)
    test = [row for row in rows if row["split"] == "test"]
    assert (
        items["pre-trained/matching/t2v/R1"]
        == items["fine-tuned/matching/v2t/R1"]
        == len(test)
    )
    index = pq.read_table(folders["decode_videos didemo"] / "index.parquet").to_pylist()
    captions = {row["id"]: row["captions"] for row in index}
    assert captions == {row["id"]: [" ".join(row["captions"])] for row in rows}


def test_each_question_of_msvd_is_asked(
    tmp_path, pretrained, sample, rows, inline_pool
):
    annotations = annotate(
        tmp_path,
        rows,
        lambda row: [
            {**one, "video_id": row["id"], "answer_type": one["type"]}
            for one in row["questions"]
        ],
    )

    folders = decode_and_fine_tune("msvd_qa", annotations, sample, pretrained, tmp_path)

    assert folders.keys() == {"decode_videos msvd", "finetune_qa", "evaluate qa"}
    asked = [len(row["questions"]) for row in rows if row["split"] == "test"]
    assert read_items(folders)["fine-tuned/qa/acc"] == sum(asked)


def test_prompter_and_pretraining_from_a_vit_and_a_bert(
    tmp_path, vocabulary, sample, inline_pool
):
    import timm
    from transformers import BertConfig, BertForMaskedLM

    tokenizer = Tokenizer.from_file(str(vocabulary / "tokenizer.json"))
    sizes = {
        "img_size": 32,
        "patch_size": 8,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 2,
    }
    vit = timm.create_model("vit_base_patch16_224", **sizes)
    torch.save(vit.state_dict(), tmp_path / "vit.pt")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    sizes |= {"intermediate_size": 128, "max_position_embeddings": 32}
    bert = BertConfig(vocab_size=tokenizer.get_vocab_size(), **sizes)
    BertForMaskedLM(bert).save_pretrained(tmp_path / "bert")
    tokenizer.save(str(tmp_path / "bert" / "tokenizer.json"))

    changes = [
        f"corpora.webvid.data={sample / 'clips.jsonl'}",
        f"corpora.cc3m.data={sample / 'stills.jsonl'}",
        *(f"corpora.{corpus}.size=36" for corpus in ("webvid", "cc3m")),
        "build_vocabulary.entities=8",
        f"train_tokenizer.tokenizer={tmp_path / 'bert'}",
        "model.embed_dim=16",
        "model.video={image_size=32, patch_size=8, width=32, depth=2, heads=2}",
        "model.text={width=32, depth=2, heads=2, max_length=32, fusion_layer=1}",
        "pretrain.negative_pool_size=2",
    ]
    for stage in ("train_prompter", "pretrain"):
        values = [
            "phases=[{corpora=['webvid', 'cc3m'], steps=2}]",
            "batch_size=4",
            "max_text_tokens=20",
            f"vit={tmp_path / 'vit.pt'}",
            f"bert={tmp_path / 'bert'}",
        ]
        changes += [f"{stage}.{value}" for value in values]

    folders = make(configure("webvid_cc3m", *changes), tmp_path)

    assert (folders["pretrain"] / "model" / "model.safetensors").is_file()
    assert not any(name.startswith("evaluate") for name in folders)


# Other people's weights, without editing a file: the recipes of docs/reproduce.md.

# What takes the fewest steps of fine-tuning on small frames.
SHORT = ["finetune_retrieval.negative_pool_size=2"]
SHORT += [
    f"{stage}.{change}"
    for stage in ("finetune_retrieval", "finetune_qa")
    for change in (
        "frames=3",
        "batch_size=4",
        "phases=[{corpora=['data'], steps=2}]",
        "validation.times=1",
    )
]
SIZES = [
    "corpora.data.size=32",
    "corpora.data.frames=4",
    "evaluate.min_decoded_share=0.5",
]


def test_a_checkpoint_is_scored_as_it_is_or_searches_own_videos_and_is_fine_tuned(
    official, sample, tmp_path, inline_pool
):
    data = str(sample / "clips.jsonl")

    def evaluations(task, *changes):
        """Run `from_weights`; returns the steps that have results."""
        source = Source(data, str(official / task), set=(*SIZES, *changes))
        settings = read_settings(source.command("from_weights", tmp_path / "w"))
        folders = make(settings, tmp_path / "run")
        return {
            name
            for name, folder in folders.items()
            if (folder / "results.json").is_file()
        }

    tuned = {"evaluate pretrained", "evaluate retrieval", "evaluate qa"}
    assert evaluations("pretrain", *SHORT) == tuned
    for task in ("retrieval", "qa"):
        untrained = ("finetune_retrieval=false", "finetune_qa=false")
        assert evaluations(task, *untrained) == {f"evaluate {task}"}


def test_own_videos_from_both_towers_of_a_clip(
    clip_folders, sample, tmp_path, inline_pool
):
    """The whole path of `from_clip` with small random weights: scores are not measured."""
    clip = clip_folders["clip"]
    changes = [
        *SIZES,
        *SHORT,
        f"train_prompter.clip={clip}",
        f"pretrain.vit={clip}",
        "pretrain.bert=",
        "train_tokenizer.tokenizer=train",
        "build_vocabulary.entities=8",
        "evaluate.controls=[]",
        "train_prompter.max_text_tokens=24",
        "model.embed_dim=16",
        "model.init=scratch",
        "pretrain.negative_pool_size=2",
        "model.video={image_size=32, frames=3, width=16, depth=2, heads=2, mlp_ratio=2.0, "
        "pre_norm=true, activation='quick_gelu'}",
        "model.text={width=16, depth=2, fusion_layer=1, heads=2, max_length=40}",
    ]
    for stage in ("train_prompter", "pretrain"):
        values = (
            "batch_size=8",
            "accumulation_steps=2",
            "phases=[{corpora=['data'], steps=2}]",
        )
        changes += [f"{stage}.{value}" for value in values]

    folders = make(
        configure("from_clip", *changes, data=sample / "clips.jsonl"), tmp_path / "run"
    )
    assert is_clip(folders["train_prompter"] / "model")
    assert all(
        (folders[stage] / "results.json").is_file()
        for stage in folders
        if stage[:8] == "evaluate"
    )
