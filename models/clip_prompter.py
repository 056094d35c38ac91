"""A CLIP or SigLIP of transformers as the prompter, frozen or fine-tuned (beyond the paper)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.functional import normalize

from alpro.models.alpro import TEMPERATURES, DualEncoder, ModelConfig
from alpro.models.attention import Attention, TransformerLayer, compute_layer, tile_mask
from alpro.models.precision import as_residual
from alpro.models.timesformer import VideoConfig
from alpro.models.weights import CLIP, convert, select_prefix

TEMPORAL = "temporal."  # prefix of weights that the model of transformers does not have


class TemporalAttention(TransformerLayer):
    """Attention over the frames of a clip, at each patch, before a layer of the vision tower.

    Together with the layer it is divided space-time attention. Its norm, queries, keys and values
    start as copies of the layer's, its output projection at zero, so the tower starts unchanged. The
    time embedding is inside this branch. For another number of frames, the nearest time is used.

    Args:
        layer: The layer of the tower.
        heads: Attention heads of the tower.
        frames: Frames of a clip.

    Shape:
        x: (B * T, N, D) of clips of T frames.
        output: Same as x.
    """

    def __init__(self, layer: Any, heads: int, frames: int):
        super().__init__()
        width = layer.self_attn.q_proj.in_features
        self.norm = nn.LayerNorm(width, eps=layer.layer_norm1.eps)
        self.attn = Attention(width, heads)
        self.time_embed = nn.Parameter(0.02 * torch.randn(frames, width))

        spatial = convert(layer.state_dict(prefix="layer."), CLIP)
        self.norm.load_state_dict(select_prefix(spatial, "layer.norm1."))
        self.attn.load_state_dict(select_prefix(spatial, "layer.attn."))
        nn.init.zeros_(self.attn.proj.weight)
        nn.init.zeros_(self.attn.proj.bias)

    def times(self, frames: int) -> Tensor:
        """Return the time embeddings (T, D) of a clip of `frames` frames."""
        index = torch.arange(frames, device=self.time_embed.device)
        nearest = index * len(self.time_embed) // frames
        return self.time_embed.index_select(0, nearest)

    def forward(self, x: Tensor, frames: int) -> Tensor:
        # A sequence of T frames for each patch.
        clips = self.norm(x).unflatten(0, (-1, frames))  # (B, T, N, D)
        y = clips.transpose(1, 2) + self.times(frames)  # (B, N, T, D)
        sequences = y.flatten(0, 1)
        mask = tile_mask(sequences, len(sequences), frames)
        update = self.attn(sequences, mask).view_as(y).transpose(1, 2)  # (B, T, N, D)
        return x + update.flatten(0, 1)


class ClipPrompter(DualEncoder):
    """A CLIP or SigLIP with the interface of the trained prompter. It is frozen until `unfreeze`.

    It encodes the frames of a clip one by one. The embedding of a clip is the mean of the frames'
    embeddings, normalized again. With temporal attention, frames attend to each other in every
    layer. The temperature is the inverse of the model's logit scale. SigLIP adds a bias to its
    logits, which cancels in the softmax over the entities.

    Args:
        model: A CLIPModel or SiglipModel.
        pad_id: Padding token of its tokenizer.
    """

    def __init__(self, model: Any, pad_id: int = 0):
        super().__init__()
        self.clip = model.float().requires_grad_(False)
        self.is_siglip = model.config.model_type == "siglip"
        # transformers leaves the embeddings in float32.
        self.clip.text_model.embeddings.register_forward_hook(
            lambda _module, _inputs, embeddings: as_residual(embeddings)
        )
        self.pad_id = pad_id

        vision = model.config.vision_config
        # Boxes are in patches, so the patch size must divide the image size; 14 often does not.
        size = vision.image_size
        patches = range(vision.patch_size, 0, -1)
        patch = next(patch for patch in patches if size % patch == 0)
        video = VideoConfig(image_size=size, patch_size=patch)
        text = (
            self.clip.text_model.head if self.is_siglip else self.clip.text_projection
        )
        self.config = ModelConfig(video=video, embed_dim=text.out_features)

        self.temporal: Any = nn.ModuleList()  # TemporalAttention of each layer
        # The towers apply their own projections.
        self.video_proj = self.text_proj = nn.Identity()
        self.eval()

    def add_temporal(self, frames: int) -> None:
        """Add temporal attention for clips of `frames` frames. It changes no embedding yet."""
        heads = self.clip.config.vision_config.num_attention_heads
        layers = self.clip.vision_model.encoder.layers
        self.temporal.extend(
            TemporalAttention(layer, heads, frames) for layer in layers
        )
        self.temporal.to(self.clip.logit_scale.device)
        self.set_frames(frames)

    def layers(self) -> list[nn.Module]:
        """Return the layers of both towers."""
        return [
            *self.clip.vision_model.encoder.layers,
            *self.clip.text_model.encoder.layers,
        ]

    def unfreeze(self, frames: int, layers: int = -1) -> None:
        """Make the model trainable, with temporal attention for clips of `frames` frames.

        Args:
            layers: Number of last layers of each tower that are trained, with all that follows
                them; -1: everything.
        """
        if not self.temporal:
            self.add_temporal(frames)
        self.set_frames(frames)
        self.requires_grad_(True)

        if layers >= 0:
            for tower in (self.clip.vision_model, self.clip.text_model):
                tower.embeddings.requires_grad_(False)
                frozen = max(0, len(tower.encoder.layers) - layers)
                tower.encoder.layers[:frozen].requires_grad_(False)
            # SigLIP has no LayerNorm after the embeddings.
            if not self.is_siglip:
                self.clip.vision_model.pre_layrnorm.requires_grad_(False)

        if hasattr(self.clip, "logit_bias"):  # cancels in the softmax
            self.clip.logit_bias.requires_grad_(False)

    def encode_video(self, frames: Tensor, cls_only: bool = False) -> Tensor:
        """Encode clips to the mean of the L2-normalized embeddings of their frames.

        Shape:
            Normalized frames (B, T, 3, S, S) -> (B, 1, E).
        """
        batch, count = frames.shape[:2]
        tower = self.clip.vision_model

        # The forward pass of the tower, with temporal attention before each layer.
        x = tower.embeddings(frames.flatten(0, 1))
        if not self.is_siglip:
            x = tower.pre_layrnorm(x)
        x = as_residual(x)
        for depth, layer in enumerate(tower.encoder.layers):
            if self.temporal:
                x = compute_layer(self.temporal[depth], x, count)
            x = layer(x, None)

        # A CLIP projects its [CLS], a SigLIP pools all patches.
        if self.is_siglip:
            features = tower.head(tower.post_layernorm(x))
        else:
            features = self.clip.visual_projection(tower.post_layernorm(x[:, 0]))

        # Normalized, each frame has the same weight in the mean.
        normalized = normalize(features.float(), dim=-1)
        return normalized.view(batch, count, -1).mean(dim=1, keepdim=True)

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Encode token ids (B, L) to embeddings (B, 1, E).

        The mask is unused: CLIP's text tower is causal, and SigLIP was trained without a mask, on
        texts that were padded to its full length.
        """
        length = self.text_length(0)
        ids = ids[:, :length]
        if self.is_siglip:
            ids = F.pad(ids, (0, length - ids.shape[1]), value=self.pad_id)
        return self.clip.get_text_features(input_ids=ids).pooler_output.float()[:, None]

    def clamped_temperature(self) -> Tensor:
        # A stored scale may lie outside of the range. Training clamps the parameter.
        return (-self.clip.logit_scale.float()).exp().view(())

    @torch.no_grad()
    def clamp_temperature_(self) -> None:
        low, high = TEMPERATURES
        self.clip.logit_scale.clamp_(-math.log(high), -math.log(low))

    def set_frames(self, frames: int) -> None:
        for temporal in self.temporal:
            if frames != len(temporal.time_embed):
                temporal.time_embed = nn.Parameter(temporal.times(frames).detach())
        self.config = self.config.with_frames(frames)

    def text_length(self, length: int) -> int:
        return self.clip.config.text_config.max_position_embeddings
