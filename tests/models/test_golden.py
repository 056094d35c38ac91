"""Numbers of a small model, recorded when the full-size model equalled the official code (tests/test_oracle.py).

In double precision, which also detects the epsilon of a norm. `python -m tests.models.test_golden` writes them
again; do so only for a change that the oracle test has verified.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from alpro.models import attention, text, timesformer
from alpro.models.alpro import Alpro, ModelConfig, crop
from tests.test_oracle import uniform, weight

FILE = Path(__file__).with_name("golden.npz")
SEED = 11
VIDEO = {"image_size": 16, "patch_size": 8, "frames": 3, "width": 16, "depth": 2, "heads": 2}
TEXT = {"vocab_size": 20, "width": 16, "depth": 4, "fusion_layer": 2, "heads": 2, "max_length": 16}
BOXES = torch.tensor([[0, 0, 1, 2], [1, 0, 1, 1]])


def generated(model: nn.Module) -> nn.Module:
    """The model in double precision with weights generated from their names."""
    own = {name: np.asarray(weight(name, tuple(w.shape), SEED)) for name, w in model.state_dict().items()}
    own["temperature"] = np.float64(0.07)
    model.load_state_dict({name: torch.from_numpy(np.asarray(value)) for name, value in own.items()})
    return model.double().eval()


@torch.no_grad()
def compute() -> dict[str, Tensor]:
    """All outputs of the model for two pairs."""
    shape = ModelConfig.model_validate({"video": VIDEO, "text": TEXT, "embed_dim": 8})
    model = generated(Alpro(shape, entities=5, answers=4))
    frames = torch.from_numpy(2 * uniform("video", (2, 3, 3, 16, 16), SEED)).double()
    ids = torch.tensor([[2, 7, 9, 11, 3, 0], [2, 5, 3, 0, 0, 0]])
    mask = (ids > 0).long()
    video, words = model.encode_video(frames), model.encode_text(ids, mask)
    fused = model.fuse(words, mask, video)
    inside = torch.tensor([[True, True, False, False], [False, False, True, False]])
    return {
        "video": video,
        "text": words[mask > 0],
        "video_features": model.project_video(video),
        "text_features": model.project_text(words),
        "fused": torch.cat([fused[:, :6][mask > 0], fused[:, 6:].flatten(0, 1)]),
        "match": model.match(words, mask, video),
        "words": model.mlm_scores(fused[:, :3]),
        "entities": model.pem_logits(fused[:, 7:], inside),
        "answers": model.answer(words, mask, video),
        "crop": model.encode_video(crop(frames, BOXES, 8, torch.full((3, 1, 1), -1.5).double()), cls_only=True),
    }


def differences() -> dict[str, float]:
    with np.load(FILE) as file:
        golden = dict(file)
    computed = compute()
    assert computed.keys() == golden.keys()
    return {name: float(np.abs(value.numpy() - golden[name]).max()) for name, value in computed.items()}


def test_a_small_model_computes_the_recorded_numbers():
    assert {name: value for name, value in differences().items() if not value < 1e-9} == {}


def norm_with_another_eps(self: nn.LayerNorm, x: Tensor) -> Tensor:
    return nn.functional.layer_norm(x, self.normalized_shape, self.weight, self.bias, 1e-5)


CHANGES = {
    "another GELU": lambda patch: patch.setattr(
        attention.F, "gelu", lambda x, gelu=nn.functional.gelu: gelu(x, approximate="tanh")
    ),
    "the epsilon of a norm": lambda patch: patch.setattr(nn.LayerNorm, "forward", norm_with_another_eps),
    "no norm before the MLP of a video block": lambda patch: patch.setattr(
        timesformer.Block, "__init__", without(timesformer.Block.__init__, "norm2")
    ),
    "pre-norm text layers": lambda patch: patch.setattr(text.Layer, "forward", pre_norm),
}


def without(init, norm: str):
    def call(self, *args):
        init(self, *args)
        getattr(self, norm).forward = lambda x: x

    return call


def pre_norm(self, x, mask, positions=None):
    queries = None if positions is None else x.gather(1, positions[..., None].expand(-1, -1, x.shape[-1]))
    x = (x if queries is None else queries) + self.attention(self.norm1(x), mask, queries)
    return x + self.mlp(self.norm2(x))


@pytest.mark.parametrize("change", CHANGES)
def test_a_small_change_of_the_model_is_detected(change, monkeypatch):
    CHANGES[change](monkeypatch)
    assert max(differences().values()) > 1e-7


if __name__ == "__main__":
    np.savez_compressed(FILE, **{name: value.numpy() for name, value in compute().items()})
