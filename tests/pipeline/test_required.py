"""Which steps have to run."""

import os
from types import SimpleNamespace

import pytest

from alpro.pipeline.flows.schedule import Schedule
from alpro.pipeline.plan.steps import required
from alpro.progress import PLAIN


def step(name: str, *inputs: SimpleNamespace) -> SimpleNamespace:
    return SimpleNamespace(fingerprint=name, inputs={other.fingerprint: other for other in inputs})


@pytest.mark.parametrize(
    ("exist", "expected"),
    [
        ("", "abcd"),
        ("d", "d"),  # what it was computed from is not needed
        ("ad", "ad"),  # an artifact that exists is listed also where no step needs it
        ("c", "cd"),
        ("ac", "acd"),
        ("b", "abcd"),  # c needs a
    ],
)
def test_an_input_is_built_only_for_a_step_that_runs(exist, expected):
    a, b = step("a"), step("b")
    c = step("c", a, b)
    store = SimpleNamespace(find=lambda s: s.fingerprint in exist)
    assert "".join(s.fingerprint for s in required([a, b, c, step("d", c)], store)) == expected


@pytest.mark.parametrize(
    ("running", "waiting", "cached", "started"),
    [
        ([], ["pretrain", "zero_shot"], "", {"pretrain": 2, "zero_shot": 2}),  # of four cores
        ([], ["pretrain", "zero_shot"], "zero_shot", {"pretrain": 0, "zero_shot": 0}),  # 0: PyTorch decides
        (["pretrain"], ["zero_shot", "evaluate"], "", {"zero_shot": 2}),
        (["pretrain"], ["zero_shot", "evaluate"], "pretrain", {"zero_shot": 0}),
        (["decode_videos"], ["pretrain"], "", {"pretrain": 0}),
        (["decode_videos", "pretrain"], ["evaluate"], "", {}),
    ],
)
def test_models_side_by_side_share_the_cores(running, waiting, cached, started, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(4))
    monkeypatch.setenv(PLAIN, "")
    store = SimpleNamespace(find=lambda step: step.name == cached)
    session = SimpleNamespace(passed=None, resources=SimpleNamespace(max_stages=2), threads={}, store=store)
    schedule = object.__new__(Schedule)
    schedule.session, schedule.failures, seen = session, {}, []
    schedule.running = {number: SimpleNamespace(stage=name, name=name) for number, name in enumerate(running)}
    schedule.waiting = [SimpleNamespace(stage=name, name=name, inputs={}) for name in waiting]
    schedule.start = lambda one: seen.append(one.name)
    schedule.start_ready()
    assert os.environ[PLAIN] == str(int(len({*running, *seen} - {cached}) > 1))
    assert {name: session.threads.get(name, 0) for name in seen} == started
