"""The authors' released checkpoints (.pt) as model folders: `alpro import-checkpoint`."""

import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from alpro.errors import InputError
from alpro.models.alpro import Alpro, DualEncoder, ModelConfig, Prompter
from alpro.models.folder import ModelFolder, Preprocessing, check_weights
from alpro.models.official import WEIGHT_FILES, Weights, from_official, read_checkpoint, sizes, split_prompter
from alpro.stages.vocabulary.word_lists import read_word_list
from alpro.stages.vocabulary.word_pieces import load_tokenizer

Task = Literal["pretrain", "retrieval", "qa", "prompter"]
# Word pieces of a text in the official configurations; DiDeMo's retrieval alone has 50.
MAX_TEXT_TOKENS = {"pretrain": 30, "retrieval": 40, "qa": 40, "prompter": 30}
# What official checkpoints hold although the model of the task does not read it.
NEEDLESS = {
    "pretrain": (),
    "retrieval": ("mlm_head.", "pem_head."),
    "qa": ("mlm_head.", "pem_head."),
    "prompter": ("multimodal_encoder.", "mlm_head.", "vtm_head.", "pem_head."),
}


@dataclass
class Imported:
    """What was found in a checkpoint: tensors read, those that nothing reads, those unknown; and remarks."""

    read: int
    unused: list[str]
    unknown: list[str]
    config: ModelConfig
    remarks: list[str] = field(default_factory=list)


def import_checkpoint(
    file: Path,
    out: Path,
    task: Task,
    tokenizer: str,
    words: Path | None = None,
    max_text_tokens: int | None = None,
) -> Imported:
    """Writes the model folder `out` from an official checkpoint; of a pre-training one also `out`/prompter.

    tokenizer: as in `load_tokenizer`. words: the entities (pretrain, prompter) or answers (qa) in the order of the
    head, as a JSON list, a JSON object of word to number, or lines of text; without it they are numbered.
    max_text_tokens: maximum word pieces of a text; None: the task's MAX_TEXT_TOKENS. Raises InputError, and leaves
    nothing behind, if the checkpoint is not one of this task or the folder cannot be written.
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
        folder, found = build(own, task, loaded, words, max_text_tokens)
        shutil.rmtree(building, ignore_errors=True)
        folder.save_pretrained(building)
        save_prompts(own, building)
        if task == "pretrain" and prompter:
            teacher, about = build(prompter, "prompter", loaded, words, max_text_tokens)
            teacher.save_pretrained(building / "prompter")
            save_prompts(prompter, building / "prompter")
            found.read += about.read
            found.unused += [f"prompter.{key}" for key in about.unused]
            found.unknown += [f"prompter.{key}" for key in about.unknown]
        building.rename(out)
    except ValueError as error:
        raise InputError(str(error) if str(error).startswith(str(file)) else f"{file}: {error}") from error
    except (OSError, SafetensorError) as error:
        raise InputError(f"{out}: cannot be written: {error}") from error
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return found


def build(
    state: Weights, task: Task, tokenizer: Tokenizer, words: Path | None, max_text_tokens: int | None
) -> tuple[ModelFolder, Imported]:
    """The model of a task with official weights, and what was found. Raises ValueError where they do not fit."""
    prompts = prompt_features(state)
    config = sizes(state)
    most = config.text.max_length // 8 * 8  # texts are padded to a multiple of 8
    if max_text_tokens is None:
        max_text_tokens = min(MAX_TEXT_TOKENS[task], most)
    if not 4 <= max_text_tokens <= most:
        raise InputError(
            f"--max-text-tokens {max_text_tokens}: it must be from 4 to {most}, as this text encoder takes"
        )
    weights, unused, unknown = from_official({k: v for k, v in state.items() if not k.endswith("prompt_feat")}, config)
    found = Imported(len(weights) + len(prompts), unused, unknown, config)
    labels: list[str] = []
    model: DualEncoder
    if task == "prompter":
        labels = read_words(words, len(prompts["video"]), "entity", found) if "video" in prompts else []
        model = Prompter(config)
    elif task == "qa":
        labels = read_words(words, head_size(weights, "qa_head", task), "answer", found)
        model = Alpro(config, answers=len(labels))
    else:
        size = head_size(weights, "pem_head", task) if task == "pretrain" else 0
        labels = read_words(words, size, "entity", found) if size else []
        model = Alpro(config, entities=len(labels))
    needless = [key for key in weights if key not in model.state_dict() and key.startswith(NEEDLESS[task] or "-")]
    for key in needless:
        del weights[key]
    found.read -= len(needless)
    found.unused += needless
    check_weights(weights, model, f"this checkpoint as --task {task}")
    model.load_state_dict(weights, assign=True)
    if tokenizer.get_vocab_size() != config.text.vocab_size:
        raise ValueError(
            f"{config.text.vocab_size} word embeddings, but the tokenizer has {tokenizer.get_vocab_size()} pieces; "
            "give the right one with --tokenizer"
        )
    answers, entities = (labels, []) if task == "qa" else ([], labels)
    preprocessing = Preprocessing(max_text_tokens=max_text_tokens)
    return ModelFolder(task, model.eval(), tokenizer, preprocessing, entities, answers), found


def head_size(weights: Weights, head: str, task: str) -> int:
    """Outputs of a head, which this kind of checkpoint must have."""
    last = weights.get(f"{head}.2.bias")
    if last is None:
        present = "qa" if "qa_head.2.bias" in weights else "pretrain" if "pem_head.2.bias" in weights else "retrieval"
        raise ValueError(f"no {head} in it, which --task {task} needs; it looks like --task {present}")
    return len(last)


def prompt_features(state: Weights) -> dict[str, Tensor]:
    """The prompt embeddings (M, E) that a prompter's checkpoint may hold, by kind."""
    kinds = ("video", "image")
    return {kind: state[f"{kind}_prompt_feat"] for kind in kinds if f"{kind}_prompt_feat" in state}


def save_prompts(state: Weights, folder: Path) -> None:
    """prompts.safetensors, as cache_prompts writes it, where there are prompt embeddings."""
    if prompts := prompt_features(state):
        save_file({kind: value.contiguous() for kind, value in prompts.items()}, folder / "prompts.safetensors")


def read_words(file: Path | None, size: int, what: str, found: Imported) -> list[str]:
    """The words of a head in its order; numbered names, with a remark, where none are given."""
    if file is None:
        found.remarks.append(f"{size} {what} names are not in the checkpoint: numbered; give them with --words")
        return [f"{what} {number}" for number in range(size)]
    words = read_word_list(file, "--words")
    if len(words) != size:
        raise InputError(f"--words {file}: {len(words)} words, but the checkpoint's head has {size}")
    return words
