"""In which order, and in which process of `-n`, tests run."""

from typing import Any

import pytest

# Few tests take long. They start early, so that no process waits for them at the end: first of all
# Prefect's server with a run of the whole pipeline.
HEAVY = [f"tests/pipeline/test_{name}.py" for name in ("flow", "cli", "tracking", "model_commands")]
WITH_PREFECT = [f"tests/pipeline/test_{name}.py" for name in ("flow", "flow_steps", "deployments")]
HEAVY += [
    "tests/stages/corpora/test_rejects.py",
    "tests/stages/evaluation/test_several_processes.py",
]
HEAVY += ["tests/test_oracle.py", "tests/test_paper_configurations.py"]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        file = item.nodeid.split("::")[0]
        return HEAVY.index(file) if file in HEAVY else len(HEAVY)

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist, nothing calls it
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadfile`, where one process has all files that need Prefect's server and the run of
    the pipeline, instead of each making its own."""
    if config.getvalue("dist") != "loadfile":
        return None

    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return "prefect" if file in WITH_PREFECT else file

    return Scheduling(config, log)
