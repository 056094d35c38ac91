"""Model folders: saving and loading, errors for invalid files, and starting from another model."""

import json
import math
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from alpro.errors import InputError
from alpro.models.alpro import Alpro, ModelConfig, Prompter
from alpro.models.clip_prompter import is_clip, load_clip
from alpro.models.folder import ModelBundle, Preprocessing, read_task, start_from
from alpro.models.word_pieces import MAX_TOKENIZER_BYTES, load_tokenizer
from tests.conftest import one_line

FILES = ("config.json", "model.safetensors", "tokenizer.json")
ENTITIES = ["dog", "café", "雪"]
ANSWERS = ["yes", "no"]


@pytest.fixture
def tokenizer() -> Tokenizer:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "dog", "café"]
    tokenizer = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    return tokenizer


@pytest.fixture
def saved(tiny: ModelConfig, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    folder = ModelBundle("pretrain", Alpro(tiny, len(ENTITIES)), tokenizer, entities=ENTITIES)
    folder.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def resized(config: ModelConfig, **video: int) -> ModelConfig:
    return config.model_copy(update={"video": config.video.model_copy(update=video)})


@pytest.mark.parametrize("task", ["prompter", "pretrain", "retrieval", "qa"])
def test_a_saved_model_is_loaded_unchanged(
    task, tiny: ModelConfig, tokenizer: Tokenizer, tmp_path: Path
):
    entities = ENTITIES if task == "pretrain" else []
    answers = ANSWERS if task == "qa" else []
    model = Prompter(tiny) if task == "prompter" else Alpro(tiny, len(entities), len(answers))
    preprocessing = Preprocessing(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6), max_text_tokens=9)
    ModelBundle(task, model, tokenizer, preprocessing, entities, answers).save_pretrained(
        tmp_path / "deep" / "model"
    )

    loaded = ModelBundle.from_pretrained(tmp_path / "deep" / "model")
    assert (loaded.task, loaded.preprocessing) == (task, preprocessing)
    assert (loaded.entities, loaded.answers) == (entities, answers)
    assert type(loaded.model) is type(model)
    assert loaded.model.config == tiny
    assert not loaded.model.training
    assert loaded.tokenizer.encode("a café bird").ids == [5, 7, 1]
    before = model.state_dict()
    after = loaded.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    loaded.save_pretrained(tmp_path / "again")
    first, again = (
        {p.name: p.read_bytes() for p in (tmp_path / name).iterdir()}
        for name in ("deep/model", "again")
    )
    assert first == again
    assert (
        len({path.stat().st_mode for path in (tmp_path / "again").iterdir()}) == 1
    )  # the weights, too


def load_any(folder: Path) -> ModelBundle:
    return ModelBundle.from_pretrained(folder) if folder.name == "model" else load_clip(str(folder))


def refused(folder: Path, message: str = "") -> None:
    """The error is a line that names the folder."""
    with one_line(str(folder), message, of=(ValueError, InputError)):
        load_any(folder)


def set_value(folder: Path, *keys: str, to: object, file: str = "config.json") -> None:
    """Sets a value of a JSON file."""
    values = inner = json.loads((folder / file).read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = to
    (folder / file).write_text(json.dumps(values))


def file_of(folder: Path, name: str) -> Path:
    """A file of a model, which may have its weights in a pickle."""
    return folder / (
        "pytorch_model.bin" if name == FILES[1] and not (folder / name).exists() else name
    )


def set_weights(folder: Path, change) -> None:
    """change(the weights, the name of the last matrix)"""
    safe = (file := file_of(folder, FILES[1])).suffix == ".safetensors"
    weights = load_file(file) if safe else torch.load(file)
    change(weights, next(name for name in reversed(weights) if weights[name].dim() == 2))
    save_file(weights, file, {"format": "pt"}) if safe else torch.save(weights, file)


@pytest.fixture(params=["alpro", "clip", "siglip", "pickled"])
def hostile(request, saved: Path, clip_folders, tmp_path: Path) -> Path:
    """A folder of each kind of model, to damage."""
    return (
        saved
        if request.param == "alpro"
        else shutil.copytree(clip_folders[request.param], tmp_path / request.param)
    )


def tower(folder: Path) -> tuple[str, ...]:
    return (
        ("model", "video", "depth")
        if folder.name == "model"
        else ("vision_config", "num_hidden_layers")
    )


def words(folder: Path) -> tuple[str, ...]:
    return (
        ("model", "text", "vocab_size") if folder.name == "model" else ("text_config", "vocab_size")
    )


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


DAMAGES = {
    **{
        f"a weight is {x}": lambda f, x=x: set_weights(f, lambda w, n: w[n][0].fill_(float(x)))
        for x in ("nan", "inf")
    },
    "a token without a weight": lambda f: set_value(
        f, "model", "vocab", "zz", to=9_999, file="tokenizer.json"
    ),
    "a weight is missing": lambda f: set_weights(f, lambda w, last: w.pop(last)),
    "a weight of another shape": lambda f: set_weights(
        f, lambda w, last: w.update({last: torch.zeros(3, 3)})
    ),
    "too many layers": lambda f: set_value(f, *tower(f), to=10**7),
    "too few layers": lambda f: set_value(f, *tower(f), to=1),
    "too many words": lambda f: set_value(f, *words(f), to=10**13),
    "no number of layers": lambda f: set_value(f, *tower(f), to="two"),
    "code instead of weights": lambda f: torch.save({"a": Path()}, file_of(f, FILES[1])),
    **{
        f"weights cut at {n}": lambda f, n=n: os.truncate(file_of(f, FILES[1]), n)
        for n in (0, 4, 500)
    },
    **{f"no {name}": lambda f, name=name: file_of(f, name).unlink() for name in FILES},
    **{f"{name} is a pipe": lambda f, name=name: pipe(file_of(f, name)) for name in FILES},
    **{
        f"{name} is not JSON": lambda f, name=name: (f / name).write_text("{")
        for name in (FILES[0], FILES[2])
    },
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_hostile_folder_is_refused_in_a_line(hostile: Path, damage: str, monkeypatch):
    """Sizes before memory is taken: the weights are not read. For each kind of model."""
    load_any(hostile)
    DAMAGES[damage](hostile)
    if damage.startswith("too many"):
        for reader in ("alpro.models.folder.load_file", "transformers.AutoModel.from_pretrained"):
            monkeypatch.setattr(reader, lambda *_, **__: pytest.fail("the weights were read"))
    refused(hostile)


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_what_the_config_of_a_clip_names_is_checked_or_not_used(clip_folders, tmp_path, kind):
    """The attention could be code from the hub."""
    for keys, value in (
        (("model_type",), "bert"),
        (("text_config", "eos_token_id"), 10**30),  # which a SigLIP does not use
        (("vision_config", "layer_norm_eps"), math.nan),
        (("vision_config", "attention_dropout"), 2.0),
    ):
        folder = shutil.copytree(clip_folders[kind], tmp_path / keys[-1] / kind)
        set_value(folder, *keys, to=value)
        (load_any if (kind, keys[-1]) == ("siglip", "eos_token_id") else refused)(folder)
        assert is_clip(folder) == (keys != ("model_type",))
    folder = shutil.copytree(clip_folders[kind], tmp_path / kind)
    for keys in ((), ("text_config",), ("vision_config",)):
        for name in ("attn_implementation", "_attn_implementation"):
            set_value(folder, *keys, name, to="nobody/kernel")
    config = load_clip(str(folder)).model.clip.config
    assert {part._attn_implementation for part in (config.text_config, config.vision_config)} == {
        "sdpa"
    }
    set_weights(folder, lambda weights, last: weights["logit_scale"].fill_(1e30))
    refused(folder, "logit_scale")


def test_an_invalid_file_is_named(saved: Path):
    nested = "[" * 100_000
    before = {file.name: file.read_bytes() for file in saved.iterdir()}
    for name, content, message in (
        *(
            ("config.json", text, "config.json: ")
            for text in ("", "null", '{"task": "qa", "model": {"a": 1}}')
        ),
        (
            "config.json",
            before["config.json"].decode().replace("0.48145466", "NaN"),
            "preprocessing.mean.0",
        ),
        (
            "config.json",
            before["config.json"].decode().replace("0.26862954", "0.0"),
            "preprocessing.std.0",
        ),
        ("entities.json", "[", "entities.json"),
        ("entities.json", '{"dog": 1}', "entities.json: not a list of strings"),
        ("entities.json", json.dumps(ENTITIES[:2]), "pem_head.2.bias is (3,), not (2,)"),
        *(
            (name, nested, f"{name}: not readable")
            for name in ("config.json", "entities.json", "tokenizer.json")
        ),
        ("tokenizer.json", " " * (MAX_TOKENIZER_BYTES + 1), "at most 33,554,432 are read"),
    ):
        (saved / name).write_text(content)
        refused(saved, message)
        if content == nested and name == "config.json":
            with pytest.raises(ValueError, match=r"config\.json"):
                read_task(saved)
        (saved / name).write_bytes(before[name])


def test_starting_from_another_model_copies_what_both_have_but_heads_of_other_labels(
    tiny: ModelConfig,
):
    same = Alpro(tiny, entities=3)  # as many, of which the caller knows that they are others
    for other, but in (
        (Prompter(tiny), ()),
        (Alpro(tiny, entities=4, answers=2), ()),
        (same, ("pem_head.2",)),
    ):
        model = Alpro(tiny, entities=3)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        start_from(model, other, but)
        theirs = other.state_dict()
        after = model.state_dict()
        kept = {"pem_head.2.bias", "pem_head.2.weight"} | (before.keys() - theirs.keys())
        for key, value in after.items():
            assert torch.equal(value, before[key] if key in kept else theirs[key]), key


@torch.no_grad()
def test_embeddings_are_resized_over_time_to_the_nearest_and_interpolated_over_the_grid(
    tiny: ModelConfig,
):
    # Frame i of the new is frame floor(i * frames of the old / frames of the new) of the old.
    for old_frames, frames in (
        (2, [0, 0, 1, 1]),
        (4, [0, 2]),
        (3, [0, 0, 1, 1, 2]),
        (4, [0, 1, 2, 3]),
    ):
        old = Prompter(resized(tiny, frames=old_frames))
        new = Prompter(resized(tiny, frames=len(frames)))
        start_from(new, old)
        assert torch.equal(new.video_encoder.time_embed, old.video_encoder.time_embed[:, frames])
        assert new.video_encoder(torch.randn(1, len(frames), 3, 32, 32)).shape == (1, 17, 16)
    old, new = (
        Prompter(tiny),
        Prompter(resized(tiny, image_size=64)),
    )  # a grid of 4 x 4 to one of 8 x 8
    start_from(new, old)
    before = old.video_encoder.pos_embed[0]
    after = new.video_encoder.pos_embed[0]
    grid = torch.nn.functional.interpolate(
        before[1:].T.view(1, -1, 4, 4), size=(8, 8), mode="bicubic"
    )
    torch.testing.assert_close(
        after, torch.cat([before[:1], grid[0].flatten(1).T])
    )  # [CLS] is not part of the grid


def test_starting_from_another_kind_of_encoder_is_refused_in_one_line(tiny: ModelConfig):
    values = tiny.model_dump()
    keys = [
        ("video", "heads", 1, 2),
        ("video", "depth", 1, 2),
        ("text", "heads", 1, 2),
        ("text", "fusion_layer", 1, 2),
    ]
    keys += [("video", "activation", "quick_gelu", "gelu")]  # which, like the heads, no shape shows
    cases = [
        ({part: {key: new}}, f"{part}.{key} is {old}; set it to {new}")
        for part, key, new, old in keys
    ]
    cases += [({"embed_dim": 12}, "text_proj.bias is (12,), not (8,)")]
    cases += [({"video": {"width": 24}, "text": {"width": 24}}, "weights of another shape")]
    for changes, message in cases:
        other = {
            key: values[key] | value if isinstance(value, dict) else value
            for key, value in changes.items()
        }
        with one_line(message, of=ValueError):
            start_from(Prompter(tiny), Prompter(ModelConfig.model_validate(values | other)))


def test_sizes_that_are_not_those_of_the_weights_are_named(saved: Path):
    config = (saved / "config.json").read_text()
    cases = [
        ("text", "depth", 10**9, "1000000000 layers"),
        ("video", "depth", 3, "video_encoder.blocks.2."),
    ]
    cases += [("video", "frames", 10**12, "time_embed is (1, 4, 16), not (1, 1000000000000, 16)")]
    cases += [
        ("video", "frames", 10**30, "cannot be built"),
        ("video", "image_size", 8 * 10**15, "cannot be built"),
    ]
    cases += [
        ("video", "mlp_ratio", 1e300, "cannot be built"),
        ("embed_dim", 10**13, "not (10000000000000, 16)"),
    ]
    for *keys, value, message in cases:
        (saved / "config.json").write_text(config)
        set_value(saved, "model", *keys, to=value)
        refused(saved, message)


def test_weights_of_another_type_are_refused_and_those_of_half_precision_are_not(saved: Path):
    weights = load_file(saved / "model.safetensors")
    save_file(
        weights | {"temperature": torch.tensor(1, dtype=torch.int32)}, saved / "model.safetensors"
    )
    refused(saved, "model.safetensors: temperature is I32")
    save_file(
        {key: value.bfloat16() for key, value in weights.items()}, saved / "model.safetensors"
    )
    loaded = ModelBundle.from_pretrained(saved).model.video_proj.weight
    assert loaded.dtype == torch.float32
    torch.testing.assert_close(loaded, weights["video_proj.weight"], atol=1e-3, rtol=1e-2)


REPLACE = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
LOOP = {"type": "Split", "pattern": {"Regex": "(a+)+$"}, "behavior": "Isolated", "invert": False}
MANY = [{"SpecialToken": {"id": "[CLS]", "type_id": 0}}] * 1000


def test_a_tokenizer_has_no_component_that_may_loop_or_grow_the_text(saved: Path):
    whole = (saved / "tokenizer.json").read_text()
    for key, value, message in (
        ("normalizer", REPLACE, "its normalizer is Replace"),
        (
            "normalizer",
            {"type": "Sequence", "normalizers": [REPLACE] * 60},
            "its normalizer is Replace",
        ),
        ("normalizer", {"type": "Prepend", "prepend": "a" * 1000}, "its normalizer is Prepend"),
        (
            "normalizer",
            {"type": "Sequence", "normalizers": [{"type": "NFC"}] * 1000},
            "its normalizer has 17,",
        ),
        ("pre_tokenizer", LOOP, "its pre_tokenizer is Split"),
        (
            "pre_tokenizer",
            {"type": "Sequence", "pretokenizers": [LOOP]},
            "its pre_tokenizer is Split",
        ),
        (
            "post_processor",
            {"type": "TemplateProcessing", "single": MANY},
            "its post_processor has",
        ),
        (
            "post_processor",
            {"type": "Sequence", "processors": [LOOP]},
            "its post_processor is Split",
        ),
        ("decoder", REPLACE, "its decoder is Replace"),
        ("model", {"type": "BPE", "vocab": {}, "merges": []}, "its model is BPE"),
        (
            "model",
            {"type": "WordPiece", "vocab": {}, "max_input_chars_per_word": 10**9},
            "max_input_chars_per_word is",
        ),
        ("added_tokens", [{"id": 1, "content": ""}], "an added token is empty"),
        ("added_tokens", 3, "not a tokenizer"),
        ("model", None, "not a tokenizer"),
        ("model", {"type": "WordLevel"}, "not readable"),
    ):
        (saved / "tokenizer.json").write_text(whole)
        set_value(saved, key, to=value, file="tokenizer.json")
        refused(saved, f"tokenizer.json: {message}")
        with pytest.raises(InputError, match="tokenizer"):
            load_tokenizer(str(saved))
