"""Official checkpoints to model folders, and what is refused; test_oracle.py compares the
numbers."""

import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece

from alpro.errors import InputError
from alpro.models.alpro import Alpro, ModelConfig, Prompter
from alpro.models.folder import ModelBundle
from alpro.models.official import import_checkpoint
from alpro.pipeline.cli.main import execute
from tests.conftest import one_line
from tests.official_checkpoints import one_head, to_official

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(295))]
VISUAL = "visual_encoder.model."
UNUSED = {
    f"{VISUAL}head.weight": (10, 32),
    f"{VISUAL}head.bias": (10,),
    "text_encoder.bert.embeddings.position_ids": (1, 63),
    "text_encoder.cls.predictions.decoder.weight": (300, 32),
    "text_encoder.cls.predictions.decoder.bias": (300,),
}


@pytest.fixture
def tokenizer(tmp_path):
    path = tmp_path / "tokenizer.json"
    Tokenizer(WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")).save(
        str(path)
    )
    return str(path)


@pytest.fixture
def config(tiny_model):
    """Sizes that shapes alone tell, but for the heads: one for every 64 channels."""
    actual = one_head(tiny_model(300))
    return actual.model_copy(update={"text": actual.text.model_copy(update={"max_length": 63})})


@pytest.fixture
def official(config):
    """official(task): the model, and its weights as the official code saves them."""

    def make(task: str):
        torch.manual_seed(3)
        unused = {key: torch.zeros(shape) for key, shape in UNUSED.items()}
        if task == "qa":
            model = Alpro(config, answers=6)
            return model, to_official(model.state_dict(), config, "text_encoder.") | unused
        if (
            task == "prompter"
        ):  # it carries layers, a matching head and an MLM head that nothing reads
            whole = Alpro(config, entities=5)
            model = Prompter(config)
            model.load_state_dict(whole.state_dict(), strict=False)
            state = {
                k: v
                for k, v in to_official(whole.state_dict(), config).items()
                if not k.startswith("mpm_head")
            }
            prompts = {f"{kind}_prompt_feat": torch.randn(5, 16) for kind in ("video", "image")}
            return model, state | unused | prompts
        model = Alpro(config, entities=5)
        state = dict(
            sorted((to_official(model.state_dict(), config) | unused).items())
        )  # key, query, value
        if task == "pretrain":
            return model, state | {f"prompter.{k}": v for k, v in make("prompter")[1].items()}
        return model, state

    return make


@pytest.mark.parametrize(
    ("task", "bert"), [("pretrain", "text_encoder.bert."), ("qa", "text_encoder.")]
)
def test_the_keys_are_those_of_the_official_code_and_queries_keys_values_in_that_order(
    task, bert, config
):
    """official_keys.json has those that the authors' code makes, with their shapes, of two layers
    of each encoder."""
    keys = json.loads(Path(__file__).with_name("official_keys.json").read_text())[task]
    heads = {"entities": 64} if task == "pretrain" else {"answers": 37}
    video = {"depth": 2, "frames": 4 if task == "pretrain" else 16}
    text = {"depth": 2, "fusion_layer": 1}
    full = ModelConfig.model_validate({"video": video, "text": text})
    with torch.device("meta"):
        state = to_official(Alpro(full, **heads).state_dict(), full, bert)
    read = {
        key
        for key in keys
        if not any(part in key for part in (".head.", ".position_ids", ".decoder."))
    }
    assert {key: list(value.shape) for key, value in state.items()} == {
        key: keys[key] for key in read
    }
    model = Alpro(config)
    state = to_official(model.state_dict(), config)
    joined = model.multimodal_encoder.layers[0].attention.qkv.weight
    for part, name in zip(joined.chunk(3), ("query", "key", "value"), strict=True):
        assert torch.equal(
            part, state[f"text_encoder.bert.encoder.layer.1.attention.self.{name}.weight"]
        )


@pytest.mark.parametrize("task", ["pretrain", "retrieval", "qa", "prompter"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_every_weight_of_the_model_is_imported(
    task, wrapped, official, config, tokenizer, tmp_path
):
    model, state = official(task)
    state = dict(reversed((state | {"surprise": torch.zeros(1)}).items()))  # in any order
    if wrapped:
        state = {
            "model": {f"module.{k}": v for k, v in state.items()},
            "optimizer": {"step": 3},
            "epoch": 1,
        }
    torch.save(state, tmp_path / "official.pt")
    actual = import_checkpoint(tmp_path / "official.pt", tmp_path / "out", task, tokenizer)
    folder = ModelBundle.from_pretrained(tmp_path / "out")
    video = config.video.model_copy(update={"drop_path": 0.1})
    text = config.text.model_copy(update={"dropout": 0.1})
    sizes = folder.model.config
    assert (folder.task, sizes.video, sizes.text, sizes.embed_dim) == (task, video, text, 16)
    own = folder.model.state_dict()
    expected = model.state_dict()
    without = ("mlm_head.", "pem_head.") if task == "retrieval" else ()
    assert own.keys() == {key for key in expected if not key.startswith(without or "-")}
    assert [key for key in own if not torch.equal(own[key], expected[key])] == []
    assert folder.preprocessing.max_text_tokens == (40 if task in ("retrieval", "qa") else 30)
    assert actual.unknown == ["surprise"]
    assert actual.unused.count(f"{VISUAL}head.weight") == 1
    if task != "prompter":
        assert set(actual.unused) >= UNUSED.keys()
    if task == "prompter":
        assert (tmp_path / "out" / "prompts.safetensors").is_file()
        assert folder.entities == [f"entity {i}" for i in range(5)]
    if task == "pretrain":
        teacher = ModelBundle.from_pretrained(tmp_path / "out" / "prompter")
        assert isinstance(teacher.model, Prompter)
        assert (tmp_path / "out" / "prompter" / "prompts.safetensors").is_file()
        assert f"prompter.{VISUAL}head.weight" in actual.unused


def test_the_words_of_a_head_keep_its_order_and_the_length_of_texts_can_be_given(
    official, tokenizer, tmp_path
):
    _, state = official("qa")
    torch.save(state, tmp_path / "qa.pt")
    answers = {word: i for i, word in enumerate("fedcba")}
    (tmp_path / "ans2label.json").write_text(json.dumps(dict(sorted(answers.items()))))
    import_checkpoint(
        tmp_path / "qa.pt", tmp_path / "out", "qa", tokenizer, tmp_path / "ans2label.json"
    )
    assert ModelBundle.from_pretrained(tmp_path / "out").answers == list("fedcba")
    (tmp_path / "few.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match="2 words, but the checkpoint's head has 6"):
        import_checkpoint(
            tmp_path / "qa.pt", tmp_path / "two", "qa", tokenizer, tmp_path / "few.txt"
        )
    assert not (tmp_path / "two").exists()
    command = [
        "model",
        "import",
        str(tmp_path / "qa.pt"),
        str(tmp_path / "imported" / "qa"),
        "--task",
        "qa",
    ]
    assert execute([*command, "--tokenizer", str(tokenizer), "--max-text-tokens", "50"]) == 0
    assert (
        ModelBundle.from_pretrained(tmp_path / "imported" / "qa").preprocessing.max_text_tokens
        == 50
    )
    with pytest.raises(InputError, match="--max-text-tokens 57 must be from 4 to 56"):
        import_checkpoint(
            tmp_path / "qa.pt", tmp_path / "long", "qa", tokenizer, max_text_tokens=57
        )


def test_weights_that_do_not_fit_are_reported_in_one_line(official, tokenizer, tmp_path):
    _, whole = official("retrieval")
    query = "text_encoder.bert.encoder.layer.0.attention.self.query.bias"
    for task, key, value, message in (
        ("qa", "", None, "no qa_head, which --task qa needs"),
        ("pretrain", "mpm_head.2.bias", None, "no pem_head, which --task pretrain needs"),
        ("retrieval", "vision_proj.bias", None, "weights missing: video_proj.bias"),
        (
            "retrieval",
            "text_proj.weight",
            torch.zeros(16, 31),
            "text_proj.weight is (16, 31), not (16, 32)",
        ),
        (
            "retrieval",
            f"{VISUAL}pos_embed",
            torch.zeros(32),
            "not the weights of ALPRO's official code",
        ),
        ("retrieval", f"{VISUAL}pos_embed", torch.zeros(1, 18, 32), "18 positions, which are not"),
        (
            "retrieval",
            f"{VISUAL}patch_embed.proj.weight",
            torch.zeros(32, 192),
            "not the weights of",
        ),
        ("retrieval", f"{VISUAL}time_embed", None, f"{VISUAL}time_embed"),
        (
            "retrieval",
            query,
            torch.zeros(31),
            "weights missing: text_encoder.layers.0.attention.qkv.bias",
        ),
        ("retrieval", query, None, "weights missing: text_encoder.layers.0.attention.qkv.bias"),
        ("retrieval", "text_encoder.bert.encoder.layer.1", None, "for TextConfig"),
    ):
        state = {k: v for k, v in whole.items() if not key or not k.startswith(key)}
        torch.save(state | ({} if value is None else {key: value}), tmp_path / "a.pt")
        with one_line(message):
            import_checkpoint(tmp_path / "a.pt", tmp_path / "out", task, tokenizer)
        assert not [path for path in tmp_path.iterdir() if "out" in path.name]
    torch.save(whole, tmp_path / "a.pt")
    for below in ("a.pt/out", "a.pt/deep/out", "x" * 300):
        with pytest.raises(InputError, match="cannot be written"):
            import_checkpoint(tmp_path / "a.pt", tmp_path / below, "retrieval", tokenizer)


class Bomb:
    def __reduce__(self):
        return (print, ("this must never run",))


OTHERS = [
    "bomb",
    "config object",
    "text",
    "cut",
    "empty",
    "nothing",
    "pipe",
    "folder there",
    "other name",
]


@pytest.mark.parametrize("what", [*OTHERS, "no tokenizer"])
def test_a_file_that_is_not_a_plain_checkpoint_is_refused_in_one_line(
    what, official, tokenizer, tmp_path, capsys
):
    path = tmp_path / ("x.tar" if what == "other name" else "x.pt")
    out = tmp_path / "out"
    _, state = official("retrieval")
    contents = {
        "text": b"no checkpoint",
        "empty": b"",
        "config object": pickle.dumps({"args": Bomb(), **state}),
    }
    if what in contents:
        path.write_bytes(contents[what])
    elif what == "pipe":
        os.mkfifo(path)
    elif what != "nothing":
        torch.save(state | ({"extra": Bomb()} if what == "bomb" else {}), path)
    if what == "cut":
        os.truncate(path, 5000)
    if what == "folder there":
        out.mkdir()
    if what == "no tokenizer":
        (tmp_path / "tokenizer.json").write_bytes(b"\xff\xfe[PAD]")
    causes = {"bomb": "contains code", "nothing": "no such file", "folder there": "exists already"}
    with one_line(causes.get(what, "")):
        import_checkpoint(path, out, "retrieval", tokenizer)
    assert "never run" not in capsys.readouterr().out
    assert not out.exists() or what == "folder there"
