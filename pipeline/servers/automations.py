"""Prefect's automations for runs that nobody watches: `python -m alpro.pipeline.servers.automations`.

A run whose process and machine are gone sends no heartbeats: it is marked as crashed, and its slot is free again. With
`--notify TYPE/NAME`, a notification or webhook block of Prefect (`slack-webhook/alerts`, `webhook/alerts`) receives
the runs that fail or crash. The command may be repeated: automations of the same names are updated.
"""

import argparse
import sys
from datetime import timedelta

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.actions import CallWebhook, ChangeFlowRunState, SendNotification
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture, ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.states import StateType

from alpro.stages import STAGES

HEARTBEAT = "prefect.flow-run.heartbeat"  # every 180 s, unless PREFECT_FLOWS_HEARTBEAT_FREQUENCY is set for the workers
SILENCE = 600  # seconds
LINE = "{{ flow_run.name }}: {{ flow_run.state.name }}: {{ flow_run.state.message }}"
RUNS = ResourceSpecification.model_validate({"prefect.resource.id": "prefect.flow-run.*"})
FLOWS = ["alpro", *(stage.replace("_", "-") for stage in STAGES)]


def of_flows(names: list[str]) -> ResourceSpecification:
    return ResourceSpecification.model_validate({"prefect.resource.role": "flow", "prefect.resource.name": names})


def crash_silent_runs(seconds: int) -> AutomationCore:
    """Marks a run as crashed that has sent heartbeats and sends none for some time, at least 10 s."""
    trigger = EventTrigger(
        match=RUNS,
        match_related=of_flows([*FLOWS, "step"]),
        after={HEARTBEAT},
        expect={"prefect.flow-run.*"},  # any state, too: one that was scheduled again sends no heartbeats
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=seconds),
    )
    message = f"no heartbeat for {seconds} s: its process or machine is gone; start the run again to continue"
    return AutomationCore(
        name="alpro: runs without heartbeats",
        description="Marks runs as crashed whose process or machine is gone.",
        trigger=trigger,
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=message)],
    )


def notify_of_failures(client: SyncPrefectClient, block: str) -> AutomationCore:
    """Sends the name, state and message of a run that failed or crashed to a block, named as `type/name`.

    Raises ObjectNotFound if there is no such block.
    """
    kind, _, name = block.partition("/")
    identity = client.read_block_document_by_name(name, kind).id
    action = (
        CallWebhook(block_document_id=identity, payload=LINE)
        if kind == "webhook"
        else SendNotification(block_document_id=identity, subject="alpro: a run failed", body=LINE)
    )
    return AutomationCore(
        name="alpro: failed runs",
        description=f"Reports runs that failed or crashed to {block}.",
        trigger=EventTrigger(
            match=RUNS,
            match_related=of_flows(FLOWS),  # a step that fails, fails its pipeline
            expect={"prefect.flow-run.Failed", "prefect.flow-run.Crashed"},
            posture=Posture.Reactive,
            threshold=1,
        ),
        actions=[action],
    )


def install(client: SyncPrefectClient, automation: AutomationCore) -> None:
    """Creates an automation, or updates the one of the same name."""
    existing = client.read_automations_by_name(automation.name)
    if existing:
        client.update_automation(existing[0].id, automation)
    else:
        client.create_automation(automation)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m alpro.pipeline.servers.automations", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--notify", metavar="TYPE/NAME", default="", help="a notification or webhook block of Prefect")
    parser.add_argument("--silence", type=int, default=SILENCE, help="seconds without heartbeats (default: 600)")
    options = parser.parse_args(arguments)
    with get_client(sync_client=True) as client:
        wanted = [crash_silent_runs(options.silence)]
        if options.notify:
            try:
                wanted.append(notify_of_failures(client, options.notify))
            except ObjectNotFound:
                print(f"error: no block {options.notify}; create it on Prefect's page Blocks", file=sys.stderr)
                return 2
        for automation in wanted:
            install(client, automation)
            print(f"automation: {automation.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
