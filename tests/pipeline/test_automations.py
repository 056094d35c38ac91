"""The automation for runs without heartbeats, and schedules, as Prefect's server has them."""

import asyncio
from datetime import timedelta
from types import SimpleNamespace
from uuid import uuid4

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.schedules import CronSchedule
from prefect.events.schemas.events import RelatedResource, Resource
from prefect.server.services.scheduler import schedule_deployments

from alpro.pipeline.servers.automations import crash_silent_runs, install, main


@pytest.fixture
def server(prefect):
    """Prefect's server, without automations of earlier tests."""
    with get_client(sync_client=True) as client:
        for one in client.read_automations():
            client.delete_automation(one.id)
        yield client


def test_the_command_may_be_repeated(server, capsys):
    assert main([]) == 0
    assert main(["--silence", "30"]) == 0
    (installed,) = server.read_automations()
    assert installed.trigger.within == timedelta(seconds=30)
    assert [action.type for action in installed.actions] == ["change-flow-run-state"]
    assert capsys.readouterr().out == "automation: alpro: runs without heartbeats\n" * 2


@pytest.mark.parametrize(
    ("flow", "covered"), [("alpro", True), ("train-prompter", True), ("step", True), ("somebody-elses", False)]
)
def test_only_runs_of_this_project_are_meant(flow, covered):
    run = Resource({"prefect.resource.id": f"prefect.flow-run.{uuid4()}"})
    of = RelatedResource(
        {"prefect.resource.id": "prefect.flow.1", "prefect.resource.role": "flow", "prefect.resource.name": flow}
    )
    trigger = crash_silent_runs(600).trigger
    assert trigger.match.includes([run])
    assert trigger.match_related.includes([of]) == covered


def test_an_existing_automation_is_updated():
    calls = []
    existing = SimpleNamespace(id=uuid4())
    client = SimpleNamespace(
        read_automations_by_name=lambda name: [existing],
        update_automation=lambda identity, automation: calls.append((identity, automation.name)),
    )
    install(client, crash_silent_runs(600))
    assert calls == [(existing.id, "alpro: runs without heartbeats")]


def test_a_schedule_starts_runs(server):
    """SQLAlchemy 2.1 breaks Prefect's scheduler: it logs an error each minute, and no run ever starts."""
    schedule = DeploymentScheduleCreate(schedule=CronSchedule(cron="0 3 * * *"), parameters={"config": "nightly.toml"})
    flow = server.create_flow_from_name("alpro")
    deployment = server.create_deployment(flow, "nightly", schedules=[schedule])
    asyncio.run(schedule_deployments())
    wanted = FlowRunFilter.model_validate({"deployment_id": {"any_": [deployment]}})
    runs = server.read_flow_runs(flow_run_filter=wanted)
    server.delete_deployment(deployment)
    assert runs
    assert {run.parameters["config"] for run in runs} == {"nightly.toml"}
