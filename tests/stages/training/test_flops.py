"""The floating-point operations that an objective says it takes, against PyTorch's own count of what it did."""

import pytest
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from alpro.models.flops import layer_flops, peak, video_flops
from alpro.models.text import TextConfig
from alpro.models.timesformer import VideoConfig

# The rows of the paper's table 1.
TABLE = {
    "mlm + vtm": {"vtc": 0.0, "pem": 0.0},
    "mlm + vtm + pem": {"vtc": 0.0},
    "mlm + vtm + vtc": {"pem": 0.0},
    "all": {},
}
STAGES = [("prompter", {}), ("retrieval", {}), ("qa", {}), *(("pretrain", weights) for weights in TABLE.values())]


@pytest.mark.parametrize(("name", "weights"), STAGES, ids=["prompter", "retrieval", "qa", *TABLE])
def test_operations_are_those_that_pytorch_counts(name, weights, small_objective, small_batch):
    objective = small_objective(name, **weights).train()
    # The fused kernel of a CPU is one operation that PyTorch's counter does not know; this one is its matrix products.
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        objective(small_batch)[0].backward()
    # A linear layer goes backward twice, to its input and to its weights; to the pixels nothing goes.
    video = objective.model.config.video
    pixels = len(small_batch.ids) * video.frames * video.grid**2 * 6 * video.patch_size**2 * video.width
    # What is left are projections and similarities, the VTM head and PEM's pooling: below a thousandth.
    assert counter.get_total_flops() / (objective.flops(small_batch) - pixels) == pytest.approx(1, abs=1e-3)


def test_the_pixels_matter_little_at_full_size():
    """What is counted for them and not done is two thousandths of the video encoder's work."""
    full = VideoConfig()
    patches = full.frames * full.grid**2 * 6 * full.patch_size**2 * full.width
    assert patches / (3 * video_flops(full)) < 3e-3


def test_operations_grow_with_the_batch_and_with_what_is_read(small_objective, small_batch):
    objective = small_objective("pretrain")
    half = small_batch.split(2)[0]
    assert objective.flops(small_batch) == 2 * objective.flops(half)
    small_batch.max_masked = 8
    assert objective.flops(small_batch) > 2 * objective.flops(half)
    small_batch.max_masked = 0  # not known: all are read
    eight = objective.flops(small_batch)
    small_batch.max_masked = small_batch.text.shape[1]
    assert objective.flops(small_batch) == eight


def test_a_layer_of_bert_base_by_hand():
    """768 channels, MLP of 3072, 30 tokens: 30 x (4 x 2 x 768^2 + 2 x 2 x 768 x 3072) and attention of 30 to 30."""
    by_hand = 30 * (8 * 768**2 + 4 * 768 * 3072) + 4 * 30 * 30 * 768
    assert layer_flops(TextConfig(), 30) == layer_flops(TextConfig(), 30, outputs=30) == by_hand


@pytest.mark.parametrize(("name", "known"), [("NVIDIA H200", 989e12), ("NVIDIA A100-SXM4-80GB", 312e12), ("abacus", 0)])
def test_the_peak_of_a_device_is_found_in_its_name(name, known):
    assert peak(name) == known


def test_the_peak_of_one_device_is_not_taken_for_anothers():
    """L4 is in the name of the L40S."""
    assert (peak("NVIDIA L40S"), peak("NVIDIA L4")) == (362e12, 121e12)
