"""Numbers of a small model, recorded when the full-size model equalled the official code
(tests/test_oracle.py).

In double precision, which also detects the epsilon of a norm. `python -m tests.models.test_golden`
writes them again; do so only for a change that the oracle test has verified.
"""

from pathlib import Path

import numpy as np
import torch

from alpro.models.alpro import Alpro, ModelConfig, crop
from tests.test_oracle import uniform, weight

FILE = Path(__file__).with_name("golden.npz")
SEED = 11
VIDEO = {
    "image_size": 16,
    "patch_size": 8,
    "frames": 3,
    "width": 16,
    "depth": 2,
    "heads": 2,
}
TEXT = {
    "vocab_size": 20,
    "width": 16,
    "depth": 4,
    "fusion_layer": 2,
    "heads": 2,
    "max_length": 16,
}
BOXES = torch.tensor([[0, 0, 2, 1], [0, 1, 1, 1]])


def generated(model):
    """The model in double precision with weights generated from their names."""
    state = {}
    for name, parameter in model.state_dict().items():
        values = weight(name, tuple(parameter.shape), SEED)
        state[name] = torch.from_numpy(np.asarray(values))
    state["temperature"] = torch.tensor(0.07, dtype=torch.double)
    model.load_state_dict(state)
    return model.double().eval()


@torch.no_grad()
def compute():
    """All outputs of the model for two pairs."""
    shape = ModelConfig.model_validate({"video": VIDEO, "text": TEXT, "embed_dim": 8})
    model = generated(Alpro(shape, entities=5, answers=4))
    frames = torch.from_numpy(2 * uniform("video", (2, 3, 3, 16, 16), SEED)).double()
    ids = torch.tensor([[2, 7, 9, 11, 3, 0], [2, 5, 3, 0, 0, 0]])
    mask = (ids > 0).long()
    video = model.encode_video(frames)
    words = model.encode_text(ids, mask)
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
        "crop": model.encode_video(
            crop(frames, BOXES, 8, torch.full((3, 1, 1), -1.5).double()), cls_only=True
        ),
    }


def test_a_small_model_computes_the_recorded_numbers():
    with np.load(FILE) as file:
        golden = dict(file)
    computed = compute()
    assert computed.keys() == golden.keys()
    for name, value in computed.items():
        assert np.abs(value.numpy() - golden[name]).max() < 1e-9, name


if __name__ == "__main__":
    np.savez_compressed(
        FILE, **{name: value.numpy() for name, value in compute().items()}
    )
