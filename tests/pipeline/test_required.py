"""Which steps have to run."""

from types import SimpleNamespace

import pytest

from alpro.pipeline.plan.step import required


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
