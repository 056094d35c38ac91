"""Configuration: shipped files, layers, changes, and one line for every mistake."""

import tomllib
from pathlib import Path

import pytest

from alpro.artifact import flatten
from alpro.errors import InputError
from alpro.pipeline.config.command import CONFIGS, Command, shipped
from alpro.pipeline.config.load import read_config, variations
from docs.write_configuration import document
from tests.conftest import ROOT, one_line
from tests.pipeline.conftest import TINY
from tests.plans import configure

CLIP = "cache_prompts.prompter=a/clip"


def complete(name, folder):
    """The changes that a configuration needs to be complete."""
    if name == TINY:
        return ["train_prompter.model.video.depth=3", "pretrain.start=scratch"]
    values = read_config(CONFIGS / f"{name}.toml")
    changes = [
        f"corpora.{key}.data={folder}"
        for key, corpus in values["corpora"].items()
        if "manifest" not in corpus
    ]
    starts_from_a_model = "pretrained" in values
    return (
        [*changes, f"pretrained={folder / 'model'}"] if starts_from_a_model else changes
    )


@pytest.fixture
def write(tmp_path):
    """write(name, text): writes a configuration file; returns its path."""

    def write_file(name, text):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return str(path)

    return write_file


# Shipped configurations.


@pytest.mark.parametrize("name", [TINY, *shipped()])
def test_a_configuration_that_is_shown_is_the_same_configuration(
    name, write, tmp_path, call
):
    changes = [*complete(name, tmp_path), "resources.workers=3"]
    options = [part for change in changes for part in ("--set", change)]

    status, out, err = call("config", "show", name, *options)

    assert (status, err) == (0, "")
    shown = configure(write("shown.toml", out))
    assert shown == configure(name, *changes)
    assert shown.resources.workers == 3
    assert "model" not in tomllib.loads(out).get("pretrain", {})  # written once


@pytest.mark.parametrize("name", shipped())
def test_a_shipped_configuration_begins_with_its_command(name):
    assert (
        "alpro run --config"
        in (CONFIGS / f"{name}.toml").read_text().split("\nname")[0]
    )


def test_the_page_of_the_configuration_is_up_to_date():
    page = ROOT / "docs" / "configuration.md"
    assert page.read_text() == document(), "run: python docs/write_configuration.py"


# Files as layers.


def test_a_file_takes_from_its_base_what_it_does_not_say(write, tmp_path):
    own = write(
        "a.toml", 'base = "b.toml"\nfinetune_qa = false\n[pretrain]\nlr = 0.5\n'
    )
    write(
        "b.toml", 'base = "own_videos"\nname = "b"\n[corpora.data]\ndata = "videos"\n'
    )
    config = configure(own)
    base = configure("own_videos", data=tmp_path / "videos")

    assert (config.name, config.corpora["data"].data) == ("b", str(tmp_path / "videos"))
    assert (config.pretrain.lr, config.finetune_qa) == (0.5, None)
    assert config.train_prompter == base.train_prompter
    assert config.finetune_retrieval == base.finetune_retrieval


@pytest.mark.parametrize("table", ["evaluate", "model.video"])
def test_an_empty_table_says_nothing_about_its_base(table, write):
    assert configure(write("own.toml", f'base = "{TINY}"\n[{table}]\n')) == configure(
        TINY
    )


def test_a_stage_that_a_base_leaves_out_is_back_with_its_table(write):
    table = "[finetune_qa]\n[[finetune_qa.phases]]\ncorpora = ['clips']\nsteps = 2\n"
    write("base.toml", f'base = "{TINY}"\nfinetune_qa = false\n')

    assert (
        configure(write("own.toml", f'base = "base.toml"\n{table}')).finetune_qa.answers
        == 1500
    )
    assert configure(write("own.toml", 'base = "base.toml"')).finetune_qa is None


def test_a_place_of_data_replaces_another(write):
    own = write("own.toml", f'base = "{TINY}"\n[corpora.clips]\ndata = "/films"\n')

    for config in (configure(own), configure(TINY, "corpora.clips.data=/films")):
        corpus = config.corpora["clips"]
        assert (corpus.data, corpus.manifest, corpus.size) == ("/films", "", 36)


def test_a_corpus_of_a_base_needs_data_only_if_a_stage_reads_it(tmp_path):
    given = "corpora.msrvtt.data=x"
    assert configure("msrvtt_retrieval", given, "pretrained=m").used_corpora.keys() == {
        "msrvtt"
    }
    with pytest.raises(InputError, match=r"corpora\.(webvid|cc3m)"):
        configure("msrvtt_retrieval", given)


@pytest.mark.parametrize("base", ["'a.toml'", "'../{}/a.toml'", "3"])
def test_a_base_must_be_another_configuration(base, write, tmp_path):
    with pytest.raises(InputError, match="base must be"):
        configure(write("a.toml", f"base = {base.format(tmp_path.name)}"))


def test_a_shipped_configuration_is_found_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "sample").mkdir()
    monkeypatch.chdir(tmp_path)

    # A folder hides no shipped configuration.
    assert configure("sample").name == "sample"


@pytest.mark.parametrize("source", ["broken.toml", "no_such", "none.toml", "folder"])
def test_a_file_that_cannot_be_read_is_named(source, write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write("broken.toml", "name = ")
    (tmp_path / "folder").mkdir()
    with one_line(source):
        configure(source)


# Changes.


@pytest.mark.parametrize(
    ("change", "key", "value"),
    [
        ("pretrain.lr=3e-4", "pretrain.lr", 3e-4),
        ("pretrain.phases.0.steps=9", "pretrain.phases.0.steps", 9),
        ("model.video.depth=2", "pretrain.model.video.depth", 2),
        (
            "build_vocabulary.tagger=en_core_web_sm",
            "build_vocabulary.tagger",
            "en_core_web_sm",
        ),
        (
            'evaluate.contrasts=[["up", "down"]]',
            "evaluate.contrasts",
            (("up", "down"),),
        ),
        ("resources.processes=2", "resources.processes", 2),
        ("finetune_qa=false", "finetune_qa", None),
        (
            'templates.video=["A film of {}."]',
            "cache_prompts.templates.video",
            ("A film of {}.",),
        ),
        # One length of a phase replaces the other.
        ("train_prompter.phases.0.epochs=2", "train_prompter.phases.0.steps", 0),
        # Where text is meant, what looks like a date or a number is text.
        *(
            (f"corpora.clips.data={name}", "corpora.clips.data", f"{Path.cwd()}/{name}")
            for name in ("2024-01-01", "1e3", "true", "{}")
        ),
        ("name=2024", "name", "2024"),
        (
            "corpora.clips.columns.first_option=0",
            "corpora.clips.columns.first_option",
            "0",
        ),
        ("corpora.clips.group_pattern=1_0", "corpora.clips.group_pattern", "1_0"),
    ],
)
def test_a_change_reaches_its_key(change, key, value):
    assert flatten(configure(TINY, change).model_dump())[key] == value


def test_a_maximum_of_steps_holds_in_every_phase():
    config = configure(
        "own_videos", "max_steps=20", "pretrain.phases.0.epochs=3", data="x"
    )

    phases = {name: one.phases[0] for name, one in config.trainings().items()}
    assert {(phase.steps, phase.epochs) for phase in phases.values()} == {(20, 0)}
    shorter = configure(
        "own_videos", "max_steps=20", "pretrain.phases.0.steps=3", data="x"
    )
    assert shorter.pretrain.phases[0].steps == 3


def test_own_data_is_a_corpus_that_the_configuration_names(tmp_path):
    config = configure("own_videos", "corpora.data.frames=3", data=tmp_path)
    assert (config.corpora["data"].data, config.corpora["data"].frames) == (
        str(tmp_path),
        3,
    )

    with one_line("corpora.data", "corpora.clips.data or corpora.stills.data"):
        configure(TINY, data=tmp_path)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ("nothing.lr=1", ["nothing: ", "pretrain, "]),
        ("pretrain.lr=-1", ["pretrain.lr: ", "than 0 (it is -1"]),
        ("pretrain.lr=fast", ["pretrain.lr: ", "number", "(it is 'fast')"]),
        ("evaluate.split=train", ["evaluate.split: ", "'validation' or 'test'"]),
        ("resources.nodes=2", ["rendezvous, host:port"]),
        (
            "pretrain.phases.0.corpora=['nowhere', 'stills']",
            ["pretrain.phases: ", "'nowhere'", "clips, stills"],
        ),
        ("evaluate.qa=nowhere", ["evaluate.qa: ", "'nowhere'"]),
        ("model.video.image_size=30", ["image_size 30", "patch_size 8"]),
        ("model.video.width=64", ["must be equal"]),
        ("pretrain.phases.7.steps=1", ["pretrain.phases.7"]),
        ("pretrain", ["stage.key=value"]),
        ("evaluate=false", ["evaluate: ", "(it is False)"]),
        ("corpora.clips.data=~nobody-here/a", ["~nobody-here/a: ", "no such user"]),
        (
            "corpora.clip.data=x",
            ["corpora.clip: no stage", "corpora.clips.data"],
        ),
        ("train_prompter.phases.0={steps=1, epochs=2}", ["train_prompter.phases.0"]),
        ('templates.video=["A film."]', ["templates.video: ", "{}"]),
        (
            'cache_prompts.templates.video=["{}"]',
            ["cache_prompts.templates: ", "[templates]"],
        ),
        ("corpora.clips={shards='a', data='b'}", ["corpora.clips: ", "data, shards"]),
        ("corpora.clips={shards='a', size=36}", ["corpora.clips: ", "key size"]),
        ("corpora.clips.group_pattern='('", ["corpora.clips.group_pattern: "]),
        ("corpora.clips.data=https://me:pw@host/a", ["corpora.clips.data", "password"]),
        ("render_sample=false", ["corpora.clips.manifest", "render_sample"]),
        (
            "train_prompter.crops={share=1, area=[0.3, 0.31]}",
            ["train_prompter.crops.area = [0.3, 0.31]", "4 x 4"],
        ),
        # A pipeline has one start, and encoders that fit.
        (CLIP, ["pretrain.start = prompter"]),
        ("train_prompter=false", ["cache_prompts.prompter"]),
        ("pretrain=false", ["pretrained"]),
        (f"pretrained=m & {CLIP}", ["pretrained", "cache_prompts.prompter"]),
        (
            "train_prompter.model.video.width=64 & train_prompter.model.text.width=64",
            ["pretrain.start = prompter"],
        ),
        (
            "pretrain.start=scratch & train_prompter.model.video.frames=4",
            ["model.video", "'frames': 4"],
        ),
        ("frames=8", ["corpora, finetune_retrieval"]),
        (
            "finetune_retrieval.negative_pool_size=5",
            ["finetune_retrieval: negative_pool_size 5"],
        ),
        (
            "evaluate.baseline=clip",
            ["evaluate.baseline: no CLIP"],
        ),
    ],
)
def test_a_mistake_is_a_line_with_its_key(changes, parts):
    with one_line(*parts):
        configure(TINY, *changes.split(" & "))


@pytest.mark.parametrize("value", ["-1", "x", "[1]", "{}", "nan", "2026-01-01"])
def test_any_value_of_any_key_is_accepted_or_a_line(value):
    values = flatten(configure(TINY).model_dump(mode="json"))
    tables = {key.rpartition(".")[0] for key in values} - {""}
    for key in [*values, *sorted(tables), "corpora.clips.columns.line"]:
        try:
            configure(TINY, f"{key}={value}")
        except InputError as error:
            lines = str(error).splitlines()
            assert len(lines) == 1


def test_a_wrong_value_in_a_file_is_a_line_with_the_file(write):
    own = write("wrong.toml", f'base = "{TINY}"\nevaluate = 3\n')
    with one_line("wrong.toml: evaluate: "):
        configure(own)


# Paths.


@pytest.mark.parametrize("home", ["", "~/"])
@pytest.mark.parametrize(
    "key", ["pretrained", "pretrain.bert", "train_tokenizer.tokenizer"]
)
def test_a_path_is_relative_to_the_current_folder_or_the_home_folder(
    key, home, tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    if not home:
        monkeypatch.chdir(tmp_path)
    (tmp_path / "a" / "b").mkdir(parents=True)

    config = configure(
        TINY, "corpora.clips.data=x", "pretrain.start=scratch", f"{key}={home}a/b"
    )

    assert flatten(config.model_dump())[key] == f"{tmp_path}/a/b"


def test_a_path_of_a_file_is_relative_to_it_and_a_name_on_the_hub_is_none(
    write, tmp_path
):
    (tmp_path / "bert").mkdir()
    text = (
        'base = "own_videos"\ncorpora.data.data = "a"\ntrain_prompter.bert = "bert"\n'
    )
    config = configure(write("mine.toml", f'{text}pretrain.bert = "a-bert"\n'))

    assert config.corpora["data"].data == f"{tmp_path}/a"
    assert (config.train_prompter.bert, config.pretrain.bert) == (
        f"{tmp_path}/bert",
        "a-bert",
    )


def test_a_root_may_be_of_another_machine(tmp_path, monkeypatch):
    (tmp_path / "link").symlink_to("/tmp")
    monkeypatch.chdir(tmp_path)
    own = (
        "corpora.clips={data='x', annotations={train=['a', 'b']}}",
        "corpora.clips.root=link/../x",
    )

    corpus = configure(TINY, *own).corpora["clips"]

    assert corpus.root == f"{tmp_path}/x"
    assert corpus.annotations == {"train": (f"{tmp_path}/a", f"{tmp_path}/b")}


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("s3://bucket/a", "s3://bucket/a"),
        ("filecache::https://host/a", "filecache::https://host/a"),
        ("file:///data/a", "/data/a"),
    ],
)
def test_data_and_shards_may_be_paths_and_urls(value, expected):
    for key in ("data", "shards"):
        corpus = configure(TINY, f"corpora.clips={{{key}={value!r}}}").corpora["clips"]
        assert getattr(corpus, key) == expected


# Models.


def test_the_prompter_may_have_sizes_of_its_own():
    wide = ["train_prompter.model.video.width=64", "train_prompter.model.text.width=64"]
    config = configure(TINY, *wide, "pretrain.start=scratch")

    assert config.train_prompter.model.video.width == 64
    assert config.pretrain.model == config.model == configure(TINY).model
    assert config.train_prompter.model.video.frames == config.model.video.frames


@pytest.mark.parametrize(
    ("change", "is_variation"),
    [
        ("corpora.data.data=/my/videos", False),
        ("train_prompter.clip={folder}", False),
        ("train_prompter.clip=openai/clip-vit-large-patch14", True),
        ("train_prompter.lr=1e-5", True),
        ("resources.workers=3", False),
    ],
)
def test_files_models_and_resources_of_the_user_make_no_variant(
    change, is_variation, tmp_path
):
    """CONFIG/STAGE stands for the run of a configuration on anyone's videos, with any folder of the
    CLIP."""
    change = change.format(folder=tmp_path)
    command = Command("finetune_clip", (change,))
    assert variations(command) == ([change] if is_variation else [])


def test_a_mistyped_key_is_named_before_the_one_that_is_missing(tmp_path):
    (tmp_path / "own.toml").write_text('nam = "x"')
    with one_line("nam: ", "did you mean 'name'?"):
        configure(str(tmp_path / "own.toml"))
