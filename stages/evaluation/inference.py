"""Inference with a trained model: embed, match, answer questions, name the entities of a region (see README)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal, TypeVar

import torch
from PIL import Image
from torch import Tensor

from alpro.errors import InputError
from alpro.models.alpro import Alpro, Prompter
from alpro.models.folder import ModelFolder, load_labels
from alpro.models.frames import NormalizedModel
from alpro.shards.decode import DecodeError, decode_image, decode_video
from alpro.shards.pictures import draw_entities, sheet
from alpro.shards.schema import IMAGE_EXTENSIONS
from alpro.stages.cache_prompts import read_prompts
from alpro.stages.evaluation.encode import Texts, Videos, embed_texts, encode_texts, load_prompter
from alpro.stages.evaluation.retrieval import match_all
from alpro.stages.execution.interface import Resources, require
from alpro.stages.training.distributed import pick_device

PathLike = str | Path
Box = tuple[float, float, float, float]
T = TypeVar("T")
WHOLE: Box = (0.0, 0.0, 1.0, 1.0)


def several(items: Sequence[T]) -> list[T]:
    """The items as a list. Raises InputError for a string instead of a list, and for an empty list."""
    if isinstance(items, str | Path) or not len(items):
        raise InputError(f"expected a list of one or more items, not {items!r}")
    return list(items)


class Model:
    """A model with its preprocessing. Videos and images are files; frames are sampled as in evaluation."""

    def __init__(self, folder: ModelFolder, prompts: dict[str, Tensor], device: torch.device):
        self.folder, self.prompts, self.device = folder, prompts, device
        self.encoder = NormalizedModel.from_folder(folder, device)

    @classmethod
    def from_pretrained(
        cls, folder: PathLike, prompts: PathLike = "", device: Literal["auto", "cpu", "cuda"] = "auto"
    ) -> "Model":
        """Loads a model folder, or an artifact that contains one.

        prompts: the artifact of cache_prompts with the entities of a prompter; not needed if the folder itself has
        prompts.safetensors, as those of `alpro import-checkpoint` do, and the artifact of cache_prompts with a CLIP or
        SigLIP as the prompter. Raises InputError if a file is missing.
        """
        target = pick_device(Resources(device=device))
        loaded = load_prompter(Path(folder), target)
        source = Path(prompts) if prompts else Path(folder)
        if not prompts and not (source / "prompts.safetensors").is_file():
            return cls(loaded, {}, target)
        if not (source / "prompts.safetensors").is_file():
            raise InputError(
                f"{source}: no prompts.safetensors in this folder; use the folder of a cache_prompts artifact"
            )
        embeddings = {kind: value.to(target) for kind, value in read_prompts(source).items()}
        loaded.entities = load_labels(require(source, "entities.json"))
        return cls(loaded, embeddings, target)

    def save_pretrained(self, folder: PathLike) -> None:
        """Writes the model folder."""
        self.folder.save_pretrained(Path(folder))

    def frames(self, files: Sequence[PathLike]) -> Tensor:
        """Decodes files to frames (N, T, 3, S, S) uint8. Raises DecodeError for a file that cannot be decoded."""
        config = self.folder.model.config.video
        clips = []
        for file in map(Path, several(files)):
            try:
                if file.suffix.lower() in IMAGE_EXTENSIONS:
                    clip = torch.tensor(decode_image(file, config.image_size).frames).expand(config.frames, -1, -1, -1)
                else:
                    clip = torch.from_numpy(decode_video(file, config.frames, config.image_size).frames)
            except DecodeError as error:
                raise DecodeError(error.reason, f"{file}: {error.detail}".removesuffix(": ")) from error
            clips.append(clip.permute(0, 3, 1, 2))
        return torch.stack(clips).to(self.device)

    @torch.inference_mode()
    def videos(self, files: Sequence[PathLike]) -> Videos:
        """Encoded videos: tokens (N, 1 + patches, D), features (N, E)."""
        tokens = self.folder.model.encode_video(self.encoder.pixels(self.frames(files)))
        return Videos(tokens, self.folder.model.project_video(tokens).float())

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Texts:
        """Encoded texts: tokens (N, L, D), mask (N, L), features (N, E)."""
        texts, length = several(texts), self.folder.preprocessing.max_text_tokens
        return encode_texts(self.folder.model, self.folder.tokenizer, texts, length, self.device)

    def embed_videos(self, files: Sequence[PathLike]) -> Tensor:
        """L2-normalized embeddings (N, E); their dot product with text embeddings is the VTC similarity."""
        return self.videos(files).features

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """L2-normalized embeddings (N, E)."""
        folder, length = self.folder, self.folder.preprocessing.max_text_tokens
        return embed_texts(folder.model, folder.tokenizer, several(texts), length, self.device)

    @torch.inference_mode()
    def match(self, files: Sequence[PathLike], texts: Sequence[str]) -> Tensor:
        """VTM probabilities that text and video match: (texts, videos)."""
        scores = match_all(self._alpro("match"), self.texts(texts), self.videos(files))
        return torch.from_numpy(scores).sigmoid()

    @torch.inference_mode()
    def answer(self, file: PathLike, question: str, top_k: int = 3) -> list[tuple[str, float]]:
        """The `top_k` most likely answers with their probabilities, in descending order."""
        if not self.folder.answers:
            raise InputError(f"this {self.folder.task} model does not answer questions; load a model of finetune_qa")
        text = self.texts([question])
        logits = self._alpro("answer").answer(text.tokens, text.mask, self.videos([file]).tokens)
        return self._best(logits[0].softmax(0), self.folder.answers, top_k)

    @torch.inference_mode()
    def entities(self, file: PathLike, box: Box = WHOLE, top_k: int = 3) -> list[tuple[str, float]]:
        """The `top_k` most likely entities of a region (top, left, height, width, as fractions of the frame)."""
        if not (isinstance(self.folder.model, Prompter) and self.prompts):
            raise InputError("entities need a prompter with its prompts: Model.from_pretrained(PROMPTER, PROMPTS)")
        if not all(0 <= v <= 1 for v in box):
            raise InputError(f"box {box}: top, left, height and width are fractions of the frame, 0 to 1")
        grid = self.folder.model.config.video.grid
        top, left = (min(grid - 1, round(v * grid)) for v in box[:2])
        height, width = (max(1, min(grid - at, round(v * grid))) for at, v in zip((top, left), box[2:], strict=True))
        boxes = torch.tensor([[top, left, height, width]], device=self.device)
        kind = "image" if Path(file).suffix.lower() in IMAGE_EXTENSIONS and "image" in self.prompts else "video"
        pixels = self.encoder.pixels(self.frames([file]))
        probabilities = self.folder.model.pseudo_labels(pixels, boxes, self.prompts[kind], self.encoder.black)[0]
        return self._best(probabilities, self.folder.entities, top_k)

    def draw_entities(self, file: PathLike, boxes: Sequence[Box] = (WHOLE,)) -> Image.Image:
        """Draws the entities of regions on the middle frame, as in Figure 3 of the paper."""
        frames = self.frames([file])[0]
        middle = frames[len(frames) // 2].permute(1, 2, 0).cpu().numpy()
        drawn = [draw_entities(middle, box, self.entities(file, box), Path(file).name) for box in boxes]
        return sheet(drawn, columns=len(drawn))

    def _alpro(self, what: str) -> Alpro:
        if not isinstance(self.folder.model, Alpro):
            raise InputError(
                f"a prompter has no multimodal encoder to {what} with; load a pre-trained or fine-tuned model"
            )
        return self.folder.model

    @staticmethod
    def _best(probabilities: Tensor, words: list[str], top_k: int) -> list[tuple[str, float]]:
        best = probabilities.topk(min(top_k, len(words)))
        return [(words[i], p) for i, p in zip(best.indices.tolist(), best.values.tolist(), strict=True)]
