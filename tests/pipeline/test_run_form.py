"""The form of a deployment on Prefect's page: a field that nobody touched changes nothing."""

import shutil

import pytest
from prefect.client.schemas.objects import FlowRun  # noqa: F401 (Prefect's models first)
from prefect.utilities.callables import parameter_schema
from prefect.utilities.schema_tools import is_valid_schema, validate

from alpro.pipeline.flows import flow
from alpro.stages import STAGES
from docs.screenshots import PROGRAMS
from tests.pipeline.started import Up, call

FLOWS = {stage: getattr(flow, stage) for stage in ("alpro", *STAGES)}


@pytest.mark.parametrize("stage", FLOWS)
def test_the_form_has_described_fields_whose_defaults_change_nothing(stage):
    """No switch, which the page would send as false, and nothing that only pipelines pass."""
    schema = parameter_schema(FLOWS[stage]).model_dump()
    is_valid_schema(schema)
    shown = schema["properties"]
    assert {name: (field["type"], field["default"]) for name, field in shown.items()} == {
        "config": ("string", "sample"),
        "data": ("string", ""),
        "changes": ("array", []),
    }
    assert shown["changes"]["items"] == {"type": "string"}
    assert all(field["description"] for field in shown.values())
    assert not validate({"config": "sample+mine.toml", "data": "", "changes": ["pretrain.lr=1e-4"]}, schema)
    assert validate({"changes": "pretrain.lr=1e-4"}, schema)


@pytest.mark.long
@pytest.mark.skipif(not any(map(shutil.which, PROGRAMS)), reason="no Chromium")
def test_an_untouched_form_sends_the_defaults(tmp_path, free_port):
    """On the page that every link of Prefect's command line leads to."""
    pytest.importorskip("playwright")
    from docs.screenshots import browser

    with Up(tmp_path / "w", free_port(), free_port()) as machine, browser() as chromium:
        deployment = call(machine.prefect, "GET", "/deployments/name/pretrain/pretrain")
        page = chromium.new_page()
        page.set_default_timeout(300_000)
        page.goto(f"{machine.prefect.removesuffix('/api')}/deployments/deployment/{deployment['id']}/run")
        button = page.get_by_role("button", name="Submit")
        button.wait_for()
        for _ in range(20):  # a busy Prefect answers 503, and the form stays
            with page.expect_response(lambda response: "create_flow_run" in response.url) as sent:
                button.click()
            if sent.value.status != 503:
                break
        assert sent.value.ok, sent.value.text()
        unchanged = {"config": "sample", "data": "", "changes": []} | deployment["parameters"]
        posted = sent.value.request.post_data_json["parameters"]
        assert {name: value for name, value in posted.items() if value != unchanged.get(name)} == {}
        call(
            machine.prefect, "POST", f"/flow_runs/{sent.value.json()['id']}/set_state", {"state": {"type": "CANCELLED"}}
        )
