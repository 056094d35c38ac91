"""ALPRO (Align and Prompt, arXiv 2112.09583) as a model of `transformers`."""

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from alpro.inference.hub.configuration_alpro import AlproConfig
from alpro.models.alpro import Alpro, DualEncoder, ModelConfig, Prompter


@dataclass
class AlproOutput(ModelOutput):
    """Embeddings and similarity.

    Attributes:
        video_embeds: (V, E), L2-normalized.
        text_embeds: (N, E), L2-normalized.
        similarity: Dot products (N, V).
    """

    video_embeds: Tensor | None = None
    text_embeds: Tensor | None = None
    similarity: Tensor | None = None


class AlproModel(PreTrainedModel):
    """ALPRO for transformers.

    Args:
        pixel_values: Videos (V, T, 3, S, S) of `AlproProcessor`.
        input_ids, attention_mask: Texts (N, L).
    """

    config_class = AlproConfig
    base_model_prefix = "alpro"
    main_input_name = "pixel_values"

    def __init__(self, config: AlproConfig):
        super().__init__(config)
        sizes = ModelConfig.model_validate(config.sizes)
        self.model: DualEncoder
        if config.task == "prompter":
            self.model = Prompter(sizes)
        else:
            self.model = Alpro(sizes, len(config.entities), len(config.answers))
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Leave the weights as they are: the modules initialize themselves."""

    def get_input_embeddings(self) -> torch.nn.Module:
        """Return the word embeddings of the text encoder."""
        return self.model.get_submodule("text_encoder.embeddings.word_embeddings")

    def get_video_features(self, pixel_values: Tensor) -> Tensor:
        """Embed videos: (V, E), L2-normalized."""
        # The processor returns float32 for weights of any dtype.
        frames = pixel_values.to(self.dtype)
        return self.model.project_video(self.model.encode_video(frames, cls_only=True))

    def get_text_features(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Embed texts: (N, E), L2-normalized."""
        return self.model.project_text(
            self.model.encode_text(input_ids, attention_mask)
        )

    def forward(
        self,
        pixel_values: Tensor | None = None,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **unused: object,
    ) -> AlproOutput:
        """Embed videos, texts or both. With both, compute the similarity of all pairs."""
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

    def match(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor
    ) -> Tensor:
        """Return the probabilities (N, V) that text and video belong together.

        Raises:
            ValueError: If the model is a prompter.
        """
        model = self._alpro()
        videos = model.encode_video(pixel_values.to(self.dtype))
        text = model.encode_text(input_ids, attention_mask)

        # Video by video, because the fusion of all pairs would need N x V times the memory.
        columns = []
        for video in videos:
            repeated = video[None].expand(len(text), -1, -1)
            # (N, 2): no match, match.
            logits = model.match(text, attention_mask, repeated)
            columns.append(logits.softmax(dim=-1)[:, 1])
        return torch.stack(columns, dim=1)

    def answer(
        self, pixel_values: Tensor, input_ids: Tensor, attention_mask: Tensor
    ) -> Tensor:
        """Return the probabilities (N, answers) of `config.answers` for questions about N videos.

        Raises:
            ValueError: If the model does not answer questions.
        """
        model = self._alpro()
        video = model.encode_video(pixel_values.to(self.dtype))
        text = model.encode_text(input_ids, attention_mask)
        return model.answer(text, attention_mask, video).softmax(dim=-1)

    def _alpro(self) -> Alpro:
        """Return the model. Raise ValueError if it is a prompter."""
        if not isinstance(self.model, Alpro):
            raise ValueError("a prompter has no multimodal encoder: it only embeds")
        return self.model
