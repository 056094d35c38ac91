"""Study files: keys, changes as lists or tables, one-line errors."""

from pathlib import Path

import pytest

from alpro.errors import InputError
from alpro.pipeline.config.pipeline_config import load_config
from alpro.pipeline.studies.study_config import SEEDED, Study, Variant, load_study
from tests.pipeline.conftest import TINY


def test_a_table_of_changes_is_the_list_of_changes():
    """Also as dotted keys, and with values that TOML writes in another way than Python."""
    table = {
        "pretrain": {"weights": {"pem": 0, "vtc": 0.5}, "start": 'a "b" = [c]'},
        "templates": {"video": ["Ein Bär: {}."]},
        "resources.compile": True,
        "train_prompter": {"phases": [{"steps": 3}]},
    }
    (variant,) = Study.model_validate({"variants": [{"name": "a", "set": table}]}).variants
    config = load_config(TINY, changes=list(variant.changes))
    assert (config.pretrain.weights.pem, config.pretrain.weights.vtc) == (0, 0.5)
    assert config.pretrain.start == 'a "b" = [c]'
    assert config.templates.video == ("Ein Bär: {}.",)
    assert config.resources.compile is True
    assert config.train_prompter.phases[0].steps == 3


def test_the_smallest_study_is_the_sample_with_three_seeds(tmp_path):
    (tmp_path / "mine.toml").write_text("")
    study = load_study(str(tmp_path / "mine.toml"))
    assert (study.name, study.config, study.seeds, study.seed_stages) == ("mine", "sample", (0, 1, 2), SEEDED)
    assert study.variants == (Variant(name="base"),)
    assert set(SEEDED) == {
        "render_sample",
        "train_prompter",
        "pretrain",
        "finetune_retrieval",
        "finetune_qa",
        "evaluate",
    }


def test_bases():
    """The first variant is the base, unless a variant names another one; a base has none unless it names one."""
    names = [("a", ""), ("b", ""), ("c", ""), ("d", "c"), ("e", "b"), ("b2", "e")]
    study = Study(variants=[Variant(name=name, base=base) for name, base in names])
    assert study.bases() == {"d": "c", "e": "b", "b2": "e"}
    plain = Study(variants=[Variant(name="a"), Variant(name="b")])
    assert plain.bases() == {"b": "a"}


def test_the_path_of_a_configuration_is_relative_to_the_study(tmp_path, monkeypatch):
    (tmp_path / "mine.toml").write_text('config = "base.toml+msvd_qa"')
    monkeypatch.chdir("/")
    assert load_study(str(tmp_path / "mine.toml")).config == f"{tmp_path}/base.toml+msvd_qa"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed = [1]", "seed: unknown key; did you mean 'seeds'?"),
        ("variants = [{name = 'a'}, {name = 'a'}]", "variants: 'a' occurs twice"),
        ("variants = [{name = 'a', base = 'b'}]", "variants: 'a' has base 'b', which is not another variant"),
        ("variants = [{name = 'a', base = 'a'}]", "variants: 'a' has base 'a', which is not another variant"),
        ("seeds = [1, 1]", "seeds: 1 occurs twice"),
        ("seeds = []", "seeds: Tuple should have at least 1 item"),
        ("until = 'nothing'", "until: no stage 'nothing'; the stages are "),
        ("seed_stages = ['zero_shot']", "seed_stages: no stage 'zero_shot'; the stages are render_sample"),
        ("variants = [{set = []}]", "variants.0.name: Field required"),
        ("variants = [{name = 'a', sett = []}]", "variants.0.sett: unknown key; did you mean 'set'?"),
        ("name = 'a b'", "name: String should match pattern"),
        ("variants = 3", "variants: Input should be"),
        ("set.pretrain.lr = 2020-01-01", "set: a value is not a text, a number, true, false or a list of these"),
        ("set = 3", "set: Input should be"),
        ("= 3", "not readable as TOML"),
    ],
)
def test_an_invalid_study_is_a_one_line_error(text, message, tmp_path):
    (tmp_path / "mine.toml").write_text(text)
    with pytest.raises(InputError) as raised:
        load_study(str(tmp_path / "mine.toml"))
    assert str(raised.value).startswith(f"{tmp_path}/mine.toml: ")
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_unknown_study_lists_the_shipped_ones():
    with pytest.raises(InputError, match="table1: neither a file nor a shipped study; those are entities_full,"):
        load_study("table1")


def test_joined_configurations_complete_and_override_each_other(tmp_path):
    paths = [f"corpora.{name}.data={tmp_path}" for name in ("webvid", "cc3m", "msrvtt")]
    joined = load_config("webvid_cc3m+msrvtt_retrieval", changes=paths)
    first = load_config("webvid_cc3m", changes=paths[:2])
    assert list(joined.corpora) == ["webvid", "cc3m", "msrvtt"]
    assert joined.pretrain == first.pretrain
    assert (joined.name, joined.evaluate.frames) == ("msrvtt_retrieval", 8)
    (tmp_path / "more.toml").write_text("[model.video]\ndepth = 2\n[train_prompter]\nbetas = [0.5, 0.6]\n")
    mine = load_config(f"{TINY}+{tmp_path / 'more.toml'}")
    tiny = load_config(TINY)
    assert mine.model.video == tiny.model.video.model_copy(update={"depth": 2})
    assert mine.train_prompter.betas == (0.5, 0.6)
    assert mine.train_prompter.phases == tiny.train_prompter.phases


def test_a_plus_in_the_name_of_a_file_is_part_of_it(tmp_path):
    file = tmp_path / "a+b.toml"
    file.write_text(Path(TINY).read_text())
    assert load_config(str(file)) == load_config(TINY)
