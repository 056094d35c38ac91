"""In which order, and in which process of `-n`, tests run."""

from typing import Any

import pytest

# Files with the tests that take longest start early, so that no process waits for them at the end:
# first of all Prefect's server with a run of the whole pipeline.
PIPELINE = ("flow", "stops", "cli", "tracking", "model_commands")
HEAVY = [f"tests/pipeline/test_{name}.py" for name in PIPELINE]
HEAVY += [
    "tests/stages/training/test_resume.py",
    "tests/stages/training/test_failures.py",
    "tests/inference/test_index_videos.py",
    "tests/shards/test_decoding_formats.py",
    "tests/test_whole_runs.py",
    "tests/test_pool.py",
    "tests/test_paper_configurations.py",
    "tests/test_layering.py",
]
# The trials with which the three processes of `make test-long` begin: none waits for them at the end.
LONGEST = [
    "test_the_sample_reaches_its_scores_and_answers_the_examples",
    "test_a_day_of_deployments_through_two_pools",
    "test_the_night_after_each_end_of_alpro_up_trains",
]
# Files that share what takes long to start: Prefect's server and the run of the pipeline, and the
# parent of ranks.
TOGETHER = {
    "tests/pipeline/test_flow.py": "prefect",
    "tests/pipeline/test_flow_steps.py": "prefect",
    "tests/pipeline/test_deployments.py": "prefect",
    "tests/pipeline/test_servers.py": "prefect",
    "tests/pipeline/test_stops.py": "ranks",
    "tests/stages/evaluation/test_several_processes.py": "ranks",
    "tests/stages/training/test_objective.py": "ranks",
    "tests/stages/training/test_ranks.py": "ranks",
}


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
    """`--dist loadfile`, where one process has the files that share what takes long to start."""
    if config.getvalue("dist") != "loadfile":
        return None

    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = super()._split_scope(nodeid)
            return TOGETHER.get(file, file)

    return Scheduling(config, log)
