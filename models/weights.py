"""Read, convert and check weights of this project, the authors' code, timm and transformers.

Weights may come from a stranger. What protects against them is here, with the bounds of sizes in
`VideoConfig`, `TextConfig` and `ModelConfig`: a file runs no code, a model takes no memory before
its shapes were compared with the file, and every weight is a finite number.
"""

import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from alpro.errors import one_line

StateDict = dict[str, Tensor]
# Regular expressions and their replacements, in order. A name that becomes empty has no use here.
Names = tuple[tuple[str, str], ...]

SUFFIXES = (".pt", ".pth", ".bin", ".safetensors")
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that exists is loaded
# Keys under which training scripts save the state dict, beside the state of the optimizer.
NESTED = ("model", "state_dict", "model_state_dict")

# The three projections of an attention are called q, k and v here; `convert` joins them.
BERT: Names = (
    # The MLM decoder is tied to the word embeddings and to `predictions.bias`.
    (r"^text_encoder\.cls\.predictions\.decoder\..*|.*\.position_ids$", ""),
    (r"\.LayerNorm\.gamma$", ".LayerNorm.weight"),  # files of 2018
    (r"\.LayerNorm\.beta$", ".LayerNorm.bias"),
    (r"^text_encoder\.(?:bert\.)?encoder\.layer\.", "text_encoder.layers."),
    (r"^text_encoder\.bert\.", "text_encoder."),
    (r"\.attention\.self\.(q|k|v)\w+\.", r".attention.\1."),
    (r"\.attention\.output\.dense\.", ".attention.proj."),
    (r"\.attention\.output\.LayerNorm\.", ".norm1."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.output\.LayerNorm\.", ".norm2."),
    (r"^text_encoder\.cls\.predictions\.transform\.", "mlm_head."),
    (r"^text_encoder\.cls\.predictions\.bias$", "mlm_head.bias"),
    (r"\.LayerNorm\.", ".norm."),
)
TIMM: Names = (
    (r"^(head|fc_norm)\..*", ""),
    (r"^patch_embed\.proj\.", "patch_embed."),
    (r"^norm_pre\.", "pre_norm."),
)
# The vision tower of a CLIP of transformers.
CLIP: Names = (
    (r".*\.position_ids$", ""),
    (r"^embeddings\.class_embedding$", "cls_token"),
    (r"^embeddings\.position_embedding\.weight$", "pos_embed"),
    (r"^embeddings\.patch_embedding\.", "patch_embed."),
    (r"^pre_layrnorm\.", "pre_norm."),
    (r"^post_layernorm\.", "norm."),
    (r"^encoder\.layers\.", "blocks."),
    (r"\.layer_norm(\d)\.", r".norm\1."),
    (r"\.self_attn\.out_proj\.", ".attn.proj."),
    (r"\.self_attn\.(q|k|v)_proj\.", r".attn.\1."),
)
# The authors' code: 12 layers of a BERT are the text encoder and the multimodal encoder.
OFFICIAL: Names = (
    (r"^visual_encoder\.model\.head\..*", ""),
    (r"^visual_encoder\.model\.patch_embed\.proj\.", "video_encoder.patch_embed."),
    (r"^visual_encoder\.model\.", "video_encoder."),
    (r"^vision_proj\.", "video_proj."),
    (r"^temp$", "temperature"),
    (r"^itm_head\.", "vtm_head."),
    (r"^mpm_head\.", "pem_head."),
    (r"^(video|image)_prompt_feat$", r"prompts.\1"),
    (r".*prompt_feat$", ""),
    (r"^prompter\..*", ""),  # a model of its own
    (r"^classifier\.", "qa_head."),
    *BERT,
)


def find_weights(folder: Path | str) -> Path:
    """Return the file of weights in a folder of transformers, which may be missing."""
    files = [Path(folder, name) for name in WEIGHTS]
    return next((file for file in files if file.is_file()), files[0])


def read_weights(file: Path) -> StateDict:
    """Read the state dict in a .pt, .pth, .bin or .safetensors file.

    Only tensors and plain values are unpickled. Training state and the prefix `module.` of DDP are
    left out.

    Raises:
        ValueError: One line, if the file contains code, is not readable or has no weights.
    """
    if not file.is_file():
        raise ValueError(f"{file}: no such file, or not a regular file")
    try:
        if file.suffix != ".safetensors":
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
        else:
            content = load_file(file)
    except pickle.UnpicklingError as error:
        # The message of torch advises to run the code.
        raise ValueError(
            f"{file}: refused: no plain checkpoint, or it contains code; ask its author for the "
            "state dict only"
        ) from error
    except Exception as error:  # a truncated file: the libraries raise many types
        raise ValueError(
            f"{file}: not readable as weights: {one_line(error)}"
        ) from error

    content = content if isinstance(content, dict) else {}
    for key in NESTED:
        if isinstance(content.get(key), dict):
            content = content[key]

    weights = {
        str(key).removeprefix("module."): value
        for key, value in content.items()
        if isinstance(value, Tensor)
    }
    if not weights:
        raise ValueError(f"{file}: contains no weights")
    return weights


def convert(state: Mapping[str, Tensor], names: Names) -> StateDict:
    """Rename the weights of another project, and join its queries, keys and values.

    Args:
        state: Weights by the names of the other project.
        names: Table of its names. A name that no row matches stays as it is.
    """
    weights = {}
    for name, value in state.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        if name:
            weights[name] = value

    for query in [name for name in weights if ".q." in name]:
        parts = [query.replace(".q.", f".{letter}.") for letter in "qkv"]
        shapes = {weights[part].shape if part in weights else None for part in parts}
        # Parts that do not fit together stay, and are reported as unknown.
        if len(shapes) == 1:
            weights[query.replace(".q.", ".qkv.")] = torch.cat(
                [weights.pop(part) for part in parts]
            )
    return weights


def select_prefix(weights: Mapping[str, Tensor], prefix: str) -> StateDict:
    """Return the weights whose names begin with a prefix, without the prefix."""
    return {
        name.removeprefix(prefix): value
        for name, value in weights.items()
        if name.startswith(prefix)
    }


def split_bert(fusion_layer: int, depth: int) -> Names:
    """Return the names that move the layers of a BERT from `fusion_layer` on to the multimodal
    encoder, after the table BERT."""
    return tuple(
        (
            rf"^text_encoder\.layers\.{layer}\.",
            f"multimodal_encoder.layers.{layer - fusion_layer}.",
        )
        for layer in range(fusion_layer, depth)
    )


class _WithoutNormal(TorchFunctionMode):
    """Leave out `normal_`, which imports the compiler on the meta device (1 to 3 s)."""

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        if func is nn.init.normal_:
            return kwargs["tensor"]
        return func(*args, **(kwargs or {}))


@contextmanager
def meta_device() -> Iterator[None]:
    """Build models without memory and without random numbers; `load_weights` gives them both."""
    with torch.device("meta"), _WithoutNormal():
        yield


def load_weights(
    model: nn.Module, weights: StateDict, source: object, remedy: str = ""
) -> None:
    """Load all weights of a model. One on the meta device takes the tensors themselves.

    Args:
        source: Where the weights come from, for messages.
        remedy: What the user can do if they are weights of another model.

    Raises:
        ValueError: One line, if weights are missing, unknown, of another shape or dtype, or not
            finite.
    """
    check_finite(weights, source)
    try:
        model.load_state_dict(
            weights, assign=any(weight.is_meta for weight in model.parameters())
        )
    except RuntimeError as error:
        # torch lists all problems, in lines with lists of names. The first is enough.
        problem = re.split(r'(?m):\n\t|, "|\. ?$', str(error))[1]
        raise ValueError(f"{source}: {problem}{remedy}") from error


def check_finite(weights: Mapping[str, Tensor], source: object) -> None:
    """Raise ValueError if a weight has no floating-point dtype, or is not a finite number."""
    for name, value in weights.items():
        # `load_state_dict` would convert integers silently.
        if not value.is_floating_point() or not is_finite(value):
            raise ValueError(
                f"{source}: {name} ({value.dtype}) has weights that are not finite floating-point "
                "numbers; delete it, or train it again"
            )


def is_finite(value: Tensor) -> bool:
    """Return True if a tensor has no NaN and no infinity."""
    # NaN is both extremes. For 200 million weights, this takes 0.03 s, and `isfinite` 0.4 s and a
    # tensor of their number.
    extremes = value.float().aminmax() if value.numel() else ()
    return all(extreme.isfinite() for extreme in extremes)


def check_values(source: str, config: BaseModel, values: Mapping[str, Any]) -> None:
    """Raise ValueError if a configuration has another value of a key that no shape may show."""
    for key, value in values.items():
        configured = getattr(config, key)
        if configured != value:
            raise ValueError(f"{source}.{key} is {configured}; set it to {value}")
