"""Configuration: shipped files are valid, changes reach their keys, errors are one line; `alpro
config ...`."""

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from alpro.errors import InputError
from alpro.models.alpro import ModelConfig
from alpro.pipeline.config.load import CONFIGS, load_config, shipped
from docs.write_configuration import document
from tests.conftest import one_line
from tests.pipeline.test_cli import call

TINY = str(Path(__file__).parents[1] / "tiny.toml")
CLIP = "cache_prompts.prompter=a/clip"


def places(name: str, folder: Path) -> list[str]:
    """The changes that a configuration needs to be complete."""
    values = (
        tomllib.loads((CONFIGS / f"{name}.toml").read_text())
        if name in shipped()
        else {"corpora": {}}
    )
    changes = [
        f"corpora.{key}.data={folder}"
        for key, corpus in values["corpora"].items()
        if "manifest" not in corpus
    ]
    return (
        [*changes, f"pretrained={folder / 'model'}"]
        if {"pretrained", "base"} & values.keys()
        else changes
    )


@pytest.mark.parametrize("name", [TINY, *shipped()])
def test_every_shipped_configuration_is_valid_has_its_command_and_is_the_same_where_it_is_shown(
    name, tmp_path, monkeypatch, capsys
):
    own = (
        ["train_prompter.model.video.depth=3", "pretrain.start=scratch"]
        if name == TINY
        else places(name, tmp_path)
    )
    if name != TINY:
        assert "alpro run --config" in (CONFIGS / f"{name}.toml").read_text().split("\nname")[0]
        model = [change for change in own if change.startswith("pretrained=")]
        assert (
            load_config(name, "" if name in ("sample", "tiny") else str(tmp_path), model).name
            == name
        )
    changes = [*own, "resources.workers=3"]
    options = [part for change in changes for part in ("--set", change)]
    status, out, err = call(monkeypatch, capsys, "config", "show", name, *options)
    assert (status, err) == (0, "")
    (tmp_path / "shown.toml").write_text(out)
    shown = load_config(str(tmp_path / "shown.toml"))
    assert shown == load_config(name, changes=changes)
    assert shown.resources.workers == 3
    assert "model" not in tomllib.loads(out).get("pretrain", {})  # written once


def test_the_page_of_the_configuration_is_up_to_date_and_the_list_has_first_comments(
    monkeypatch, capsys
):
    page = Path(__file__).parents[2] / "docs" / "configuration.md"
    assert page.read_text() == document(), "run: python docs/write_configuration.py"
    out = call(monkeypatch, capsys, "config", "list")[1]
    listed = [line.split(maxsplit=1) for line in out.splitlines()[1:]]
    assert [name for name, _ in listed[:2]] == ["sample", "tiny"]
    assert sorted(name for name, _ in listed) == shipped()
    for name, sentence in listed:  # whole, also where it goes over two lines
        comment = (CONFIGS / f"{name}.toml").read_text().replace("\n# ", " ")
        assert comment.startswith(f"# {sentence}.")


def test_changes_are_applied():
    changes = [
        "pretrain.lr=3e-4",
        "train_prompter.phases.0.epochs=2",
        "model.video.depth=2",
        "finetune_qa=false",
    ]
    changes += ["build_vocabulary.tagger=en_core_web_sm", 'evaluate.contrasts=[["up", "down"]]']
    changes += [
        "resources.processes=2",
        'templates.video=["A film of {}."]',
        "pretrain.phases.0.steps=9",
    ]
    config = load_config(TINY, changes=changes)
    assert (config.pretrain.lr, config.pretrain.phases[0].steps) == (3e-4, 9)
    assert config.train_prompter.phases[0].steps == 0
    assert (config.pretrain.model.video.depth, config.build_vocabulary.tagger) == (
        2,
        "en_core_web_sm",
    )
    assert (config.evaluate.contrasts, config.resources.processes) == ((("up", "down"),), 2)
    assert config.finetune_qa is None
    assert config.finetune_retrieval
    for templates in (
        config.templates,
        config.build_vocabulary.templates,
        config.cache_prompts.templates,
    ):
        assert templates.video == ("A film of {}.",)
    given = load_config(TINY, changes=["pretrained=a/b"])
    assert (given.train_prompter, given.pretrain, Path(given.pretrained).name) == (None, None, "b")


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ("pretrain.learning_rate=1", ["pretrain.learning_rate: ", "'lr'"]),
        ("train_prompter.model.video.num_frames=2", ["'frames'"]),
        ("nothing.lr=1", ["nothing: ", "pretrain, "]),
        ("pretrain.lr=-1", ["pretrain.lr: ", "-1"]),
        (
            "pretrain.phases.0.corpora=['nowhere', 'stills']",
            ["pretrain.phases: ", "'nowhere'", "clips, stills"],
        ),
        ("evaluate.qa=nowhere", ["evaluate.qa: ", "'nowhere'"]),
        ("model.video.image_size=30", ["image_size 30", "patch_size 8"]),
        ("model.video.width=64", ["must be equal"]),
        ("pretrain.phases.7.steps=1", ["'7'", "0 to 0"]),
        ("pretrain.phases.0.corpora.x.y=1", ["'x'"]),
        ("pretrain.lr.x=1", ["'x'"]),
        ("pretrain", ["stage.key=value"]),
        ("corpora.clips.data=elsewhere", ["corpora.clips: ", "data or shards"]),
        ("corpora.vocabulary={data='x'}", ["corpora.vocabulary"]),
        ("corpora.clips.data=https://me:x@host/a", ["corpora.clips"]),
        ("train_prompter.phases.0={steps=1, epochs=2}", ["train_prompter.phases.0"]),
        ('templates.video=["A film."]', ["templates.video: ", "{}"]),
        ('cache_prompts.templates.video=["{}"]', ["cache_prompts.templates: ", "[templates]"]),
        ("corpora.clips={shards='a', data='b'}", ["corpora.clips: ", "data or shards"]),
        ("corpora.clips={shards='a', size=36}", ["corpora.clips.size"]),
        ("corpora.clips={shards='a', annotations={train='x'}}", ["corpora.clips.annotations"]),
        ("corpora.clips.group_pattern='('", ["corpora.clips.group_pattern: "]),
        ("corpora.clips.root=b", ["corpora.clips.root: "]),
        ("render_sample=false", ["corpora.clips.manifest", "render_sample"]),
        ("pretrain.max_text_tokens=33", ["pretrain.max_text_tokens 33", "40", "32"]),
        ("evaluate.max_text_tokens=33", ["evaluate.max_text_tokens 33", "40", "32"]),
        (
            "train_prompter.model.text.max_length=8 & pretrain.start=scratch",
            ["train_prompter.max_text_tokens", "8"],
        ),
        ("train_prompter.model={wide=1}", ["train_prompter.model.wide: "]),
        (
            "train_prompter.crops={share=1, area=[0.3, 0.31]}",
            ["train_prompter.crops.area = [0.3, 0.31]", "4 x 4"],
        ),
        # A pipeline has one start, and encoders that fit.
        (CLIP, ["pretrain.start: "]),
        ("train_prompter.clip=a/b", ["pretrain.start: "]),
        ("train_prompter=false", ["cache_prompts.prompter"]),
        ("pretrain=false", ["pretrained"]),
        ("evaluate=false", ["evaluate"]),
        (f"pretrained=m & {CLIP}", ["pretrained", "cache_prompts.prompter"]),
        (
            "train_prompter.model.video.width=64 & train_prompter.model.text.width=64",
            ["pretrain.start = prompter"],
        ),
        *(
            (
                f"pretrain.start=scratch & train_prompter.model.video.{key}={value}",
                [f"video.{key}", f"is {value}"],
            )
            for key, value in (("frames", 4), ("image_size", 64), ("patch_size", 16))
        ),
    ],
)
def test_an_invalid_value_is_a_one_line_error_with_its_key(changes, parts):
    with one_line(*parts) as error:
        load_config(TINY, changes=changes.split(" & "))
    assert "Value error" not in str(error.value)  # as pydantic begins


def keys(values: Any, parents: tuple[str, ...] = ()) -> Iterator[str]:
    """The dotted keys of nested tables and lists, such as pretrain.phases.0.steps."""
    for key, value in values.items() if isinstance(values, dict) else enumerate(values):
        yield ".".join((*parents, str(key)))
        if isinstance(value, dict | list):
            yield from keys(value, (*parents, str(key)))


@pytest.mark.parametrize("value", ["3", "x", "[]", "[1]", "{}", "true", "2026-01-01"])
def test_a_value_of_any_type_is_accepted_or_a_one_line_error(value, tmp_path):
    """By --set, where it names the table, and in a file whose corpora are replaced."""
    messages = []
    values = tomllib.loads(Path(TINY).read_text())
    for key in keys(values):
        try:
            load_config(TINY, changes=[f"{key}={value}"])
        except InputError as error:
            messages.append(str(error))
            assert key.partition(".")[0] in messages[-1].replace(TINY, "")
    for key in values:
        file = tmp_path / "wrong.toml"
        file.write_text(f'base = "{TINY}"\n{key} = {value if value != "x" else repr(value)}\n')
        try:
            load_config(str(file), str(tmp_path), asks_questions=lambda data: True)
        except InputError as error:
            messages.append(str(error))
    assert len(messages) > 20
    assert not any("\n" in message for message in messages)


def test_an_invalid_file_is_named_in_the_error(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken.toml").write_text("name = ")
    for name in ("sample", "elsewhere"):
        (tmp_path / name).mkdir()  # hides no shipped configuration
    assert load_config("sample").name == "sample"
    for source in (str(tmp_path / "broken.toml"), "no_such", str(tmp_path / "x.toml"), "elsewhere"):
        with one_line(source):
            load_config(source)


def test_own_data_replaces_every_corpus_and_phases_keep_their_length(tmp_path):
    config = load_config("sample", str(tmp_path))
    assert list(config.corpora) == ["data"]
    assert config.render_sample is None
    assert config.evaluate.retrieval == config.evaluate.qa == "data"
    assert (config.corpora["data"].frames, config.corpora["data"].size) == (8, 64)
    own = tmp_path / "own.toml"
    wanted = {"train": tmp_path / "a.jsonl", "train.2": tmp_path / "b/c.jsonl"}
    table = "[corpora.msrvtt]\nannotations = {train = ['a.jsonl', 'b/c.jsonl']}\nroot = 'b'"
    own.write_text(f"base = 'msrvtt_retrieval'\n{table}")
    changes = [
        "pretrained=m",
        "corpora.msrvtt.data=x",
        f"corpora.msrvtt.annotations.test={tmp_path}/t",
    ]
    corpus = load_config(str(own), changes=changes).corpora["msrvtt"]
    assert corpus.annotation_files == wanted | {"test": tmp_path / "t"}
    config = load_config(str(own), str(tmp_path), ["pretrained=m"])
    corpus = config.corpora["data"]
    assert (corpus.data, corpus.annotations, corpus.root) == (str(tmp_path), {}, "")
    assert (corpus.frames, corpus.size) == (32, 224)  # of the corpus that is evaluated
    assert (config.evaluate.retrieval, config.evaluate.qa) == ("data", "")
    phases = "[[pretrain.phases]]\ncorpora = ['a', 'b']\nweights = [1, 2]\nsteps = 3\n"
    own.write_text(
        f"base = 'own_videos'\n{phases}[[pretrain.phases]]\ncorpora = ['b']\nepochs = 2\n"
    )
    phases = load_config(str(own), str(tmp_path)).pretrain.phases
    assert [(phase.corpora, phase.steps, phase.epochs) for phase in phases] == [
        (("data",), 3, 0),
        (("data",), 0, 2),
    ]


def test_questions_of_the_data_are_looked_for_only_if_a_stage_asks_them(tmp_path, capsys):
    manifest = tmp_path / "m.jsonl"
    asked = []
    manifest.write_text('{"path": "a.mp4", "caption": "a dog"}\n')
    load_config("webvid_cc3m", str(manifest), asks_questions=asked.append)
    load_config(
        "own_videos",
        str(manifest),
        ["finetune_qa=false", "evaluate.qa=''"],
        asks_questions=asked.append,
    )
    assert (asked, capsys.readouterr().err) == ([], "")
    for _ in range(2):
        config = load_config("own_videos", str(manifest), asks_questions=asked.append)
    assert (asked, capsys.readouterr().err.count("question answering is skipped")) == (
        [manifest] * 2,
        1,
    )
    assert config.finetune_qa is None
    assert (config.evaluate.retrieval, config.evaluate.qa) == ("data", "")
    manifest.write_text(
        '{"path": "a.mp4", "questions": [{"question": "what?", "answer": "dog"}]}\n'
    )
    assert load_config("own_videos", str(manifest)).finetune_qa is not None
    manifest.unlink()
    (tmp_path / "a.mp4").write_bytes(b"")
    (tmp_path / "a.txt").write_text("a dog runs")
    assert load_config("own_videos", str(tmp_path)).finetune_qa is None


@pytest.mark.parametrize("home", ["", "~/"])
def test_paths_are_relative_to_the_current_folder_or_the_home_folder(home, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    if not home:
        monkeypatch.chdir(tmp_path)
    for folder in ("bert", "openai/clip"):
        (tmp_path / folder).mkdir(parents=True)
    paths = {
        "corpora.webvid.data": "videos",
        "corpora.webvid.annotations.train": "a.csv",
        "corpora.cc3m.data": "images",
        "pretrain.bert": "bert",
        "train_tokenizer.tokenizer": "bert",
        "cache_prompts.prompter": "openai/clip",
        "corpora.webvid.root": "lists/../x",
    }
    if home:
        del paths["corpora.webvid.root"]  # maybe of another machine
    changes = [f"{key}={home}{path}" for key, path in paths.items()]
    config = load_config("webvid_cc3m", changes=[*changes, "pretrain.start=scratch"])
    webvid = config.corpora["webvid"]
    assert (webvid.data, webvid.annotations) == (
        f"{tmp_path}/videos",
        {"train": f"{tmp_path}/a.csv"},
    )
    assert (config.pretrain.bert, config.train_tokenizer.tokenizer) == (f"{tmp_path}/bert",) * 2
    assert config.cache_prompts.prompter == f"{tmp_path}/openai/clip"
    assert home or webvid.root == f"{tmp_path}/x"
    assert config.train_prompter.bert == "bert-base-uncased"  # a name on the hub is not a path
    (tmp_path / "mine.toml").write_text(
        'base = "own_videos"\ncorpora.data.data = "~/a"\ntrain_prompter.bert = "bert"'
    )
    mine = load_config(f"{home}mine.toml")
    assert (mine.corpora["data"].data, mine.train_prompter.bert) == (
        f"{tmp_path}/a",
        f"{tmp_path}/bert",
    )
    qa = load_config("msvd_qa", f"{home}videos", [f"pretrained={home}model"])
    assert (qa.corpora["data"].data, qa.pretrained) == (f"{tmp_path}/videos", f"{tmp_path}/model")


def test_data_and_shards_may_be_paths_and_urls(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    urls = {url: url for url in ("s3://bucket/a", "filecache::https://host/a", "/data/a")}
    for value, expected in (urls | {"a": f"{tmp_path}/a", "file:///data/a": "/data/a"}).items():
        for key in ("data", "shards"):
            config = load_config(TINY, changes=[f"corpora.clips={{{key}={value!r}}}"])
            assert getattr(config.corpora["clips"], key) == expected


def test_sizes_are_those_of_the_folders_of_encoders(tmp_path, clip_folders):
    """They replace those of the configuration, which could not be loaded, in both stages. Names
    change nothing."""
    (tmp_path / "bert").mkdir()
    sizes = {
        "hidden_size": 16,
        "num_hidden_layers": 8,
        "num_attention_heads": 4,
        "intermediate_size": 32,
    }
    (tmp_path / "bert" / "config.json").write_text(
        json.dumps(sizes | {"max_position_embeddings": 128})
    )
    changes = [f"pretrain.vit={clip_folders['clip']}", f"train_prompter.bert={tmp_path / 'bert'}"]
    config = load_config("own_videos", str(tmp_path), changes)
    assert config.train_prompter.model == config.pretrain.model == config.model
    video = config.model.video
    text = config.model.text
    assert (video.width, video.depth, video.heads, video.patch_size, video.mlp_ratio) == (
        16,
        2,
        2,
        16,
        2.0,
    )
    assert (video.pre_norm, video.activation, video.stem, video.image_size) == (
        True,
        "quick_gelu",
        "patch",
        112,
    )
    assert (text.width, text.depth, text.fusion_layer, text.heads) == (16, 8, 4, 4)
    assert (text.mlp_ratio, text.max_length) == (2.0, 128)
    assert config.train_tokenizer.tokenizer == str(tmp_path / "bert")
    named = load_config(
        "webvid_cc3m", str(tmp_path), ["pretrain.vit=a_vit.b", "pretrain.bert=a-bert"]
    )
    assert (named.model, named.train_tokenizer.tokenizer) == (ModelConfig(), "bert-base-uncased")
    with pytest.raises(InputError, match="siglip"):  # before anything is decoded
        load_config("own_videos", str(tmp_path), [f"pretrain.vit={clip_folders['siglip']}"])


def test_the_prompter_may_have_sizes_of_its_own():
    wide = [
        "train_prompter.model.video.width=64",
        "train_prompter.model.text.width=64",
        "pretrain.start=scratch",
    ]
    config = load_config(TINY, changes=wide)
    widths = [stage.model.video.width for stage in (config.train_prompter, config.pretrain)]
    assert (widths, config.model) == ([64, 32], config.pretrain.model)
    assert config.train_prompter.model.video.frames == config.model.video.frames


def test_a_base_gives_what_a_file_does_not_say(tmp_path, monkeypatch):
    """Relative to the file, or shipped; its corpora stay only where a stage uses them or they have
    data."""
    (tmp_path / "a.toml").write_text('base = "b.toml"\nfinetune_qa = false\n[pretrain]\nlr = 0.5\n')
    (tmp_path / "b.toml").write_text(
        'base = "own_videos"\nname = "b"\n[corpora.data]\ndata = "videos"\n'
    )
    config = load_config(str(tmp_path / "a.toml"))
    whole = load_config("own_videos", str(tmp_path / "videos"))
    assert (config.name, config.corpora["data"].data, config.pretrain.lr) == (
        "b",
        str(tmp_path / "videos"),
        0.5,
    )
    assert config.finetune_qa is None
    assert (
        config.finetune_retrieval
        == load_config("own_videos", changes=["corpora.data.data=x"]).finetune_retrieval
    )
    assert whole.train_prompter == config.train_prompter
    changes = ["corpora.msrvtt.data=x", "pretrained=m"]
    assert list(load_config("msrvtt_retrieval", changes=changes).corpora) == ["msrvtt"]
    with pytest.raises(InputError, match=r"corpora\.(webvid|cc3m)"):
        load_config("msrvtt_retrieval", changes=changes[:1])
    (tmp_path / "b.toml").write_text('base = "a.toml"')
    (tmp_path / "c.toml").write_text("base = 3")
    for wrong in ("a.toml", "c.toml"):
        with pytest.raises(InputError, match="base must be"):
            load_config(str(tmp_path / wrong))
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "mine.toml").write_text(Path(TINY).read_text())
    monkeypatch.chdir(tmp_path)
    assert load_config("mine") == load_config(TINY)
