"""Checkpoints of the authors' code (.pt) as model folders: `alpro model import`.

Official checkpoints store the text and multimodal encoders as one 12-layer BERT
(`text_encoder.bert.*`, for question answering `text_encoder.*`) and contain unused tensors. Keys
map one to one except in attention: the official text layers have separate query, key and value
matrices; this project concatenates them in that order.
"""

import pickle
import re
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from alpro.errors import InputError, one_line
from alpro.models.alpro import Alpro, DualEncoder, ModelConfig, Prompter
from alpro.models.folder import ModelBundle, Preprocessing, check_weights, write_tensors
from alpro.models.text import TextConfig
from alpro.models.timesformer import VideoConfig, grid_side
from alpro.models.word_pieces import load_tokenizer
from alpro.models.words import read_word_list

StateDict = dict[str, Tensor]
Task = Literal["pretrain", "retrieval", "qa", "prompter"]
WEIGHT_FILES = (".pt", ".pth", ".bin", ".safetensors")
# Text lengths of the official configurations in tokens; DiDeMo retrieval is the exception with 50.
MAX_TEXT_TOKENS = {"pretrain": 30, "retrieval": 40, "qa": 40, "prompter": 30}

# Unused keys of official checkpoints: the classifier of the video encoder, position ids, and the
# MLM decoder with its bias (tied to the word embeddings and to predictions.bias).
UNUSED = (r"visual_encoder\.model\.head\.", r"\.position_ids$", r"cls\.predictions\.decoder\.")
# Prefixes of weights that official checkpoints contain but the model of the task does not have.
UNUSED_PREFIXES: dict[str, tuple[str, ...]] = {
    "pretrain": (),
    "retrieval": ("mlm_head.", "pem_head."),
    "qa": ("mlm_head.", "pem_head."),
    "prompter": ("multimodal_encoder.", "mlm_head.", "vtm_head.", "pem_head."),
}

# Our prefix and the official one, longer prefixes first; BERT keys without `bert.`.
_PREFIXES = (
    ("temperature", "temp"),
    ("video_encoder.patch_embed.", "visual_encoder.model.patch_embed.proj."),
    ("video_encoder.", "visual_encoder.model."),
    ("video_proj.", "vision_proj."),
    ("text_proj.", "text_proj."),
    ("vtm_head.", "itm_head."),
    ("pem_head.", "mpm_head."),
    ("qa_head.", "classifier."),
    ("mlm_head.bias", "text_encoder.cls.predictions.bias"),
    ("mlm_head.dense.", "text_encoder.cls.predictions.transform.dense."),
    ("mlm_head.norm.", "text_encoder.cls.predictions.transform.LayerNorm."),
    ("text_encoder.embeddings.word_embeddings.", "text_encoder.embeddings.word_embeddings."),
    (
        "text_encoder.embeddings.position_embeddings.",
        "text_encoder.embeddings.position_embeddings.",
    ),
    (
        "text_encoder.embeddings.token_type_embeddings.",
        "text_encoder.embeddings.token_type_embeddings.",
    ),
    ("text_encoder.embeddings.norm.", "text_encoder.embeddings.LayerNorm."),
)
_LAYER = re.compile(r"^text_encoder\.(?:bert\.)?encoder\.layer\.(\d+)\.(.+)\.(weight|bias)$")
_IN_LAYER = {
    "attention.output.dense": "attention.proj",
    "attention.output.LayerNorm": "norm1",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
    "output.LayerNorm": "norm2",
}
_QKV = ("attention.self.query", "attention.self.key", "attention.self.value")


@dataclass
class Imported:
    """Summary of a conversion: number of converted tensors, unused keys, unknown keys, and
    configuration."""

    read: int
    unused: list[str]
    unknown: list[str]
    config: ModelConfig


def import_checkpoint(
    file: Path,
    out: Path,
    task: Task,
    tokenizer: str,
    words: Path | None = None,
    max_text_tokens: int | None = None,
) -> Imported:
    """Converts an official checkpoint to the model folder `out`; for a pre-training one also writes
    `out`/prompter.

    tokenizer: as in `load_tokenizer`. words: the entities (pretrain, prompter) or answers (qa) in
    the order of the head, as in `read_word_list`; without it they are numbered. max_text_tokens:
    maximum length of a text; None: the task's MAX_TEXT_TOKENS. Raises InputError, and leaves no
    files, if the checkpoint is not one of this task or the folder cannot be written.
    """
    if file.suffix not in WEIGHT_FILES:
        raise InputError(f"{file}: a checkpoint is a .pt, .pth, .bin or .safetensors file")

    # The folder gets its name when it is complete: a killed import leaves none.
    building = out.parent / f".{out.name}.part"
    try:
        if out.exists():
            raise InputError(f"{out}: exists already; choose another folder or delete it")

        weights, prompter = split_prompter(read_checkpoint(file))
        if task == "prompter" and prompter:
            weights = prompter

        convert = partial(
            build,
            tokenizer=load_tokenizer(tokenizer),
            words=words,
            max_text_tokens=max_text_tokens,
        )
        bundle, summary = convert(weights, task)

        shutil.rmtree(building, ignore_errors=True)
        bundle.save_pretrained(building)
        save_prompts(weights, building)

        # The prompter in the checkpoint becomes a model of its own.
        if task == "pretrain" and prompter:
            teacher, teacher_summary = convert(prompter, "prompter")
            teacher.save_pretrained(building / "prompter")
            save_prompts(prompter, building / "prompter")
            summary.read += teacher_summary.read
            summary.unused += [f"prompter.{key}" for key in teacher_summary.unused]
            summary.unknown += [f"prompter.{key}" for key in teacher_summary.unknown]

        building.rename(out)
    except ValueError as error:
        message = str(error)
        if not message.startswith(str(file)):
            message = f"{file}: {message}"
        raise InputError(message) from error
    except (OSError, SafetensorError) as error:
        raise InputError(f"{out}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return summary


def read_checkpoint(path: Path) -> StateDict:
    """Reads the state dict in a .pt, .pth, .bin or .safetensors file, without training state and
    `module.` prefixes.

    Unpickles tensors and plain values only. Raises ValueError with a one-line message if the file
    contains code, is not readable, or has no weights.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file, or not a regular file")
    try:
        content: Any
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path}: refused: this file is not a plain checkpoint, it contains code; ask its "
            "author for the state dict only"
        ) from error
    except Exception as error:  # a truncated zip file, a text file: torch raises many types
        raise ValueError(f"{path}: not readable as a checkpoint: {one_line(error)}") from error

    # Training scripts nest the state dict under one of these keys, beside the optimizer's state.
    for key in ("model", "state_dict", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]

    weights = {}
    if isinstance(content, dict):
        for key, value in content.items():
            if isinstance(value, Tensor):
                # `module.`: of a checkpoint of the DDP wrapper.
                weights[str(key).removeprefix("module.")] = value
    if not weights:
        raise ValueError(f"{path}: contains no weights")
    return weights


def split_prompter(state: StateDict) -> tuple[StateDict, StateDict]:
    """Splits a pre-training checkpoint into the weights of the model and those of its prompter
    (possibly empty)."""
    model = {}
    prompter = {}
    for key, value in state.items():
        if key.startswith("prompter."):
            prompter[key.removeprefix("prompter.")] = value
        else:
            model[key] = value
    return model, prompter


def build(
    state: StateDict,
    task: Task,
    tokenizer: Tokenizer,
    words: Path | None,
    max_text_tokens: int | None,
) -> tuple[ModelBundle, Imported]:
    """Builds the model of a task from official weights. Raises ValueError if they do not match."""
    prompts = prompt_features(state)
    config = sizes(state)

    limit = config.text.max_length // 8 * 8  # texts are padded to a multiple of 8
    if max_text_tokens is None:
        max_text_tokens = min(MAX_TEXT_TOKENS[task], limit)
    if not 4 <= max_text_tokens <= limit:
        raise InputError(
            f"--max-text-tokens {max_text_tokens} must be from 4 to {limit}, the limit of this "
            f"text "
            "encoder"
        )
    if tokenizer.get_vocab_size() != config.text.vocab_size:
        raise ValueError(
            f"{config.text.vocab_size} word embeddings, but the tokenizer has "
            f"{tokenizer.get_vocab_size()} pieces; set --tokenizer to the one it was trained with"
        )

    model_state = {key: value for key, value in state.items() if not key.endswith("prompt_feat")}
    weights, unused, unknown = from_official(model_state, config)

    entities: list[str] = []
    answers: list[str] = []
    if task == "prompter" and "video" in prompts:
        entities = read_labels(words, len(prompts["video"]), "entity")
    elif task == "pretrain":
        entities = read_labels(words, outputs(weights, "pem_head", task), "entity")
    elif task == "qa":
        answers = read_labels(words, outputs(weights, "qa_head", task), "answer")

    model: DualEncoder
    if task == "prompter":
        model = Prompter(config)
    else:
        model = Alpro(config, entities=len(entities), answers=len(answers))

    expected = model.state_dict()
    ignored = UNUSED_PREFIXES[task]
    unused += [key for key in weights if key not in expected and key.startswith(ignored)]
    weights = {key: value for key, value in weights.items() if key not in unused}
    check_weights(weights, model, f"this checkpoint as --task {task}")
    # The tensors themselves: copies would take the memory twice.
    model.load_state_dict(weights, assign=True)

    bundle = ModelBundle(
        task,
        model.eval(),
        tokenizer,
        preprocessing=Preprocessing(max_text_tokens=max_text_tokens),
        entities=entities,
        answers=answers,
    )
    return bundle, Imported(len(weights) + len(prompts), unused, unknown, config)


def sizes(state: StateDict) -> ModelConfig:
    """The sizes of a model, from the shapes of its official weights. Raises ValueError if they are
    not ALPRO's.

    Shapes do not determine the number of attention heads: it is one per 64 channels, as in ViT and
    BERT.
    """
    visual = "visual_encoder.model."
    text = "text_encoder."
    if f"{text}bert.embeddings.word_embeddings.weight" in state:
        text += "bert."  # not in question answering

    def layers(prefix: str) -> int:
        numbers = set()
        for key in state:
            if key.startswith(prefix):
                number, _, _ = key.removeprefix(prefix).partition(".")
                numbers.add(number)
        return len(numbers)

    try:
        width, _, patch, _ = state[f"{visual}patch_embed.proj.weight"].shape
        _, positions, _ = state[f"{visual}pos_embed"].shape
        _, frames, _ = state[f"{visual}time_embed"].shape
        words, _ = state[f"{text}embeddings.word_embeddings.weight"].shape
        max_length, _ = state[f"{text}embeddings.position_embeddings.weight"].shape
        embed_dim, _ = state["vision_proj.weight"].shape
        video_mlp, _ = state[f"{visual}blocks.0.mlp.fc1.weight"].shape
        text_mlp, _ = state[f"{text}encoder.layer.0.intermediate.dense.weight"].shape

        heads = max(1, width // 64)
        depth = layers(f"{text}encoder.layer.")
        return ModelConfig(
            video=VideoConfig(
                image_size=grid_side(positions) * patch,
                patch_size=patch,
                frames=frames,
                width=width,
                depth=layers(f"{visual}blocks."),
                heads=heads,
                mlp_ratio=video_mlp / width,
            ),
            text=TextConfig(
                vocab_size=words,
                width=width,
                depth=depth,
                fusion_layer=depth // 2,
                heads=heads,
                mlp_ratio=text_mlp / width,
                max_length=max_length,
            ),
            embed_dim=embed_dim,
        )
    # A missing key, another shape, a size.
    except (KeyError, ValueError, ZeroDivisionError) as error:
        raise ValueError(f"not the weights of ALPRO's official code ({one_line(error)})") from error


def from_official(state: StateDict, config: ModelConfig) -> tuple[StateDict, list[str], list[str]]:
    """Converts an official state dict of one model (without the `prompter.` prefix) to this
    project's keys.

    Returns the weights, the known but unused keys, and the unknown keys.
    """
    weights: StateDict = {}
    unused: list[str] = []
    unknown: list[str] = []
    # By the name of a matrix of queries, keys and values, these three.
    stacks: dict[str, dict[int, Tensor]] = {}
    for key, value in state.items():
        if any(re.search(pattern, key) for pattern in UNUSED):
            unused.append(key)
            continue

        match = _LAYER.match(key)
        if match is None:
            renamed = _rename(key)
            if renamed:
                weights[renamed] = value
            else:
                unknown.append(key)
            continue

        # The first layers of the BERT are the text encoder, the others the multimodal encoder.
        depth = int(match[1])
        name = match[2]
        kind = match[3]
        fusion_depth = depth - config.text.fusion_layer
        if fusion_depth < 0:
            layer = f"text_encoder.layers.{depth}"
        else:
            layer = f"multimodal_encoder.layers.{fusion_depth}"

        if name in _QKV:
            stack = stacks.setdefault(f"{layer}.attention.qkv.{kind}", {})
            stack[_QKV.index(name)] = value
        elif name in _IN_LAYER:
            weights[f"{layer}.{_IN_LAYER[name]}.{kind}"] = value
        else:
            unknown.append(key)

    # One matrix of queries, keys and values, in that order; three of different shapes fit no layer.
    for name, stack in stacks.items():
        shapes = {tensor.shape for tensor in stack.values()}
        if len(shapes) == 1 and len(stack) == 3:
            in_order = [stack[i] for i in range(3)]
            weights[name] = torch.cat(in_order)
        else:
            unknown.append(name)
    return weights, unused, unknown


def _rename(key: str) -> str:
    key = key.replace("text_encoder.bert.", "text_encoder.", 1)
    for ours, theirs in _PREFIXES:
        # An entry that ends with a dot is a prefix, any other a whole key.
        is_prefix = theirs.endswith(".")
        if key == theirs or (is_prefix and key.startswith(theirs)):
            return ours + key.removeprefix(theirs)
    return ""


def outputs(weights: StateDict, head: str, task: str) -> int:
    """Number of outputs of a head. Raises ValueError if the checkpoint does not have it."""
    last_bias = f"{head}.2.bias"
    if last_bias not in weights:
        raise ValueError(
            f"no {head}, which --task {task} needs; choose the --task of this checkpoint"
        )
    return len(weights[last_bias])


def read_labels(file: Path | None, size: int, what: str) -> list[str]:
    """The labels of a head in order; numbered if `file` is None. Raises InputError if their number
    is another."""
    if file is None:
        return [f"{what} {index}" for index in range(size)]
    words = read_word_list(file, "--words")
    if len(words) != size:
        raise InputError(
            f"--words {file}: {len(words)} words, but the checkpoint's head has {size}"
        )
    return words


def prompt_features(state: StateDict) -> dict[str, Tensor]:
    """The prompt embeddings (M, E) of a prompter's checkpoint by kind, if any."""
    prompts = {}
    for kind in ("video", "image"):
        key = f"{kind}_prompt_feat"
        if key in state:
            prompts[kind] = state[key]
    return prompts


def save_prompts(state: StateDict, folder: Path) -> None:
    """Writes prompts.safetensors in the format of cache_prompts if the checkpoint has prompt
    embeddings."""
    prompts = {kind: value.contiguous() for kind, value in prompt_features(state).items()}
    if prompts:
        write_tensors(prompts, folder / "prompts.safetensors")
