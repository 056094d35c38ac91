"""A CLIP or SigLIP of transformers as the prompter, as it is or trained further on the corpora:
beyond the paper."""

import json
import logging
import math
import re
from collections.abc import Iterable
from contextlib import suppress
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
from alpro.models.folder import (
    ModelBundle,
    Preprocessing,
    check_finite,
    check_weights,
    write_tensors,
)
from alpro.models.precision import as_residual
from alpro.models.temporal_attention import TemporalAttention
from alpro.models.timesformer import VideoConfig
from alpro.models.word_pieces import BertTokenizer

# With the length of their texts where config.json has none. SigLIP 2 of a fixed resolution is a
# siglip too.
TYPES = {"clip": 77, "siglip": 64}
HUB_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*(@\w[\w./-]*)?")
DOWNLOAD = (
    "use a folder with all of its files: hf download NAME --local-dir FOLDER, where there is a "
    "network"
)
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # the first that exists is loaded
TEMPORAL = "temporal."  # start of the names of the weights that transformers' model does not have
# transformers logs a table of the weights that it does not use, such as these and heads;
# `load_pretrained` reports what is wrong.
logging.getLogger("transformers.modeling_utils").addFilter(
    lambda record: "LOAD REPORT" not in record.getMessage()
)


def embeddings_as_residual(_module: nn.Module, _inputs: tuple, embeddings: Tensor) -> Tensor:
    """A forward hook: the stream starts behind the embeddings, inside the text tower's own forward
    pass."""
    return as_residual(embeddings)


class ClipPrompter(DualEncoder):
    """A CLIP or SigLIP with the interface of the trained prompter, and its pseudo-labels; frozen
    until `unfreeze`.

    It encodes the frames of a clip one by one; the embedding of a clip is the mean of theirs,
    normalized again. With temporal attention, frames see each other in every layer. The temperature
    is the inverse of the model's logit scale. SigLIP adds a bias to its logits, which cancels in
    the softmax over the entities.

    model: a CLIPModel or SiglipModel. pad_id: of its tokenizer.
    """

    def __init__(self, model: Any, pad_id: int = 0):
        super().__init__()
        self.clip = model.float().requires_grad_(False)
        self.clip.text_model.embeddings.register_forward_hook(embeddings_as_residual)
        self.pad_id = pad_id

        vision = model.config.vision_config
        # Boxes on whole frames: a 14-pixel patch does not divide every image size.
        size = vision.image_size
        divisors = [patch for patch in range(1, vision.patch_size + 1) if size % patch == 0]
        video = VideoConfig(image_size=size, patch_size=max(divisors))
        self.config = ModelConfig(video=video)

        self.temporal = nn.ModuleList()
        self.video_proj = self.text_proj = nn.Identity()  # the towers project themselves
        self.eval()

    def add_temporal(self, frames: int) -> None:
        """Adds temporal attention for clips of `frames` frames, which does not change the
        embeddings yet."""
        heads = self.clip.config.vision_config.num_attention_heads
        layers = self.clip.vision_model.encoder.layers
        self.temporal.extend(TemporalAttention(layer, heads, frames) for layer in layers)
        self.temporal.to(self.clip.logit_scale.device)
        self.set_frames(frames)

    def layers(self) -> list[nn.Module]:
        """The layers of both towers, with those of temporal attention."""
        vision = self.clip.vision_model.encoder.layers
        text = self.clip.text_model.encoder.layers
        return [*self.temporal, *vision, *text]

    def unfreeze(self, frames: int, layers: int = -1) -> None:
        """Makes it trainable, with temporal attention for clips of `frames` frames.

        layers: of each tower, the last ones are trained, with all that follows them; -1:
        everything.
        """
        if not self.temporal:
            self.add_temporal(frames)
        self.set_frames(frames)
        self.requires_grad_(True)

        if layers >= 0:
            for tower in (self.clip.vision_model, self.clip.text_model):
                tower.embeddings.requires_grad_(False)
                frozen = max(0, len(tower.encoder.layers) - layers)
                for layer in tower.encoder.layers[:frozen]:
                    layer.requires_grad_(False)
            # The norm behind the embeddings, which a SigLIP does not have.
            if self.clip.config.model_type == "clip":
                self.clip.vision_model.pre_layrnorm.requires_grad_(False)

        if hasattr(self.clip, "logit_bias"):  # cancels in the softmax
            self.clip.logit_bias.requires_grad_(False)

    def encode_video(
        self,
        frames: Tensor,
        cls_only: bool = False,
        kept: Tensor | None = None,
    ) -> Tensor:
        """Normalized frames (B, T, 3, S, S) -> the mean of their unit-length embeddings (B, 1,
        E)."""
        batch, count = frames.shape[:2]
        tower = self.clip.vision_model
        is_clip = self.clip.config.model_type == "clip"

        # The tower's own forward pass, with temporal attention before each layer.
        x = tower.embeddings(frames.flatten(0, 1))
        if is_clip:
            x = tower.pre_layrnorm(x)
        x = as_residual(x)
        for depth, layer in enumerate(tower.encoder.layers):
            if self.temporal:
                x = self.temporal[depth](x, count)
            x = layer(x, attention_mask=None)

        # A CLIP projects its [CLS], a SigLIP pools all patches.
        if is_clip:
            features = self.clip.visual_projection(tower.post_layernorm(x[:, 0]))
        else:
            features = tower.head(tower.post_layernorm(x))

        # Each frame has the same weight in the mean, whatever the length of its embedding.
        normalized = normalize(features.float(), dim=-1)
        return normalized.view(batch, count, -1).mean(dim=1, keepdim=True)

    def encode_text(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Token ids (B, L) -> embeddings (B, 1, E). The mask is not needed: in a CLIP, no token
        sees the padding behind it; SigLIP saw texts padded to its full length, without a mask."""
        length = self.text_length(0)
        ids = ids[:, :length]
        if self.clip.config.model_type == "siglip":
            ids = F.pad(ids, (0, length - ids.shape[1]), value=self.pad_id)
        features = self.clip.get_text_features(input_ids=ids).pooler_output
        return features.float()[:, None]

    def clamped_temperature(self) -> Tensor:
        # Not clamped: a stored scale may lie outside, and training clamps the parameter.
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
        self.tokenizer = tokenizer
        self.size = len(tokenizer)
        pad_id = tokenizer.pad_token_id
        if pad_id is None:
            pad_id = tokenizer.eos_token_id
        self.pad_id = int(pad_id)

    def ids(self, texts: list[str], length: int) -> list[np.ndarray]:
        lower = [text.lower() for text in texts]
        encoded = self.tokenizer(lower, max_length=length, truncation=True)
        return [np.array(row, np.int64) for row in encoded["input_ids"]]


def wrap_tokenizer(tokenizer: Any) -> BertTokenizer:
    """One interface for the tokenizer of a BERT and that of a CLIP or SigLIP of transformers."""
    if isinstance(tokenizer, Tokenizer):
        return BertTokenizer(tokenizer)
    return ClipWords(tokenizer)


@dataclass
class ClipBundle(ModelBundle):
    """A CLIP or SigLIP in the format of transformers."""

    tokenizer: Any  # that of transformers

    @property
    def prompter(self) -> ClipPrompter:
        """The model, by its type."""
        return cast(ClipPrompter, self.model)

    def save_pretrained(self, folder: Path) -> None:
        """Writes the model, its tokenizer and its normalization. Its temporal attention, if any, is
        in the same file of weights: transformers alone reads the rest, a CLIP or SigLIP that sees
        frames one by one."""
        from transformers import logging as transformers_log

        transformers_log.disable_progress_bar()  # "Writing model shards", also into files
        self.prompter.clip.save_pretrained(folder)

        file = folder / "model.safetensors"
        use_default_mode(file)
        if self.prompter.temporal:
            weights = load_file(file)
            for key, value in self.prompter.temporal.state_dict().items():
                weights[f"{TEMPORAL}{key}"] = value.contiguous()
            write_tensors(weights, file, {"format": "pt"})

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
    """Whether it is ORGANIZATION/MODEL, perhaps with @REVISION, as of a model of the hub, and not a
    folder."""
    return bool(HUB_NAME.fullmatch(name)) and not Path(name).is_dir()


def snapshot(name: str, local_files_only: bool = False) -> Path:
    """The folder of the files of a model of the hub, ORGANIZATION/MODEL or
    ORGANIZATION/MODEL@REVISION, in the hub's cache. Raises what huggingface_hub raises.
    local_files_only: nothing is downloaded."""
    from huggingface_hub import snapshot_download

    repository, _, revision = name.partition("@")

    def fetch(patterns: list[str]) -> Path:
        folder = snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=patterns,
            local_files_only=local_files_only,
        )
        return Path(folder)

    folder = fetch(["*.json", "*.txt", "*.model", "*.safetensors"])
    if not any(folder.glob("*.safetensors")):  # the CLIPs of OpenAI have none
        folder = fetch(["pytorch_model.bin"])
    return folder


def hub_folder(name: str) -> Path:
    """The folder of a CLIP or SigLIP of the hub in its cache, downloaded if it is not there. Raises
    InputError, which says how to get it by hand, if that fails or if it is another kind of
    model."""
    folder = None
    with suppress(Exception):  # not in the cache
        cached = snapshot(name, local_files_only=True)
        # An interrupted download leaves a folder without weights.
        if any((cached / file).is_file() for file in WEIGHTS):
            folder = cached

    try:
        folder = folder or snapshot(name)
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
    """Raises InputError for what is no CLIP or SigLIP, or takes shorter texts, as far as that is
    known without a download."""
    from huggingface_hub import try_to_load_from_cache

    where = f"{key} = {name!r}"
    folder = Path(name)
    if not folder.is_dir():
        if not is_hub_name(name):
            raise InputError(f"{where}: no such folder, and no name of the hub, ORGANIZATION/MODEL")
        repository, _, revision = name.partition("@")
        file = try_to_load_from_cache(repository, "config.json", revision=revision or None)
        if not isinstance(file, str):  # None, or a mark that the hub has no such file
            return
        folder = Path(file).parent

    if not is_clip(folder):
        raise InputError(f"{where}: it has no config.json of a {' or '.join(TYPES)}")

    config = read_small_json(folder / "config.json")
    text = config.get("text_config")
    length = text.get("max_position_embeddings") if isinstance(text, dict) else None
    if not isinstance(length, int):
        length = TYPES[config["model_type"]]
    if max_text_tokens > length:
        raise InputError(
            f"{where}: its texts have at most {length} tokens; lower max_text_tokens "
            f"({max_text_tokens})"
        )


def load_clip(
    name: str,
    device: torch.device | str = "cpu",
    key: str = "cache_prompts.prompter",
) -> ClipBundle:
    """Loads a CLIP or SigLIP with its tokenizer and normalization, in float32 and eval mode.

    name: a hub name or a folder; key: of the configuration, for messages. Raises InputError if it
    is not available, not readable, or another kind of model.
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

        # Without its files, transformers makes a tokenizer without words.
        tokenizer = AutoTokenizer.from_pretrained(name)
        words = config.text_config.vocab_size
        last_id = max(tokenizer.get_vocab().values(), default=0)
        if len(tokenizer) < words / 2 or last_id >= words:
            raise ValueError(
                f"its tokenizer has {len(tokenizer)} tokens, or ids beyond the {words} of the model"
            )

        processor, _ = ImageProcessingMixin.get_image_processor_dict(name)
        preprocessing = Preprocessing(
            mean=processor["image_mean"],
            std=processor["image_std"],
            max_text_tokens=config.text_config.max_position_embeddings,
        )

        # A text on trial: an id in config.json may overflow.
        prompter = ClipPrompter(model, ClipWords(tokenizer).pad_id)
        prompter.encode_text(torch.zeros(1, 2, dtype=torch.long), torch.ones(1, 2))
        has_scale = bool(1e-6 < prompter.clamped_temperature() < 1e6)
        towers = (config.text_config, config.vision_config)
        has_dropouts = all(0 <= tower.attention_dropout < 1 for tower in towers)
        if not has_scale or not has_dropouts:
            raise ValueError(
                "its logit_scale is no logarithm of a scale, or its attention_dropout no "
                "probability"
            )

        load_temporal(prompter, Path(name) / "model.safetensors")
    except InputError:
        raise
    # No folder, no network, no weights, no tokenizer: each library raises its own type.
    except Exception as error:
        raise InputError(
            f"{where}: not readable as a CLIP or SigLIP ({one_line(error)}); {DOWNLOAD}"
        ) from error
    return ClipBundle("prompter", prompter.to(device), tokenizer, preprocessing)


def pretrained_config(name: str) -> Any:
    """The configuration of an untrusted transformers model; its `name_or_path` has the other files.
    Raises ValueError for a folder with pipes or devices, and what transformers raises."""
    from transformers import AutoConfig

    if "@" in name and not Path(name).is_dir():
        name = str(snapshot(name))
    # Reading from a pipe would wait for ever.
    files = Path(name).iterdir() if Path(name).is_dir() else ()
    for file in files:
        if not file.is_file() and not file.is_dir():
            raise ValueError(f"{file.name} is not a regular file")

    config = AutoConfig.from_pretrained(name)
    json.dumps(config.to_dict(), allow_nan=False)  # an epsilon of NaN makes embeddings of NaN
    # Also of its towers: the files could name code from the hub.
    config._attn_implementation = "sdpa"
    return config


def load_pretrained(kind: Any, name: str, config: Any) -> tuple[Any, set[str]]:
    """An untrusted transformers model, of a hub name or a folder with a `config`, and the names of
    the weights of its head that the file does not have, which are random.

    Its sizes are compared with those in the file, safetensors or else a pickle of tensors only,
    before memory is taken, and its weights are finite. kind: a class of transformers that loads it.
    Raises ValueError, and what transformers raises.
    """
    from transformers import logging as transformers_log
    from transformers.modeling_utils import load_state_dict
    from transformers.utils.hub import cached_file

    transformers_log.disable_progress_bar()  # "Loading weights", also into files

    optional = partial(cached_file, name, _raise_exceptions_for_missing_entries=False)
    file = optional("model.safetensors") or optional("pytorch_model.bin")
    if file is None and Path(name).is_dir():
        raise ValueError("no model.safetensors, and no pytorch_model.bin")
    if file is not None:
        header = load_state_dict(file, map_location="meta")
        check_header(header, kind, config, Path(file).name)

    model, report = kind.from_pretrained(
        name,
        config=config,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    # The head may be missing, such as the MLM head of a BERT; the body may not.
    body = ""
    if model.base_model is not model:
        body = f"{model.base_model_prefix}."
    random = set(report["missing_keys"])
    random.update(key for key, *_ in report["mismatched_keys"])
    random_in_body = sorted(key for key in random if key.startswith(body))
    if random_in_body:
        raise ValueError(f"weights are missing or of another shape, such as {random_in_body[0]}")

    check_finite(model.state_dict(), name)
    return model, random


def check_header(header: dict[str, Tensor], kind: Any, config: Any, name: str) -> None:
    """Raises ValueError if the weights of a file, without their contents, are not as many as
    `config` says.

    kind: a class of transformers. name: that of the file.
    """
    # The layers first: each takes time to build, even without memory for its weights. A BERT has no
    # towers.
    towers = [getattr(config, tower, config) for tower in ("text_config", "vision_config")]
    distinct = {id(tower): tower for tower in towers}
    layers = sum(tower.num_hidden_layers for tower in distinct.values())
    stored_layers = set()
    for key in header:
        match = re.match(r".*\.layers?\.\d+", key)
        if match:
            stored_layers.add(match[0])
    if layers != len(stored_layers):
        raise ValueError(f"config.json has {layers} layers, but {name} has another number of them")

    with torch.device("meta"):
        model = kind.from_config(config).base_model
    # The file may have more: heads that are not loaded.
    expected = sum(parameter.numel() for parameter in model.parameters())
    stored = sum(weight.numel() for weight in header.values())
    if expected > stored:
        raise ValueError(f"config.json has {expected} weights, but {name} only {stored}")


def load_temporal(prompter: ClipPrompter, file: Path) -> None:
    """Loads the temporal attention in the weights of a model that was trained here, if it has any.
    Raises ValueError if it does not match."""
    if not file.is_file():
        return
    with safe_open(file, framework="pt") as weights:
        temporal = {}
        for name in weights.keys():  # noqa: SIM118
            if name.startswith(TEMPORAL):
                temporal[name.removeprefix(TEMPORAL)] = weights.get_tensor(name)

    if temporal:
        frames = len(temporal["0.time_embed"])
        prompter.add_temporal(frames)
        check_weights(temporal, prompter.temporal, "temporal attention")
        prompter.temporal.load_state_dict(temporal)
        # The new modules would be trainable, but this is a frozen teacher.
        prompter.requires_grad_(False)
