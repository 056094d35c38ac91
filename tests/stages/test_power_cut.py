"""After a power failure at any file operation, the same command gives the same bytes as without
one."""

from types import SimpleNamespace

import pytest
import torch

from alpro.inference import index as index_module
from alpro.inference.index import About, Index
from alpro.inference.index_videos import add_videos
from alpro.pipeline.store.artifacts import Step
from alpro.stages.decode_videos import Config
from tests.conftest import decode_data
from tests.power_cut import cut_everywhere
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
        "decode_videos", "decode_videos", Config(size=16, samples_per_shard=3, max_reject_share=1)
    )
    make = lambda _, out: decode_data(step.config, source, out, resources)  # noqa: E731
    assert power_cuts(step, make, every) > 50


def batches(sources, *arguments, **options):
    """Embeddings of the sources, without decoding them."""
    for source in sources:
        videos = SimpleNamespace(
            features=torch.tensor([[len(source.id), ord(source.id[-1])]]).float()
        )
        yield SimpleNamespace(
            sources={0: source}, decoded=[0], errors={}, videos=videos, durations=[2.0]
        )


@pytest.mark.parametrize("every", EVERY)
def test_indexing(tmp_path, monkeypatch, every, record_property):
    monkeypatch.setattr(index_module, "MAX_PARTS", 2)  # they are merged at the end
    empty = dict.fromkeys(index_module.ITEMS.names)
    items = [
        empty | {"id": f"v{n}", "path": str(tmp_path / f"{n}.mp4"), "kind": "video"}
        for n in range(7)
    ]
    folder = tmp_path / "disk" / "index"

    def job() -> None:
        model = SimpleNamespace(batches=batches, device=torch.device("cpu"))
        add_videos(folder, model, About(model="m", digest="d"), list(items))

    def result() -> dict:
        index = Index.open(folder)
        return {index.item(n)["id"]: index.embeddings[n].tobytes() for n in range(len(index))}

    counts = cut_everywhere(tmp_path / "disk", job, result, monkeypatch, every)
    record_property("index", counts)
    assert counts["operations"] > 30
