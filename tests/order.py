"""In which order, and in which process of `-n`, tests run."""

from typing import Any

import pytest

# Files with the tests that take longest start early, so that no process waits for them at the end:
# first of all Prefect's server with a run of the whole pipeline.
PIPELINE = ("flow", "stops", "cli", "tracking", "model_commands")
HEAVY = ["tests/test_whole_runs.py"]
HEAVY += [f"tests/pipeline/test_{name}.py" for name in PIPELINE]
HEAVY += [
    "tests/stages/evaluation/test_several_processes.py",
    "tests/stages/training/test_dataset.py",
    "tests/stages/training/test_ranks.py",
    "tests/shards/test_decoding_formats.py",
    "tests/shards/test_reader.py",
    "tests/test_pool.py",
    "tests/test_paper_configurations.py",
    "tests/test_oracle.py",
    "tests/test_examples.py",
    "tests/test_layering.py",
]
# The trials with which the three processes of `make test-long` begin: none waits for them at the end.
LONGEST = [
    "test_the_sample_reaches_its_scores_and_answers_the_examples",
    "test_a_day_of_deployments_through_two_pools",
    "test_the_night_after_each_end_of_alpro_up_trains",
]
WITH_PREFECT = [
    f"tests/pipeline/test_{name}.py"
    for name in ("flow", "flow_steps", "deployments", "servers")
]
WITH_RANKS = [
    "tests/pipeline/test_stops.py",
    "tests/stages/evaluation/test_several_processes.py",
    "tests/stages/training/test_objective.py",
    "tests/stages/training/test_ranks.py",
]


@pytest.hookimpl(trylast=True)  # after those that -m leaves out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def place(item: pytest.Item) -> int:
        file = item.nodeid.split("::")[0]
        return HEAVY.index(file) if file in HEAVY else len(HEAVY)

    items.sort(key=place)

    # At the start of each third, which `--dist worksteal` gives to a process.
    trials = [item for item in items if item.name in LONGEST]
    for item in trials:
        items.remove(item)
    count = len(items) + len(trials)
    for number, item in enumerate(trials):
        items.insert(number * count // len(trials), item)


@pytest.hookimpl(optionalhook=True)  # without pytest-xdist, nothing calls it
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadfile`, where one process has all files that need Prefect's server and the run of
    the pipeline, and one those that start ranks, instead of each making its own."""
    if config.getvalue("dist") != "loadfile":
        return None

    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            if file in WITH_RANKS:
                return "ranks"
            return "prefect" if file in WITH_PREFECT else file

    return Scheduling(config, log)
