"""Converts the authors' released checkpoints (.pt) to model folders: `alpro model import`."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError
from tokenizers import Tokenizer
from torch import Tensor

from alpro.errors import InputError
from alpro.models.alpro import Alpro, DualEncoder, ModelConfig, Prompter
from alpro.models.folder import ModelFolder, Preprocessing, check_weights, write_tensors
from alpro.models.official import WEIGHT_FILES, StateDict, from_official, read_checkpoint, sizes, split_prompter
from alpro.models.word_lists import read_word_list
from alpro.models.word_pieces import load_tokenizer

Task = Literal["pretrain", "retrieval", "qa", "prompter"]
# Text lengths of the official configurations in tokens; DiDeMo retrieval is the exception with 50.
MAX_TEXT_TOKENS = {"pretrain": 30, "retrieval": 40, "qa": 40, "prompter": 30}
# Prefixes of weights that official checkpoints contain but the model of the task does not have.
UNUSED_PREFIXES = {
    "pretrain": (),
    "retrieval": ("mlm_head.", "pem_head."),
    "qa": ("mlm_head.", "pem_head."),
    "prompter": ("multimodal_encoder.", "mlm_head.", "vtm_head.", "pem_head."),
}


@dataclass
class Imported:
    """Summary of a conversion: number of converted tensors, unused keys, unknown keys, configuration and remarks."""

    read: int
    unused: list[str]
    unknown: list[str]
    config: ModelConfig
    remarks: list[str] = field(default_factory=list)


def import_checkpoint(
    file: Path, out: Path, task: Task, tokenizer: str, words: Path | None = None, max_text_tokens: int | None = None
) -> Imported:
    """Converts an official checkpoint to the model folder `out`; for a pre-training one also writes `out`/prompter.

    tokenizer: as in `load_tokenizer`. words: the entities (pretrain, prompter) or answers (qa) in the order of the
    head, as a JSON list, a JSON object of word to index, or lines of text; without it they are numbered.
    max_text_tokens: maximum length of a text; None: the task's MAX_TEXT_TOKENS. Raises InputError, and leaves no files,
    if the checkpoint is not one of this task or the folder cannot be written.
    """
    if file.suffix not in WEIGHT_FILES:
        raise InputError(f"{file}: a checkpoint is a .pt, .pth, .bin or .safetensors file")
    building = out.parent / f".{out.name}.part"
    try:
        if out.exists():
            raise InputError(f"{out}: exists already; choose another folder or delete it")
        own, prompter = split_prompter(read_checkpoint(file))
        if task == "prompter" and prompter:
            own, prompter = prompter, {}
        loaded = load_tokenizer(tokenizer)
        folder, summary = build(own, task, loaded, words, max_text_tokens)
        shutil.rmtree(building, ignore_errors=True)
        folder.save_pretrained(building)
        save_prompts(own, building)
        if task == "pretrain" and prompter:
            teacher, prompter_summary = build(prompter, "prompter", loaded, words, max_text_tokens)
            teacher.save_pretrained(building / "prompter")
            save_prompts(prompter, building / "prompter")
            summary.read += prompter_summary.read
            summary.unused += [f"prompter.{key}" for key in prompter_summary.unused]
            summary.unknown += [f"prompter.{key}" for key in prompter_summary.unknown]
        building.rename(out)
    except ValueError as error:
        raise InputError(str(error) if str(error).startswith(str(file)) else f"{file}: {error}") from error
    except (OSError, SafetensorError) as error:
        raise InputError(f"{out}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return summary


def build(
    state: StateDict, task: Task, tokenizer: Tokenizer, words: Path | None, max_text_tokens: int | None
) -> tuple[ModelFolder, Imported]:
    """Builds the model of a task from official weights. Raises ValueError if they do not match."""
    prompts = prompt_features(state)
    config = sizes(state)
    limit = config.text.max_length // 8 * 8  # texts are padded to a multiple of 8
    if max_text_tokens is None:
        max_text_tokens = min(MAX_TEXT_TOKENS[task], limit)
    if not 4 <= max_text_tokens <= limit:
        raise InputError(
            f"--max-text-tokens {max_text_tokens} must be from 4 to {limit}, the limit of this text encoder"
        )
    weights, unused, unknown = from_official({k: v for k, v in state.items() if not k.endswith("prompt_feat")}, config)
    summary = Imported(len(weights) + len(prompts), unused, unknown, config)
    labels: list[str] = []
    model: DualEncoder
    if task == "prompter":
        labels = head_labels(words, len(prompts["video"]), "entity", summary) if "video" in prompts else []
        model = Prompter(config)
    elif task == "qa":
        labels = head_labels(words, head_size(weights, "qa_head", task), "answer", summary)
        model = Alpro(config, answers=len(labels))
    else:
        size = head_size(weights, "pem_head", task) if task == "pretrain" else 0
        labels = head_labels(words, size, "entity", summary) if size else []
        model = Alpro(config, entities=len(labels))
    unused_keys = [
        key for key in weights if key not in model.state_dict() and key.startswith(UNUSED_PREFIXES[task] or "-")
    ]
    for key in unused_keys:
        del weights[key]
    summary.read -= len(unused_keys)
    summary.unused += unused_keys
    check_weights(weights, model, f"this checkpoint as --task {task}")
    model.load_state_dict(weights, assign=True)
    if tokenizer.get_vocab_size() != config.text.vocab_size:
        raise ValueError(
            f"{config.text.vocab_size} word embeddings, but the tokenizer has {tokenizer.get_vocab_size()} pieces; "
            "set --tokenizer to the one it was trained with"
        )
    answers, entities = (labels, []) if task == "qa" else ([], labels)
    preprocessing = Preprocessing(max_text_tokens=max_text_tokens)
    return ModelFolder(task, model.eval(), tokenizer, preprocessing, entities, answers), summary


def head_size(weights: StateDict, head: str, task: str) -> int:
    """Number of outputs of a head. Raises ValueError if the checkpoint does not have it."""
    last = weights.get(f"{head}.2.bias")
    if last is None:
        present = "qa" if "qa_head.2.bias" in weights else "pretrain" if "pem_head.2.bias" in weights else "retrieval"
        raise ValueError(f"no {head}, which --task {task} needs; this looks like a checkpoint for --task {present}")
    return len(last)


def prompt_features(state: StateDict) -> dict[str, Tensor]:
    """The prompt embeddings (M, E) of a prompter's checkpoint by kind, if any."""
    kinds = ("video", "image")
    return {kind: state[f"{kind}_prompt_feat"] for kind in kinds if f"{kind}_prompt_feat" in state}


def save_prompts(state: StateDict, folder: Path) -> None:
    """Writes prompts.safetensors in the format of cache_prompts if the checkpoint has prompt embeddings."""
    if prompts := prompt_features(state):
        write_tensors({kind: value.contiguous() for kind, value in prompts.items()}, folder / "prompts.safetensors")


def head_labels(file: Path | None, size: int, what: str, summary: Imported) -> list[str]:
    """The labels of a head in order; numbered labels, with a remark, if `file` is None."""
    if file is None:
        summary.remarks.append(f"{size} {what} names are not in the checkpoint and are numbered; set them with --words")
        return [f"{what} {number}" for number in range(size)]
    words = read_word_list(file, "--words")
    if len(words) != size:
        raise InputError(f"--words {file}: {len(words)} words, but the checkpoint's head has {size}")
    return words
