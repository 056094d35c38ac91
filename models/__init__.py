"""PyTorch modules, losses and weights of ALPRO.

timm and transformers import torchvision. A CUDA build of it beside a CPU build of torch lacks two
operators, and fails at import. They are declared here, and never called.
"""

import torch

_torchvision = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _name):
        _torchvision.define(
            f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        )
