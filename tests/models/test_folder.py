"""Model folders: saving and loading, errors for invalid files, and starting from another model."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch.overrides import TorchFunctionMode

from alpro.errors import InputError
from alpro.models.alpro import Alpro, ModelConfig, Prompter
from alpro.models.folder import (
    ModelBundle,
    Preprocessing,
    build_model,
    is_clip,
    load_clip_model,
    start_from,
)
from alpro.models.word_pieces import MAX_TOKENIZER_BYTES
from tests.conftest import one_line
from tests.models.conftest import near

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
TOKENIZER = "tokenizer.json"
ENTITIES = ["dog", "café", "雪"]
ANSWERS = ["yes", "no"]


@pytest.fixture
def tokenizer():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "café"]
    tokenizer = Tokenizer(
        WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer


@pytest.fixture
def saved(tiny, tokenizer, tmp_path):
    bundle = ModelBundle(
        "pretrain", Alpro(tiny, len(ENTITIES)), tokenizer, entities=ENTITIES
    )
    bundle.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def resized(config, **video):
    return config.model_copy(update={"video": config.video.model_copy(update=video)})


# Saving and loading.


@pytest.mark.parametrize("task", ["prompter", "pretrain", "retrieval", "qa"])
def test_a_saved_model_is_loaded_unchanged(task, tiny, tokenizer, tmp_path):
    entities = ENTITIES if task == "pretrain" else []
    answers = ANSWERS if task == "qa" else []
    model = build_model(task, tiny, len(entities), len(answers))
    preprocessing = Preprocessing(
        mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), max_text_tokens=9
    )
    bundle = ModelBundle(task, model, tokenizer, preprocessing, entities, answers)
    bundle.save_pretrained(tmp_path / "deep" / "model")

    loaded = ModelBundle.from_pretrained(tmp_path / "deep" / "model")

    assert loaded.task == task
    assert loaded.preprocessing == preprocessing
    assert loaded.entities == entities
    assert loaded.answers == answers
    assert isinstance(loaded.model, type(model))
    assert loaded.model.config == tiny
    assert not loaded.model.training
    assert loaded.tokenizer.encode("a café bird").ids == [5, 7, 1]

    loaded.save_pretrained(tmp_path / "again")
    for file in (tmp_path / "deep" / "model").iterdir():
        assert (tmp_path / "again" / file.name).read_bytes() == file.read_bytes()


def test_all_files_have_the_mode_of_new_files(saved):
    """Those of safetensors alone would be readable by their owner only."""
    assert len({path.stat().st_mode for path in saved.iterdir()}) == 1


def test_loading_draws_no_random_number_and_is_not_changed_with_the_file(saved):
    before = torch.random.get_rng_state()
    weights = load_file(saved / WEIGHTS)

    loaded = ModelBundle.from_pretrained(saved).model.state_dict()
    with (saved / WEIGHTS).open("r+b") as file:
        file.write(b"\0" * file.seek(0, os.SEEK_END))

    assert torch.equal(torch.random.get_rng_state(), before)
    near(dict(loaded), weights, atol=0)


def test_weights_of_half_precision_become_float32(saved):
    weights = load_file(saved / WEIGHTS)
    save_file(
        {name: value.bfloat16() for name, value in weights.items()}, saved / WEIGHTS
    )

    loaded = ModelBundle.from_pretrained(saved).model.state_dict()

    near(dict(loaded), weights, atol=1e-2)  # their types are equal


# Folders that are damaged, or of a stranger.


def load_any(folder):
    return (
        ModelBundle.from_pretrained(folder)
        if folder.name == "model"
        else load_clip_model(str(folder))
    )


def refused(folder, message=""):
    """The error is a line that names the folder."""
    with one_line(str(folder), message, of=(ValueError, InputError)):
        load_any(folder)


def set_value(folder, *keys, to, file=CONFIG):
    """Sets a value of a JSON file."""
    values = inner = json.loads((folder / file).read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    (folder / file).write_text(json.dumps(values))


def weights_file(folder):
    """The weights of a model, which may be in a pickle."""
    return next(
        file for file in folder.iterdir() if file.name in (WEIGHTS, "pytorch_model.bin")
    )


def set_weights(folder, change):
    """change(the weights, the name of the last matrix)"""
    file = weights_file(folder)
    safe = file.suffix == ".safetensors"
    weights = load_file(file) if safe else torch.load(file)
    change(
        weights, next(name for name in reversed(weights) if weights[name].dim() == 2)
    )
    save_file(weights, file, {"format": "pt"}) if safe else torch.save(weights, file)


@pytest.fixture(params=["alpro", "clip", "siglip", "pickled"])
def folder(request, saved, clip_folders, tmp_path):
    """A folder of each kind of model, to damage."""
    if request.param == "alpro":
        return saved
    return shutil.copytree(clip_folders[request.param], tmp_path / request.param)


def set_size(folder, ours, theirs, to):
    """Sets a size in the config.json of this project, or of transformers."""
    keys = ("model", *ours.split(".")) if folder.name == "model" else theirs.split(".")
    set_value(folder, *keys, to=to)


def set_layers(folder, count):
    set_size(folder, "video.depth", "vision_config.num_hidden_layers", count)


def set_words(folder, count):
    set_size(folder, "text.vocab_size", "text_config.vocab_size", count)


NEW_TOKEN = ("model", "vocab", "zz")
DAMAGES = {
    "a weight is infinite": lambda f: set_weights(
        f, lambda w, last: w[last][0].fill_(torch.inf)
    ),
    "a weight is missing": lambda f: set_weights(f, lambda w, last: w.pop(last)),
    "a weight of another shape": lambda f: set_weights(
        f, lambda w, last: w[last].resize_(3, 3)
    ),
    "a token without a weight": lambda f: set_value(
        f, *NEW_TOKEN, to=9_999, file=TOKENIZER
    ),
    "too many layers": lambda f: set_layers(f, 10**7),
    "more layers than weights": lambda f: set_layers(f, 3),
    "fewer layers than weights": lambda f: set_layers(f, 1),
    "too many words": lambda f: set_words(f, 10**13),
    "code instead of weights": lambda f: torch.save({"a": Path()}, weights_file(f)),
    "truncated weights": lambda f: os.truncate(weights_file(f), 500),
    "no config": lambda f: (f / CONFIG).unlink(),
    "no weights": lambda f: weights_file(f).unlink(),
    "no tokenizer": lambda f: (f / TOKENIZER).unlink(),
    "no JSON": lambda f: (f / CONFIG).write_text("{"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_folder_is_refused_in_a_line(folder, damage):
    DAMAGES[damage](folder)

    refused(folder)


class Allocations(TorchFunctionMode):
    """Notes the size of the largest tensor that is made."""

    largest = 0

    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and not result.is_meta:
            self.largest = max(self.largest, result.numel())
        return result


@pytest.mark.parametrize(
    ("grow", "size"),
    [
        (set_words, 1_500_000),
        (set_layers, 60),
    ],
)
def test_no_memory_is_taken_for_the_sizes_of_a_stranger(folder, grow, size):
    grow(folder, size)

    with Allocations() as allocations:
        refused(folder)

    assert allocations.largest < 10**6


def test_integers_are_no_weights(saved):
    set_weights(saved, lambda w, last: w.update(temperature=torch.tensor(1)))

    refused(saved, "temperature (torch.int64)")


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_the_config_of_a_clip_names_no_code_of_the_hub(kind, clip_folders, tmp_path):
    folder = shutil.copytree(clip_folders[kind], tmp_path / kind)
    for keys in ((), ("text_config",), ("vision_config",)):
        for name in ("attn_implementation", "_attn_implementation"):
            set_value(folder, *keys, name, to="nobody/kernel")

    config = load_clip_model(str(folder)).model.clip.config

    for part in (config.text_config, config.vision_config):
        assert part._attn_implementation == "sdpa"


def test_another_model_of_transformers_is_no_clip(clip_folders, tmp_path):
    folder = shutil.copytree(clip_folders["clip"], tmp_path / "bert")
    set_value(folder, "model_type", to="bert")

    assert not is_clip(folder)
    refused(folder, "this is a bert, not a clip or siglip")


NESTED = "[" * 100_000
INVALID = [
    (CONFIG, '{"task": "qa", "model": {"a": 1}}', "config.json: model.a: Extra"),
    (CONFIG, NESTED, "config.json: not readable"),
    ("entities.json", '{"dog": 1}', "entities.json: not a list of strings"),
    ("entities.json", json.dumps(ENTITIES[:2]), "size mismatch for pem_head.2"),
    (TOKENIZER, NESTED, "tokenizer.json: not readable"),
    (TOKENIZER, " " * (MAX_TOKENIZER_BYTES + 1), "larger than 33,554,432 bytes"),
    (TOKENIZER, '{"model": {"type": "WordLevel"}}', "tokenizer.json: not readable"),
]


@pytest.mark.parametrize(("name", "content", "message"), INVALID)
def test_an_invalid_file_is_named(name, content, message, saved):
    (saved / name).write_text(content)

    refused(saved, message)


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (("preprocessing", "mean"), [float("nan"), 0.5, 0.5], "preprocessing.mean.0"),
        (("model", "video", "frames"), 3, "current model is torch.Size([1, 3, 16])"),
        (("model", "video", "frames"), 10**12, "model.video.frames"),
    ],
)
def test_a_size_that_is_not_that_of_the_weights_is_named(keys, value, message, saved):
    set_value(saved, *keys, to=value)

    refused(saved, message)


# Starting from another model.


@pytest.mark.parametrize(
    "other", ["prompter", "other labels", "equal number of labels"]
)
def test_starting_from_another_model_copies_what_both_have_but_heads_of_other_labels(
    other, tiny
):
    others = {
        "prompter": (Prompter(tiny), ()),
        "other labels": (Alpro(tiny, entities=4, answers=2), ()),
        "equal number of labels": (Alpro(tiny, entities=3), ("pem_head.2",)),
    }
    source, excluded = others[other]
    model = Alpro(tiny, entities=3)
    before = {key: value.clone() for key, value in model.state_dict().items()}

    start_from(model, source, excluded)

    theirs = source.state_dict()
    unchanged = {"pem_head.2.bias", "pem_head.2.weight"} | (
        before.keys() - theirs.keys()
    )
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key] if key in unchanged else theirs[key]), key


@pytest.mark.parametrize(
    ("old_frames", "frames"),
    [
        (2, [0, 0, 1, 1]),
        (4, [0, 2]),
        (3, [0, 0, 1, 1, 2]),
    ],
)
def test_the_time_embedding_of_a_frame_is_the_nearest_earlier_one(
    old_frames, frames, tiny
):
    """Frame i is frame floor(i * old frames / new frames)."""
    old = Prompter(resized(tiny, frames=old_frames))
    new = Prompter(resized(tiny, frames=len(frames)))

    start_from(new, old)

    assert torch.equal(
        new.video_encoder.time_embed, old.video_encoder.time_embed[:, frames]
    )


def test_the_position_embedding_is_interpolated_over_the_grid(tiny):
    old = Prompter(tiny)  # a grid of 4 x 4
    new = Prompter(resized(tiny, image_size=64))

    start_from(new, old)

    before = old.video_encoder.pos_embed[0]
    grid = before[1:].T.view(1, -1, 4, 4)
    larger = torch.nn.functional.interpolate(grid, size=(8, 8), mode="bicubic")
    after = new.video_encoder.pos_embed[0]
    near(after[:1], before[:1])  # [CLS] is not part of the grid
    near(after[1:], larger[0].flatten(1).T)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video": {"heads": 1}}, "video.heads is 2; set it to 1"),
        (
            {"video": {"activation": "quick_gelu"}},
            "video.activation is gelu; set it to quick_gelu",
        ),
        ({"text": {"fusion_layer": 1}}, "text.fusion_layer is 2; set it to 1"),
        ({"embed_dim": 12}, "model.embed_dim is 8; set it to 12"),
    ],
)
def test_another_kind_of_encoder_is_refused_in_one_line(changes, message, tiny):
    values = tiny.model_dump()
    for key, value in changes.items():
        values[key] = values[key] | value if isinstance(value, dict) else value
    other = Prompter(ModelConfig.model_validate(values))

    with one_line(message, of=ValueError):
        start_from(Prompter(tiny), other)
