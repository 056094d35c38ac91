"""After a power failure at any file operation, the same command gives the same bytes as without
one."""

import pytest

from alpro.stages.decode_videos import Config
from alpro.stages.execution.step import Step
from tests.conftest import decode_data
from tests.stages.conftest import write_manifest

EVERY = [pytest.param(47, id="some"), pytest.param(1, id="all", marks=pytest.mark.long)]


@pytest.mark.parametrize("every", EVERY)
def test_decoding(tmp_path, inline_pool, resources, power_cuts, every):
    rows = [
        {"id": f"v{n}", "captions": ["a wall"], "split": "train", "color": (n, 9, 9)}
        for n in range(5)
    ]
    source = write_manifest(tmp_path / "data", [*rows, {"id": "silent"}])
    step = Step(
        "decode_videos",
        "decode_videos",
        Config(size=16, samples_per_shard=3, max_reject_share=1),
    )
    make = lambda _, out: decode_data(step.config, source, out, resources)  # noqa: E731
    assert power_cuts(step, make, every) > 50
