"""Which steps have to run, and which record stands for videos that are not on this machine."""

from types import SimpleNamespace

import pytest

from alpro.pipeline.flows.schedule import Schedule
from alpro.pipeline.plan.steps import recorded, required


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
    store = SimpleNamespace(find=lambda s: s.fingerprint in exist, is_shared=lambda s: False)
    assert "".join(s.fingerprint for s in required([a, b, c, step("d", c)], store)) == expected
    shared = SimpleNamespace(find=lambda s: False, is_shared=lambda s: s.fingerprint in exist)
    assert "".join(s.fingerprint for s in required([a, b, c, step("d", c)], shared)) == expected


def test_the_newest_record_of_the_same_videos_is_taken():
    same = {"name": "n", "stage_version": 1, "config": {"size": 8}, "source": "x", "paths": {}}
    records = [same | {"run": {"at": at}} for at in ("2026-01-01", "2026-03-01", "2026-02-01")]
    records.append(same | {"source": "y", "run": {"at": "2026-09-01"}})
    store = SimpleNamespace(records=lambda stage: records)
    asked = SimpleNamespace(description=same, source="x", stage="decode_videos")
    assert recorded(asked, store)["run"]["at"] == "2026-03-01"


@pytest.mark.parametrize(
    ("running", "stage", "fits"),
    [
        ([], "pretrain", True),
        (["pretrain"], "train_prompter", False),  # one model at a time
        (["decode_videos"], "pretrain", True),
        (["pretrain"], "decode_videos", True),
        (["pretrain", "decode_videos"], "decode_videos", False),
    ],
)
def test_stages_with_a_model_run_one_at_a_time_and_all_within_their_number(running, stage, fits):
    resources = SimpleNamespace(max_model_stages=1, max_stages=2)
    schedule = SimpleNamespace(
        session=SimpleNamespace(passed=None, resources=resources),
        running={number: SimpleNamespace(stage=name) for number, name in enumerate(running)},
    )
    assert Schedule.fits(schedule, SimpleNamespace(stage=stage)) is fits
