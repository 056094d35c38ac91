"""The roofline of a training step: kernels that are counted by hand."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from tests.stages.training.roofline import GPUS, Kernel, Kernels, attention_rows

SIDE = 1024
MATRIX = 2 * SIDE**2  # bytes in bfloat16


@pytest.mark.parametrize(
    ("compiled", "element_wise", "moved"),
    [
        (False, 3, 7 * MATRIX),  # two of them read one matrix, one reads two; each writes one
        (True, 1, 2 * MATRIX),  # reads the product, writes the last result
    ],
)
def test_kernels_of_a_product_and_what_follows(compiled, element_wise, moved):
    recorded = Kernels()
    with FakeTensorMode():
        x = torch.empty(SIDE, SIDE, dtype=torch.bfloat16)
        with recorded, recorded.compiled(compiled):
            y = x @ x
            y = y + y.sigmoid() * 2
    product, *others = recorded.kernels
    assert (product.bytes, product.flops) == (3 * MATRIX, 2 * SIDE**3)
    assert sum(kernel.count for kernel in others) == element_wise
    assert sum(kernel.bytes for kernel in others) == moved


def test_the_time_of_a_kernel_is_the_longest_of_bytes_flops_and_launch():
    gpu = GPUS["H100"]
    assert Kernel("element-wise", bytes=1.0).seconds(gpu) == 2.5e-6
    assert Kernel("element-wise", bytes=2.8e12).seconds(gpu) == pytest.approx(1.0)
    assert Kernel("bfloat16", bytes=1.0, flops=600e12).seconds(gpu) == pytest.approx(1.0)
    assert Kernel("float32", bytes=1.0, flops=50e12).seconds(gpu) == pytest.approx(1.0)


def test_packed_and_broadcast_attention_need_fewer_tiles():
    rows = {row["attention"]: row for row in attention_rows(1, 4, None, 0)}
    assert rows.keys() == {"alone", "products", "broadcast", "packed"}
    for variant in ("broadcast", "packed"):
        assert rows[variant]["H100 ms"] < rows["alone"]["H100 ms"]
        assert rows[variant]["H100 ms"] < rows["products"]["H100 ms"]
