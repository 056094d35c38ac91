"""PyTorch modules, losses and weights of ALPRO.

timm and transformers import torchvision. A CUDA build of it beside a CPU build of torch cannot load
its library, and fails at import without two operators. They are declared here, and never called.
"""

from importlib.util import find_spec
from pathlib import Path

import torch

_torchvision = torch.library.Library("torchvision", "FRAGMENT")
_package = find_spec("torchvision")
for _path in Path(str(_package.origin)).parent.glob("_C*.so") if _package else ():
    try:
        torch.ops.load_library(_path)
    except OSError:
        for _name in ("nms", "qnms"):
            _torchvision.define(
                f"{_name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
