"""Import checkpoints of the authors' code (.pt) as model folders: `alpro model import`.

Official checkpoints store the text and multimodal encoders as one 12-layer BERT
(`text_encoder.bert.*`, for question answering `text_encoder.*`) and contain unused tensors.
`weights.OFFICIAL` maps their names.
"""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tokenizers import Tokenizer
from torch import Tensor

from alpro.errors import InputError
from alpro.files import new_folder
from alpro.models.alpro import Alpro, ModelConfig
from alpro.models.folder import (
    ModelBundle,
    Preprocessing,
    Task,
    build_model,
    write_tensors,
)
from alpro.models.weights import (
    OFFICIAL,
    StateDict,
    convert,
    load_weights,
    meta_device,
    read_weights,
    select_prefix,
    split_bert,
)
from alpro.models.word_pieces import load_tokenizer
from alpro.models.words import read_word_list

PAPER = ModelConfig()  # all published checkpoints have these sizes
PROMPTER = "prompter."  # prefix of the prompter's weights in a pre-training checkpoint
# Maximum text length in tokens in the official configurations; DiDeMo retrieval uses 50.
MAX_TEXT_TOKENS = {"pretrain": 30, "retrieval": 40, "qa": 40, "prompter": 30}


@dataclass
class Imported:
    """A model from an official checkpoint.

    Attributes:
        unknown: Names of tensors that belong to no ALPRO model.
    """

    bundle: ModelBundle
    unknown: list[str]


def import_checkpoint(
    file: Path,
    out: Path,
    task: Task,
    tokenizer: str,
    words: Path | None = None,
    max_text_tokens: int | None = None,
    sizes: ModelConfig = PAPER,
) -> list[Imported]:
    """Convert an official checkpoint to the model folder `out`.

    The prompter in a pre-training checkpoint is written to `out`/prompter.

    Args:
        tokenizer: As in `load_tokenizer`.
        words: Entities (pretrain, prompter) or answers (qa) in the order of the head, as in
            `read_word_list`. If omitted, labels are numbered.
        max_text_tokens: Maximum length of a text; by default the task's MAX_TEXT_TOKENS.
        sizes: Sizes of the model except its number of frames; by default the paper's.

    Returns:
        The model, and the prompter in it, if any.

    Raises:
        InputError: If the checkpoint was not saved for this task. No file is left.
    """
    make = partial(
        build,
        tokenizer=load_tokenizer(tokenizer),
        words=words,
        max_text_tokens=max_text_tokens,
        sizes=sizes,
    )
    with new_folder(out) as building:
        try:
            state = read_weights(file)
            prompter = select_prefix(state, PROMPTER)
            if task == "prompter":
                state = prompter or state
            models = {building: make(state, task)}
            if task == "pretrain" and prompter:
                models[building / "prompter"] = make(prompter, "prompter")
        except ValueError as error:
            reason = str(error).removeprefix(f"{file}: ")
            raise InputError(f"{file}: {reason}") from error

        for folder, imported in models.items():
            bundle = imported.bundle
            bundle.save_pretrained(folder)
            if bundle.prompts:  # as cache_prompts writes them
                write_tensors(bundle.prompts, folder / "prompts.safetensors")
    return list(models.values())


def build(
    state: StateDict,
    task: Task,
    tokenizer: Tokenizer,
    words: Path | None,
    max_text_tokens: int | None,
    sizes: ModelConfig,
) -> Imported:
    """Build the model of a task from official weights. Raise ValueError if they do not match."""
    text = sizes.text
    weights = convert(state, (*OFFICIAL, *split_bert(text.fusion_layer, text.depth)))
    times = weights.get("video_encoder.time_embed", torch.zeros(0))
    if times.dim() != 3:
        raise ValueError("not the weights of ALPRO's official code: no time_embed")
    config = sizes.with_frames(times.shape[1])

    limit = text.max_length // 8 * 8  # texts are padded to a multiple of 8
    length = max_text_tokens or min(MAX_TEXT_TOKENS[task], limit)
    if not 4 <= length <= limit:
        raise InputError(
            f"--max-text-tokens {length} must be from 4 to {limit}, the limit of this text encoder"
        )
    tokens = tokenizer.get_vocab_size()
    if tokens != text.vocab_size:
        raise ValueError(
            f"{text.vocab_size} word embeddings, but the tokenizer has {tokens} tokens; set "
            "--tokenizer to the one it was trained with"
        )

    entities: list[str] = []
    answers: list[str] = []
    if task == "qa":
        answers = read_labels(words, weights.get("qa_head.2.bias"), "answer")
    elif task == "pretrain":
        entities = read_labels(words, weights.get("pem_head.2.bias"), "entity")
    elif "prompts.video" in weights:
        entities = read_labels(words, weights["prompts.video"], "entity")

    with meta_device():
        model = build_model(task, config, len(entities), len(answers))
        all_parts = Alpro(config, entities=1, answers=1)
    parts = model.state_dict()
    used = {name: value for name, value in weights.items() if name in parts}
    load_weights(model, used, f"--task {task}")

    prompts = select_prefix(weights, "prompts.")
    bundle = ModelBundle(
        task,
        model.eval(),
        tokenizer,
        preprocessing=Preprocessing(max_text_tokens=length),
        entities=entities,
        answers=answers,
        prompts={kind: value.contiguous() for kind, value in prompts.items()},
    )
    unknown = weights.keys() - all_parts.state_dict().keys()
    return Imported(bundle, sorted(unknown - {"prompts.video", "prompts.image"}))


def read_labels(file: Path | None, rows: Tensor | None, what: str) -> list[str]:
    """Read the labels of a head in order, or number them if `file` is None.

    Args:
        rows: Tensor of the checkpoint with a row for each label.

    Raises:
        InputError: If the file has another number of labels.
        ValueError: If the checkpoint has no such head.
    """
    if rows is None:
        raise ValueError(
            f"it has no head for {what} labels; choose the --task of this checkpoint"
        )
    words = [f"{what} {index}" for index in range(len(rows))]
    if file:
        words = read_word_list(file, "--words")
    if len(words) != len(rows):
        raise InputError(
            f"--words {file}: {len(words)} words, but the checkpoint's head has {len(rows)}"
        )
    return words
