"""What a training and its validation compute, in FLOPs, from the sizes of the model: 2 for each
weight and token in a forward pass, 6 in a step; attention itself is left out, a few percent at
these lengths."""

from dataclasses import dataclass

from torch import nn

from alpro.models.alpro import Alpro

WORTH_A_LINE = 0.2  # share of the training from which validation is announced
EXPENSIVE = 1e16  # FLOPs of an evaluation that are announced: about a minute of an H100


def matrix_weights(module: nn.Module) -> int:
    """The number of weights in matrices."""
    return sum(weight.numel() for weight in module.parameters() if weight.ndim > 1)


@dataclass(frozen=True)
class MatchingCost:
    """FLOPs of fine-tuning for retrieval: of an example's step, and of the matching of a pair."""

    example: float
    pair: float

    @classmethod
    def of(cls, model: Alpro, text_tokens: int) -> "MatchingCost":
        video = model.config.video
        patches = video.grid**2
        pair = 2.0 * matrix_weights(model.multimodal_encoder) * (patches + 1 + text_tokens)
        frames = 2.0 * matrix_weights(model.video_encoder.blocks) * video.frames * patches
        text = 2.0 * matrix_weights(model.text_encoder.layers) * text_tokens

        # 3 passes: a backward pass computes twice what the forward pass does. Each example is fused
        # as a pair, and with a hard negative of either kind.
        return cls(example=3 * (frames + text + 3 * pair), pair=pair)

    def warning(self, examples: int, pairs: int, times: int) -> str:
        """A line on what `times` validations of `pairs` pairs cost beside the training; "" if it is
        little.

        examples: of all steps of the training.
        """
        training = examples * self.example
        validation = times * pairs * self.pair
        if validation <= WORTH_A_LINE * training:
            return ""
        return (
            f"validation computes {validation / 1e15:.3g} PFLOP in {times} x {pairs} pairs, "
            f"{validation / training:.1f} times the training's {training / 1e15:.3g}; fewer: "
            "validation.videos=500, validation.top_k=128, validation.times"
        )

    def evaluation_warning(self, texts: int, videos: int) -> str:
        """A line on what the matching of all pairs of an evaluation costs; "" if it is little."""
        flops = texts * videos * self.pair
        if flops < EXPENSIVE:
            return ""
        return (
            f"matching computes {flops / 1e15:.3g} PFLOP in {texts} x {videos} pairs; fewer: "
            "evaluate.top_k=128 (only the most similar ones of each query)"
        )
