"""A stage that is added as CONTRIBUTING.md says is planned; the plan needs nothing else.

tests/test_examples.py runs it.
"""

import sys
from types import ModuleType

from alpro import stages
from alpro.pipeline.config.pipeline_config import PipelineConfig
from alpro.pipeline.plan.digests import Digests
from alpro.pipeline.plan.plan import build_steps
from tests.conftest import ROOT
from tests.pipeline.conftest import TINY
from tests.plans import configure


def test_the_example_of_a_new_stage_is_planned(tmp_path, monkeypatch):
    code = (ROOT / "examples" / "own_stage.py").read_text()
    module = ModuleType("alpro.stages.count_words")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    exec(code, vars(module))
    monkeypatch.setitem(stages.STAGES, "count_words", "text")

    def with_counts(dag, pipeline, start):
        inputs = {"vocabulary": "build_vocabulary"}
        dag.add("count_words", pipeline.count_words, inputs)

    # The lines that the example's docstring adds to stages/dag.py.
    monkeypatch.setattr("alpro.stages.dag.add_evaluations", with_counts)

    class WithCounts(PipelineConfig):
        count_words: module.Config = module.Config()  # type: ignore[name-defined]

    config = WithCounts(**dict(configure(TINY)))
    steps = {
        step.name: step
        for step in build_steps(config, Digests(tmp_path / "digests.sqlite"))[1]
    }
    assert steps["count_words"].inputs == {"vocabulary": steps["build_vocabulary"]}
