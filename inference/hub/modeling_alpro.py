"""ALPRO (Align and Prompt, arXiv 2112.09583) as a model of `transformers`."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from alpro.inference.hub.configuration_alpro import AlproConfig
from alpro.inputs import WHOLE, patches_of
from alpro.models.alpro import Alpro, DualEncoder, ModelConfig, Prompter
from alpro.models.timesformer import TimeSformer


@dataclass
class AlproOutput(ModelOutput):
    """video_embeds (V, E) and text_embeds (N, E), of length 1; similarity (N, V): their dot
    products."""

    video_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    similarity: Tensor | None = None


class AlproModel(PreTrainedModel):
    """Videos are `pixel_values` (V, T, 3, S, S) of `AlproProcessor`, texts `input_ids` and
    `attention_mask` (N, L)."""

    config_class = AlproConfig
    base_model_prefix = "alpro"
    main_input_name = "pixel_values"
    video_prompts: Tensor
    image_prompts: Tensor

    def __init__(self, config: AlproConfig):
        super().__init__(config)
        sizes = ModelConfig.model_validate(config.sizes)
        self.model: DualEncoder
        if config.task == "prompter":
            self.model = Prompter(sizes)
            # Buffers, so that the weights' file holds the prompts of the entities.
            shape = (len(config.entities), sizes.embed_dim)
            self.register_buffer("video_prompts", torch.zeros(shape))
            self.register_buffer("image_prompts", torch.zeros(shape))
        else:
            self.model = Alpro(sizes, len(config.entities), len(config.answers))
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """The modules initialize themselves; this restores what is not in the weights after
        loading."""
        # `from_pretrained` builds on the meta device, where a buffer gets no values.
        if isinstance(module, TimeSformer):
            rates = torch.linspace(0, module.config.drop_path, module.config.depth)
            with torch.no_grad():
                module.keep_rates.copy_(1 - rates)

    def get_input_embeddings(self) -> torch.nn.Module:
        """The embeddings of the text encoder's tokens."""
        return self.model.get_submodule("text_encoder.embeddings.word_embeddings")

    def get_video_features(self, pixel_values: Tensor) -> Tensor:
        """Embeddings (V, E) of length 1."""
        # The processor's are float32, whatever the weights are.
        frames = pixel_values.to(self.dtype)
        return self.model.project_video(self.model.encode_video(frames, cls_only=True))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embeddings (N, E) of length 1."""
        return self.model.project_text(self.model.encode_text(input_ids, attention_mask))

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **unused: object,
    ) -> AlproOutput:
        """The embeddings of what there is, and the similarity of every text and video if there are
        both."""
        video = None
        if pixel_values is not None:
            video = self.get_video_features(pixel_values)

        text = None
        if input_ids is not None:
            if attention_mask is None:
                attention_mask = torch.ones_like(input_ids)
            text = self.get_text_features(input_ids, attention_mask)

        similarity = None
        if video is not None and text is not None:
            similarity = text @ video.T
        return AlproOutput(video_embeds=video, text_embeds=text, similarity=similarity)

    def match(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Probabilities (N, V) that text and video belong together. Raises ValueError for a
        prompter."""
        model = self._alpro()
        videos = model.encode_video(pixel_values.to(self.dtype))
        text = model.encode_text(input_ids, attention_mask)

        # Video by video: the fusion of all pairs at once would need N x V times the memory.
        columns = []
        for video in videos:
            repeated = video[None].expand(len(text), -1, -1)
            logits = model.match(text, attention_mask, repeated)  # (N, 2): no match, match
            columns.append(logits.softmax(dim=-1)[:, 1])
        return torch.stack(columns, dim=1)

    def answer(self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Probabilities (N, answers) of `config.answers` for the question about each of N videos.
        Raises ValueError if the model does not answer questions."""
        model = self._alpro()
        video = model.encode_video(pixel_values.to(self.dtype))
        text = model.encode_text(input_ids, attention_mask)
        return model.answer(text, attention_mask, video).softmax(dim=-1)

    def entities(
        self,
        pixel_values: Tensor,
        boxes: Sequence[Sequence[float]] | Tensor | None = None,
        image: bool = False,
    ) -> Tensor:
        """Probabilities (V, entities) of `config.entities` in a region of each video.

        boxes (V, 4): left, top, width, height as fractions of the frame; None: the whole frame.
        image: use the prompts of images. Raises ValueError for a region that is not inside the
        frame, and if this is not a prompter with the prompts of entities.
        """
        if not isinstance(self.model, Prompter) or not self.config.entities:
            raise ValueError("this model names no entities: it is not a prompter with prompts")

        if boxes is None:
            boxes = [WHOLE] * len(pixel_values)
        regions = boxes.tolist() if isinstance(boxes, Tensor) else boxes
        frames = pixel_values.to(self.dtype)
        grid = self.model.config.video.grid
        patches = torch.tensor(
            [patches_of(region, grid) for region in regions], device=frames.device
        )

        # Outside of the region the prompter sees black: 0, normalized.
        mean = frames.new_tensor(self.config.mean).view(3, 1, 1)
        std = frames.new_tensor(self.config.std).view(3, 1, 1)
        black = -mean / std
        prompts = self.image_prompts if image else self.video_prompts
        return self.model.pseudo_labels(frames, patches, prompts, black)

    def _alpro(self) -> Alpro:
        """The model, if it is no prompter. Raises ValueError."""
        if not isinstance(self.model, Alpro):
            raise ValueError(
                "a prompter has no multimodal encoder: it only embeds, and names entities"
            )
        return self.model
