"""What tests of flows share: Prefect's server for tests, and one small pipeline that ran from end to end."""

import os

os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")  # before Prefect is imported
os.environ.setdefault("PREFECT_SERVER_LOGGING_LEVEL", "CRITICAL")

from collections.abc import Iterator
from pathlib import Path

import pytest

TINY = str(Path(__file__).parents[1] / "tiny.toml")


@pytest.fixture(scope="session")
def prefect() -> Iterator[None]:
    from prefect.testing.utilities import prefect_test_harness

    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture(scope="session")
def workspace(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("workspace")


@pytest.fixture(scope="session")
def first(workspace, prefect) -> dict[str, str]:
    """The artifacts of a first run of the tiny pipeline, by stage."""
    from alpro.pipeline.flow import alpro

    return alpro(TINY, workspace=str(workspace))
