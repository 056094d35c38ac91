"""PyTorch modules, losses and weights of ALPRO. This package depends on tensors and weight files
only, not on stages.

A CUDA build of torchvision next to a CPU build of torch fails at import because two operators are
missing, and timm and transformers import torchvision. Declaring the missing operators makes the
imports work; this project never calls them.
"""

import torch

_torchvision = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _name):
        _torchvision.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
