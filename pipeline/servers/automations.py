"""Prefect's automation for runs that nobody watches: `python -m alpro.pipeline.servers.automations`.

A run whose process and machine are gone sends no heartbeats: it is marked as crashed, and its slot is free again. The
command may be repeated: an automation of the same name is updated.
"""

import argparse
import sys
from datetime import timedelta

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture, ResourceSpecification
from prefect.states import StateType

from alpro.stages import STAGES

HEARTBEAT = "prefect.flow-run.heartbeat"  # every 180 s, unless PREFECT_FLOWS_HEARTBEAT_FREQUENCY is set for the workers
SILENCE = 600  # seconds
RUNS = ResourceSpecification.model_validate({"prefect.resource.id": "prefect.flow-run.*"})
FLOWS = ["alpro", "step", *(stage.replace("_", "-") for stage in STAGES)]


def crash_silent_runs(seconds: int) -> AutomationCore:
    """Marks a run as crashed that has sent heartbeats and sends none for some time, at least 10 s."""
    trigger = EventTrigger(
        match=RUNS,
        match_related=ResourceSpecification.model_validate(
            {"prefect.resource.role": "flow", "prefect.resource.name": FLOWS}
        ),
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
    parser.add_argument("--silence", type=int, default=SILENCE, help="seconds without heartbeats (default: 600)")
    options = parser.parse_args(arguments)
    with get_client(sync_client=True) as client:
        install(client, automation := crash_silent_runs(options.silence))
    print(f"automation: {automation.name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
