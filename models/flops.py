"""Floating-point operations of a forward pass, for model FLOPs utilization (MFU).

A linear layer from I to O channels takes 2 * I * O per token; attention of Q tokens to S takes 4 * Q * S * D (scores
and weighted values). With width D, MLP ratio r, T frames and N patches per frame:

- video encoder, per clip: T*N * 2*3*patch^2*D for the patches; per block: T*N * (10*D^2 + 4*T*D) over time,
  T*(N+1) * (8*D^2 + 4*(N+1)*D) over space, (T*N+1) * 4*r*D^2 for the MLP;
  with [CLS] as the only output, the last block takes 4*D^2 + 4*(N+1)*D less per patch over space and no patch MLP;
- a text or fusion layer over S tokens: S * (8*D^2 + 4*r*D^2 + 4*S*D); with P outputs:
  S * 4*D^2 + P * (4*D^2 + 4*r*D^2 + 4*S*D).

Norms, activations, embeddings and softmax are not counted, as is usual. A trained module counts three times (forward
once, backward twice; the missing gradient with respect to the pixels is under 0.3 % at full size). Recomputation by
activation checkpointing does not count.
"""

from alpro.models.text import TextConfig
from alpro.models.timesformer import VideoConfig

# Peak dense bfloat16 FLOP/s by a substring of the device name (vendor data sheets).
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10G": 70e12, "V100": 125e12}


def peak(device: str) -> float:
    """Peak dense bfloat16 FLOP/s of an accelerator by its name; 0 if it is unknown.

    >>> peak("NVIDIA H200")
    989000000000000.0
    """
    return next((value for name, value in PEAKS.items() if name in device), 0.0)


def video_flops(config: VideoConfig, cls_only: bool = False) -> float:
    """Video encoder, per clip; `cls_only`: the last block outputs [CLS] only."""
    t, n, d = config.frames, config.grid**2, config.width
    time = t * n * (10 * d * d + 4 * t * d)
    space = t * (n + 1) * (8 * d * d + 4 * (n + 1) * d)
    mlp = (t * n + 1) * 4 * config.mlp_ratio * d * d
    total = t * n * 6 * config.patch_size**2 * d + config.depth * (time + space + mlp)
    saved = t * n * (4 * d * d + 4 * (n + 1) * d) + t * n * 4 * config.mlp_ratio * d * d
    return total - cls_only * saved


def layer_flops(config: TextConfig, tokens: int, outputs: int | None = None) -> float:
    """One text or fusion layer over `tokens` tokens with `outputs` output tokens (None: all)."""
    d = config.width
    out = tokens if outputs is None else outputs
    return tokens * 4 * d * d + out * (4 * d * d + 4 * config.mlp_ratio * d * d + 4 * tokens * d)


def text_flops(config: TextConfig, tokens: int) -> float:
    """Text encoder, per text."""
    return config.fusion_layer * layer_flops(config, tokens)


def fusion_flops(config: TextConfig, tokens: int, outputs: int) -> float:
    """Multimodal encoder over `tokens` text and video tokens with `outputs` output tokens."""
    layers = config.depth - config.fusion_layer
    return (layers - 1) * layer_flops(config, tokens) + layer_flops(config, tokens, outputs)


def classifier_flops(width: int, outputs: int) -> float:
    """PEM or question-answering head, per sample."""
    return 4 * width * width + 4 * width * outputs


def mlm_flops(config: TextConfig) -> float:
    """MLM head, per position."""
    return 2 * config.width * config.width + 2 * config.width * config.vocab_size
