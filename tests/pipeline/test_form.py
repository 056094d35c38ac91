"""The form of the deployments: its fields, and what the server refuses by them before a run starts."""

import tomllib

import pytest
from prefect.client.schemas.objects import FlowRun  # noqa: F401 (Prefect's models first)
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools import is_valid_schema, validate

from alpro.pipeline import flow
from alpro.pipeline.config import load_config, shipped
from alpro.pipeline.config_values import apply_change
from alpro.pipeline.form import changes_of, form_of, leaves
from alpro.stages import STAGES

FLOWS = {stage: getattr(flow, stage) for stage in ("alpro", *STAGES)}


@pytest.mark.parametrize("stage", FLOWS)
def test_the_form_has_described_fields_and_no_internal_ones(stage):
    schema = parameter_schema(FLOWS[stage]).model_dump()
    is_valid_schema(schema)
    shown = schema["properties"]
    own = ["stages_by_deployment"] if stage == "alpro" else ["values"]
    assert list(shown) == ["config", "data", "changes", *own]
    assert all(field["description"] for field in shown.values())
    assert {"type": "string", "title": "shipped", "enum": shipped()} in shown["config"]["anyOf"]
    for field in shown.get("values", {}).get("properties", {}).values():
        assert field.get("description"), field
        assert "default" not in field


@pytest.mark.parametrize(
    ("parameters", "accepted"),
    [
        ({}, True),
        ({"config": "webvid_cc3m"}, True),
        ({"config": "mine.toml"}, True),
        ({"config": "sample+mine.toml"}, True),
        ({"config": 3}, False),
        ({"changes": ["pretrain.lr=1e-4", "corpora.my-clips.size = 64"]}, True),
        ({"changes": ["pretrain.lr"]}, False),
        ({"changes": ["a=1\nb=2"]}, False),
        ({"values": {"lr": 5e-4, "weights": {"pem": 0}, "schedule": "phase", "mixed_precision": False}}, True),
        ({"values": {"lr": -1}}, False),
        ({"values": {"lr": "fast"}}, False),
        ({"values": {"batch_size": 0}}, False),
        ({"values": {"batch_size": 1.5}}, False),
        ({"values": {"schedule": "never"}}, False),
        ({"values": {"mlm_probability": 1.1}}, False),
        ({"values": {"leraning_rate": 1}}, False),
        ({"values": {"weights": {"pem": "much"}}}, False),
    ],
)
def test_the_server_checks_types_and_bounds(parameters, accepted):
    errors = validate(parameters, parameter_schema(flow.pretrain).model_dump())
    assert (not errors) is accepted, errors


def test_every_value_of_a_form_is_a_key_of_the_configuration():
    """A value that the configuration has, passed through the form, changes nothing."""
    config = load_config("sample")
    for stage in STAGES:
        table = {"zero_shot": config.evaluate, "index_shards": None}.get(stage, getattr(config, stage, None))
        table = config.corpora["clips"] if stage == "decode_videos" else table
        if table is None:
            continue
        names = {name for name, _ in leaves(form_of(stage)["properties"]) if "." in name}
        assert names
        present = table.model_dump(include=set(form_of(stage)["properties"]))
        values = {key: value for key, value in present.items() if not isinstance(value, list | tuple)}
        corpora = ["clips"] if stage == "decode_videos" else []
        values.pop("kinds" if stage == "decode_videos" else "", None)
        assert load_config("sample", changes=changes_of(stage, values, corpora)) == config, stage


def test_values_become_changes_of_the_tables_of_the_configuration():
    assert changes_of("zero_shot", {"k": 5}, []) == ["evaluate.k=5"]
    assert changes_of("decode_videos", {"size": 64}, ["a", "b"]) == ["corpora.a.size=64", "corpora.b.size=64"]
    for value in (True, 1e-7, 3, "ü “quoted” \\ text"):
        (change,) = changes_of("pretrain", {"key": value}, [])
        values: dict = {}
        apply_change(values, change)
        assert values == {"pretrain": {"key": value}}
        assert tomllib.loads(f"a = {change.partition('=')[2]}") == {"a": value}


def test_a_copied_run_of_a_pipeline_that_a_person_changed_is_a_run_of_its_own():
    sent = {"config": "sample", "data": "", "changes": ["pretrain.lr=1e-4"]}
    handed = {**sent, "values": {}, "handover": {"steps": [], "arguments": {**sent, "folder": "."}}}
    assert flow.is_handed(handed)
    assert not flow.is_handed({**sent, "values": {}, "handover": {}})
    assert not flow.is_handed({**handed, "changes": []})
    assert not flow.is_handed({**handed, "config": "own_videos"})
    assert not flow.is_handed({**handed, "values": {"lr": 1}})
