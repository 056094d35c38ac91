"""Torch modules, losses and weights of ALPRO. Knows tensors only: no files but weights, no stages, no network.

torchvision's CUDA build beside a CPU torch fails at import for want of two operators, and timm and transformers
import torchvision. Declaring the two here, only where they are missing, lets both import; nothing in this
project calls them.
"""

import torch

_torchvision = torch.library.Library("torchvision", "FRAGMENT")
for _name in ("nms", "qnms"):
    if not hasattr(torch.ops.torchvision, _name):
        _torchvision.define(f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
