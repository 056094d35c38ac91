"""A CLIP or SigLIP of transformers as the prompter, as it is or trained further on the corpora: beyond the paper."""

import json
import logging
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn.functional import normalize

from alpro.errors import InputError, one_line
from alpro.files import read_small_json, use_default_mode
from alpro.models.alpro import TEMPERATURES, DualEncoder, ModelConfig
from alpro.models.attention import Attention
from alpro.models.folder import (
    ModelBundle,
    Preprocessing,
    check_finite,
    check_weights,
    write_tensors,
)
from alpro.models.timesformer import VideoConfig
from alpro.models.word_pieces import BertTokenizer

# With the length of their texts where config.json has none. SigLIP 2 of a fixed resolution is a siglip too.
TYPES = {"clip": 77, "siglip": 64}
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@\w[\w./-]*)?")
DOWNLOAD = "use a folder with all of its files: hf download NAME --local-dir FOLDER, where there is a network"
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that exists is loaded
TEMPORAL = "temporal."  # start of the names of the weights that transformers' model does not have
# Its table of weights that it does not use, such as these and heads; `load_pretrained` says what is wrong.
logging.getLogger("transformers.modeling_utils").addFilter(
    lambda record: "LOAD REPORT" not in record.getMessage()
)


class TemporalAttention(nn.Module):
    """Attention over the frames of a clip, at each place of the frames, before a layer of the vision tower: with the
    layer it is divided space-time attention. Its norm, queries, keys and values start as copies of the layer's, its
    output projection at zero, so that the tower starts as it was.

    The embedding of the times is inside this branch. With another number of frames, the nearest time is used.
    """

    def __init__(self, layer: Any, heads: int, frames: int):
        super().__init__()
        width = layer.self_attn.q_proj.in_features
        self.norm = nn.LayerNorm(width, eps=layer.layer_norm1.eps)
        self.attn = Attention(width, heads)
        self.time_embed = nn.Parameter(0.02 * torch.randn(frames, width))
        with torch.no_grad():
            self.norm.load_state_dict(layer.layer_norm1.state_dict())
            spatial = layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj
            self.attn.qkv.weight.copy_(torch.cat([part.weight for part in spatial]))
            self.attn.qkv.bias.copy_(torch.cat([part.bias for part in spatial]))
            nn.init.zeros_(self.attn.proj.weight)
            nn.init.zeros_(self.attn.proj.bias)

    def times(self, frames: int) -> Tensor:
        """The embeddings (T, D) of the times of `frames` frames."""
        nearest = (
            torch.arange(frames, device=self.time_embed.device) * len(self.time_embed) // frames
        )
        return self.time_embed[nearest]

    def forward(self, x: Tensor, frames: int) -> Tensor:
        """x (B * T, N, D) of clips of T `frames` -> the same shape."""
        y = self.norm(x).unflatten(0, (-1, frames)).transpose(1, 2) + self.times(
            frames
        )  # (B, N, T, D)
        y = self.attn(y.flatten(0, 1)).unflatten(0, y.shape[:2])
        return x + y.transpose(1, 2).flatten(0, 1)


class ClipPrompter(DualEncoder):
    """A CLIP or SigLIP with the interface of the trained prompter, and its pseudo-labels; frozen until `unfreeze`.

    It encodes the frames of a clip one by one; the embedding of a clip is the mean of theirs, normalized again. With
    temporal attention, frames see each other in every layer. The temperature is the inverse of the model's logit scale.
    SigLIP adds a bias to its logits, which cancels in the softmax over the entities.

    model: a CLIPModel or SiglipModel. pad_id: of its tokenizer.
    """

    def __init__(self, model: Any, pad_id: int = 0):
        super().__init__()
        self.clip = model.float().requires_grad_(False)
        self.pad_id = pad_id
        vision = model.config.vision_config
        # Boxes on whole frames: a 14-pixel patch does not divide every image size.
        patch = next(p for p in range(vision.patch_size, 0, -1) if vision.image_size % p == 0)
        self.config = ModelConfig(video=VideoConfig(image_size=vision.image_size, patch_size=patch))
        self.temporal = nn.ModuleList()
        self.video_proj = self.text_proj = nn.Identity()  # the towers project themselves
        self.eval()

    def add_temporal(self, frames: int) -> None:
        """Adds temporal attention for clips of `frames` frames, which does not change the embeddings yet."""
        heads, layers = (
            self.clip.config.vision_config.num_attention_heads,
            self.clip.vision_model.encoder.layers,
        )
        self.temporal.extend(TemporalAttention(layer, heads, frames) for layer in layers)
        self.temporal.to(self.clip.logit_scale.device)
        self.set_frames(frames)

    def layers(self) -> list[nn.Module]:
        """The layers of both towers, with those of temporal attention."""
        towers = self.clip.vision_model, self.clip.text_model
        return [*self.temporal, *(layer for tower in towers for layer in tower.encoder.layers)]

    def unfreeze(self, frames: int, layers: int = -1) -> None:
        """Makes it trainable, with temporal attention for clips of `frames` frames.

        layers: of each tower, the last ones are trained, with all that follows them; -1: everything.
        """
        if not self.temporal:
            self.add_temporal(frames)
        self.set_frames(frames)
        self.requires_grad_(True)
        if layers >= 0:
            for tower in (self.clip.vision_model, self.clip.text_model):
                frozen = len(tower.encoder.layers) - layers
                tower.embeddings.requires_grad_(False)
                for layer in tower.encoder.layers[: max(0, frozen)]:
                    layer.requires_grad_(False)
            if self.clip.config.model_type == "clip":
                self.clip.vision_model.pre_layrnorm.requires_grad_(False)
        if hasattr(self.clip, "logit_bias"):  # cancels in the softmax
            self.clip.logit_bias.requires_grad_(False)

    def encode_video(
        self, frames: Tensor, cls_only: bool = False, kept: Tensor | None = None
    ) -> Tensor:
        """Normalized frames (B, T, 3, S, S) -> the mean of their unit-length embeddings (B, 1, E)."""
        count, tower, is_clip = (
            frames.shape[1],
            self.clip.vision_model,
            self.clip.config.model_type == "clip",
        )
        x = tower.embeddings(frames.flatten(0, 1))
        x = tower.pre_layrnorm(x) if is_clip else x
        for number, layer in enumerate(tower.encoder.layers):
            x = self.temporal[number](x, count) if self.temporal else x
            x = layer(x, attention_mask=None)
        x = tower.post_layernorm(x[:, 0] if is_clip else x)
        features = (self.clip.visual_projection(x) if is_clip else tower.head(x)).float()
        return normalize(features, dim=-1).view(*frames.shape[:2], -1).mean(dim=1, keepdim=True)

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids (B, L) -> embeddings (B, 1, E). The mask is not needed: in a CLIP, no token sees the padding behind
        it; SigLIP saw texts padded to its full length, without a mask."""
        length = self.text_length(0)
        ids = ids[:, :length]
        if self.clip.config.model_type == "siglip":
            ids = F.pad(ids, (0, length - ids.shape[1]), value=self.pad_id)
        return self.clip.get_text_features(input_ids=ids).pooler_output.float()[:, None]

    def clamped_temperature(self) -> Tensor:
        return (-self.clip.logit_scale.float()).exp().view(())

    @torch.no_grad()
    def clamp_temperature_(self) -> None:
        low, high = TEMPERATURES
        self.clip.logit_scale.clamp_(-math.log(high), -math.log(low))

    def set_frames(self, frames: int) -> None:
        for temporal in cast(Iterable[TemporalAttention], self.temporal):
            if frames != len(temporal.time_embed):
                temporal.time_embed = nn.Parameter(temporal.times(frames).detach())
        video = self.config.video.model_copy(update={"frames": frames})
        self.config = self.config.model_copy(update={"video": video})

    def text_length(self, length: int) -> int:
        return self.clip.config.text_config.max_position_embeddings


class ClipWords(BertTokenizer):
    """The tokenizer of a CLIP or SigLIP, for which there is no masking.

    All of these models saw lower case, which not every version of their tokenizers applies.
    """

    tokenizer: Any

    def __init__(self, tokenizer: Any):
        self.tokenizer, self.size = tokenizer, len(tokenizer)
        self.pad_id = int(
            tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        )

    def ids(self, texts: list[str], length: int) -> list[np.ndarray]:
        words = self.tokenizer([text.lower() for text in texts], max_length=length, truncation=True)
        return [np.array(row, np.int64) for row in words["input_ids"]]


def wrap_tokenizer(tokenizer: Any) -> BertTokenizer:
    """The words of a tokenizer, which is that of a BERT or of a model of transformers."""
    return BertTokenizer(tokenizer) if isinstance(tokenizer, Tokenizer) else ClipWords(tokenizer)


@dataclass
class ClipBundle(ModelBundle):
    """A CLIP or SigLIP in the format of transformers."""

    model: ClipPrompter
    tokenizer: Any  # that of transformers

    def save_pretrained(self, folder: Path) -> None:
        """Writes the model, its tokenizer and its normalization. Its temporal attention, if any, is in the same file of
        weights: transformers alone reads the rest, a CLIP or SigLIP that sees frames one by one."""
        from transformers import logging as transformers_log

        transformers_log.disable_progress_bar()  # "Writing model shards", also into files
        self.model.clip.save_pretrained(folder)
        file = folder / "model.safetensors"
        use_default_mode(file)
        if self.model.temporal:
            own = {
                f"{TEMPORAL}{key}": value.contiguous()
                for key, value in self.model.temporal.state_dict().items()
            }
            write_tensors(load_file(file) | own, file, {"format": "pt"})
        self.tokenizer.save_pretrained(folder)
        constants = {"image_mean": self.preprocessing.mean, "image_std": self.preprocessing.std}
        (folder / "preprocessor_config.json").write_text(json.dumps(constants) + "\n")


def is_clip(folder: Path) -> bool:
    """Whether a folder has a CLIP or SigLIP of transformers, by its config.json."""
    try:
        return read_small_json(folder / "config.json")["model_type"] in TYPES
    except (ValueError, KeyError, TypeError):
        return False


def is_hub_name(name: str) -> bool:
    """Whether it is ORGANIZATION/MODEL, perhaps with @REVISION, as of a model of the hub, and not a folder."""
    return bool(HUB_NAME.fullmatch(name)) and not Path(name).is_dir()


def snapshot(name: str, local_files_only: bool = False) -> Path:
    """The folder of the files of a model of the hub, ORGANIZATION/MODEL or ORGANIZATION/MODEL@REVISION, in the hub's
    cache. Raises what huggingface_hub raises. local_files_only: nothing is downloaded."""
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")
    folder = Path()
    for files in (["*.json", "*.txt", "*.model", "*.safetensors"], ["pytorch_model.bin"]):
        folder = Path(
            snapshot_download(
                repository,
                revision=revision or None,
                allow_patterns=files,
                local_files_only=local_files_only,
            )
        )
        if any(folder.glob("*.safetensors")):  # the CLIPs of OpenAI have none
            break
    return folder


def hub_folder(name: str) -> Path:
    """The folder of a CLIP or SigLIP of the hub in its cache, downloaded if it is not there. Raises InputError, which
    says how to get it by hand, if that fails or if it is another kind of model."""
    try:
        folder = snapshot(name, local_files_only=True)
        complete = any((folder / file).is_file() for file in WEIGHTS)
    except Exception:  # not in the cache
        complete = False
    try:
        folder = folder if complete else snapshot(name)
    except Exception as error:  # no network, no such model: each library raises its own type
        repository, _, revision = name.partition("@")
        options = f" --revision {revision}" if revision else ""
        raise InputError(
            f"{name}: no artifact of this name, and it cannot be downloaded ({one_line(error)}); "
            f"where there is a network: hf download {repository}{options} --local-dir clip, and "
            "name the folder clip"
        ) from error
    if not is_clip(folder):
        raise InputError(f"{name}: it has no config.json of a {' or '.join(TYPES)}")
    return folder


def check_clip(name: str, key: str, max_text_tokens: int = 0) -> None:
    """Raises InputError for what is no CLIP or SigLIP, or takes shorter texts, as far as that is known without a
    download."""
    from huggingface_hub import try_to_load_from_cache

    where, folder = f"{key} = {name!r}", Path(name)
    if not folder.is_dir():
        if not is_hub_name(name):
            raise InputError(f"{where}: no such folder, and no name of the hub, ORGANIZATION/MODEL")
        repository, _, revision = name.partition("@")
        if not isinstance(
            file := try_to_load_from_cache(repository, "config.json", revision=revision or None),
            str,
        ):
            return
        folder = Path(file).parent
    if not is_clip(folder):
        raise InputError(f"{where}: it has no config.json of a {' or '.join(TYPES)}")
    config = read_small_json(folder / "config.json")
    text = config.get("text_config")
    length = text.get("max_position_embeddings") if isinstance(text, dict) else None
    length = length if isinstance(length, int) else TYPES[config["model_type"]]
    if max_text_tokens > length:
        raise InputError(
            f"{where}: its texts have at most {length} tokens; lower max_text_tokens ({max_text_tokens})"
        )


def load_clip(
    name: str, device: torch.device | str = "cpu", key: str = "cache_prompts.prompter"
) -> ClipBundle:
    """Loads a CLIP or SigLIP with its tokenizer and normalization, in float32 and eval mode.

    name: a hub name or a folder; key: of the configuration, for messages. Raises InputError if it is not available, not
    readable, or another kind of model.
    """
    where = f"{key.rpartition('.')[2]} = {name!r}"
    try:
        from transformers import AutoModel, AutoTokenizer
        from transformers.image_processing_base import ImageProcessingMixin

        config = pretrained_config(name)
        name = config.name_or_path
        if config.model_type not in TYPES:
            raise InputError(f"{where}: it is a {config.model_type}, not a {' or '.join(TYPES)}")
        model, _ = load_pretrained(AutoModel, name, config)
        tokenizer, words = AutoTokenizer.from_pretrained(name), config.text_config.vocab_size
        if (
            len(tokenizer) < words / 2 or max(tokenizer.get_vocab().values()) >= words
        ):  # without its files: no words
            raise ValueError(
                f"its tokenizer has {len(tokenizer)} tokens, or numbers beyond the {words} of the model"
            )
        processor, _ = ImageProcessingMixin.get_image_processor_dict(name)
        mean, std = processor["image_mean"], processor["image_std"]
        preprocessing = Preprocessing(
            mean=mean, std=std, max_text_tokens=config.text_config.max_position_embeddings
        )
        prompter = ClipPrompter(model, ClipWords(tokenizer).pad_id)
        prompter.encode_text(
            torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2)
        )  # a config's id may overflow
        dropouts = [part.attention_dropout for part in (config.text_config, config.vision_config)]
        if not (
            1e-6 < prompter.clamped_temperature() < 1e6
            and all(0 <= share < 1 for share in dropouts)
        ):
            raise ValueError(
                "its logit_scale is no logarithm of a scale, or its attention_dropout no probability"
            )
        load_temporal(prompter, Path(name) / "model.safetensors")
    except InputError:
        raise
    except (
        Exception
    ) as error:  # no folder, no network, no weights, no tokenizer: each library raises its own type
        raise InputError(
            f"{where}: not readable as a CLIP or SigLIP ({one_line(error)}); {DOWNLOAD}"
        ) from error
    return ClipBundle("prompter", prompter.to(device), tokenizer, preprocessing)


def pretrained_config(name: str) -> Any:
    """The configuration of a model of transformers, of anyone; its `name_or_path` has the other files. Raises
    ValueError for a folder with pipes or devices, and what transformers raises."""
    from transformers import AutoConfig

    if "@" in name and not Path(name).is_dir():
        name = str(snapshot(name))
    for file in Path(name).iterdir() if Path(name).is_dir() else ():
        if not file.is_file() and not file.is_dir():
            raise ValueError(f"{file.name} is not a regular file")
    config = AutoConfig.from_pretrained(name)
    json.dumps(config.to_dict(), allow_nan=False)  # an epsilon of NaN makes embeddings of NaN
    config._attn_implementation = (
        "sdpa"  # also of its towers: the files could name code from the hub
    )
    return config


def load_pretrained(kind: Any, name: str, config: Any) -> tuple[Any, set[str]]:
    """The model of a hub name or a folder with a `config`, of anyone, and the names of the weights of its head that the
    file does not have, which are random. Its sizes are compared with those in the file, safetensors or else a pickle of
    tensors only, before memory is taken, and its weights are finite. kind: a class of transformers that loads it.
    Raises ValueError, and what transformers raises."""
    from transformers import logging as transformers_log
    from transformers.modeling_utils import load_state_dict
    from transformers.utils import cached_file

    transformers_log.disable_progress_bar()  # "Loading weights", also into files
    parts = [getattr(config, part, config) for part in ("text_config", "vision_config")]
    layers = sum(part.num_hidden_layers for part in {id(part): part for part in parts}.values())
    optional = partial(cached_file, name, _raise_exceptions_for_missing_entries=False)
    file = optional("model.safetensors") or optional("pytorch_model.bin")
    if file is None and Path(name).is_dir():
        raise ValueError("no model.safetensors, and no pytorch_model.bin")
    if file is not None:
        header = load_state_dict(file, map_location="meta")
        if layers != len(
            {found[0] for key in header if (found := re.match(r".*\.layers?\.\d+", key))}
        ):
            raise ValueError(
                f"config.json has {layers} layers, but {Path(file).name} has another number of them"
            )
        with torch.device("meta"):
            expected = sum(
                parameter.numel() for parameter in kind.from_config(config).base_model.parameters()
            )
        stored = sum(weight.numel() for weight in header.values())
        if expected > stored:
            raise ValueError(
                f"config.json has {expected} weights, but {Path(file).name} only {stored}"
            )
    model, report = kind.from_pretrained(
        name, config=config, output_loading_info=True, ignore_mismatched_sizes=True
    )
    body = "" if model.base_model is model else f"{model.base_model_prefix}."
    missing, other_shapes = report["missing_keys"], {key for key, *_ in report["mismatched_keys"]}
    if wrong := sorted(key for key in {*missing, *other_shapes} if key.startswith(body)):
        raise ValueError(f"weights are missing or of another shape, such as {wrong[0]}")
    check_finite(model.state_dict(), name)
    return model, {*missing, *other_shapes}


def load_temporal(prompter: ClipPrompter, file: Path) -> None:
    """Loads the temporal attention in the weights of a model that was trained here, if it has any. Raises ValueError if
    it does not match."""
    if not file.is_file():
        return
    with safe_open(file, framework="pt") as weights:
        names = [name for name in weights.keys() if name.startswith(TEMPORAL)]  # noqa: SIM118
        own = {name.removeprefix(TEMPORAL): weights.get_tensor(name) for name in names}
    if own:
        prompter.add_temporal(len(own["0.time_embed"]))
        check_weights(own, prompter.temporal, "temporal attention")
        prompter.temporal.load_state_dict(own)
        prompter.requires_grad_(False)
