"""How many floating-point operations a pass takes: what utilisation is measured by.

A linear layer from I to O channels takes 2 * I * O a token; attention of Q tokens to S takes 4 * Q * S * D (scores and
weighted values). With D the width, r the MLP ratio, T frames and N patches a frame:

- video encoder, a clip: T*N * 2*3*patch^2*D for the patches; a block: T*N * (10*D^2 + 4*T*D) over time,
  T*(N+1) * (8*D^2 + 4*(N+1)*D) over space, (T*N+1) * 4*r*D^2 for the MLP;
  where only [CLS] is read, the last block has 4*D^2 + 4*(N+1)*D a patch less over space and no MLP of patches;
- a text or fusion layer over S tokens: S * (8*D^2 + 4*r*D^2 + 4*S*D); where only P of them are read:
  S * 4*D^2 + P * (4*D^2 + 4*r*D^2 + 4*S*D).

Norms, activations, embeddings and softmax are left out, as is usual. A trained part counts three times (forward once,
backward twice, though nothing goes back from the patches to the pixels: under 0.3 % at full size); what activation
checkpointing computes again does not count.
"""

from alpro.models.text import TextConfig
from alpro.models.timesformer import VideoConfig

# Dense bfloat16 operations a second of one accelerator, by a part of its name (the vendors' data sheets).
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10G": 70e12, "V100": 125e12}


def peak(device: str) -> float:
    """Dense bfloat16 operations a second of an accelerator by its name; 0 where it is not known.

    >>> peak("NVIDIA H200")
    989000000000000.0
    """
    return next((value for name, value in PEAKS.items() if name in device), 0.0)


def video_flops(config: VideoConfig, cls_only: bool = False) -> float:
    """Forward through the video encoder, a clip; `cls_only`: [CLS] alone is read of its last block."""
    t, n, d = config.frames, config.grid**2, config.width
    time = t * n * (10 * d * d + 4 * t * d)
    space = t * (n + 1) * (8 * d * d + 4 * (n + 1) * d)
    mlp = (t * n + 1) * 4 * config.mlp_ratio * d * d
    whole = t * n * 6 * config.patch_size**2 * d + config.depth * (time + space + mlp)
    unread = t * n * (4 * d * d + 4 * (n + 1) * d) + t * n * 4 * config.mlp_ratio * d * d
    return whole - cls_only * unread


def layer_flops(config: TextConfig, tokens: int, read: int | None = None) -> float:
    """Forward through one text or fusion layer over `tokens`, of which the positions `read` come out (None: all)."""
    d = config.width
    out = tokens if read is None else read
    return tokens * 4 * d * d + out * (4 * d * d + 4 * config.mlp_ratio * d * d + 4 * tokens * d)


def text_flops(config: TextConfig, tokens: int) -> float:
    """Forward through the text encoder, a text."""
    return config.fusion_layer * layer_flops(config, tokens)


def fusion_flops(config: TextConfig, tokens: int, read: int) -> float:
    """Forward through the multimodal encoder over `tokens` of text and video, of which `read` are read."""
    layers = config.depth - config.fusion_layer
    return (layers - 1) * layer_flops(config, tokens) + layer_flops(config, tokens, read)


def classifier_flops(width: int, outputs: int) -> float:
    """Forward through the head of PEM or of question answering, a sample."""
    return 4 * width * width + 4 * width * outputs


def mlm_flops(config: TextConfig) -> float:
    """Forward through the MLM head, a position."""
    return 2 * config.width * config.width + 2 * config.width * config.vocab_size
