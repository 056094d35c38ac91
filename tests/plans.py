"""Configurations and plans of commands."""

from pathlib import Path

from alpro.pipeline.config.command import DATA, Command, text_change
from alpro.pipeline.config.load import read_settings
from alpro.pipeline.config.pipeline_config import PipelineConfig
from alpro.pipeline.plan.digests import Digests, digest_manifest
from alpro.pipeline.plan.plan import Plan, make_plan
from alpro.shards.sources.manifest import import_source
from alpro.shards.storage import Location


def command(
    config: str | Path, *changes: str, data: str | Path = "", stage: str = ""
) -> Command:
    own_data = [text_change(DATA, str(data))] if data else []
    return Command(str(config), (*own_data, *changes), stage)


def configure(
    config: str | Path, *changes: str, data: str | Path = ""
) -> PipelineConfig:
    """The configuration of a command, as it runs on this machine."""
    return read_settings(command(config, *changes, data=data))


def plan_of(
    config: str | Path,
    *changes: str,
    workspace: Path,
    data: str | Path = "",
    stage: str = "",
) -> Plan:
    """The plan of a command."""
    workspace.mkdir(parents=True, exist_ok=True)
    return make_plan(command(config, *changes, data=data, stage=stage), workspace)


def digest_data(source: Location, digests: Digests) -> str:
    """The digest of the user's data: of its rows and of the contents of its files."""
    return digest_manifest(
        import_source(source, digests.path.with_name("manifests")), digests
    )
