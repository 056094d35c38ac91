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

from alpro.models.alpro import Alpro, ModelConfig, Prompter
from alpro.models.folder import ModelBundle
from alpro.models.official import import_checkpoint
from tests.conftest import one_line
from tests.models.conftest import near
from tests.official_checkpoints import to_official

WORDS = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *(f"word{i}" for i in range(295)),
]
VISUAL = "visual_encoder.model."
UNUSED = {
    f"{VISUAL}head.weight": (10, 32),
    f"{VISUAL}head.bias": (10,),
    "text_encoder.bert.embeddings.position_ids": (1, 63),
    "text_encoder.cls.predictions.decoder.weight": (300, 32),
    "text_encoder.cls.predictions.decoder.bias": (300,),
    "text_prompt_feat": (5, 16),
}


@pytest.fixture
def tokenizer(tmp_path):
    path = str(tmp_path / "tokenizer.json")
    vocabulary = {word: number for number, word in enumerate(WORDS)}
    Tokenizer(WordPiece(vocabulary, unk_token="[UNK]")).save(path)
    return path


@pytest.fixture
def config(tiny_model):
    actual = tiny_model(300)
    return actual.model_copy(
        update={"text": actual.text.model_copy(update={"max_length": 63})}
    )


@pytest.fixture
def official(config):
    """official(task): the model, and its weights as the official code saves them."""

    def make(task):
        torch.manual_seed(3)
        unused = {key: torch.zeros(shape) for key, shape in UNUSED.items()}
        if task == "qa":
            model = Alpro(config, answers=6)
            return model, to_official(
                model.state_dict(), config, "text_encoder"
            ) | unused
        if task == "prompter":
            # It has layers, a matching head and an MLM head that nothing reads.
            whole = Alpro(config, entities=5)
            state = to_official(whole.state_dict(), config)
            state = {
                key: value
                for key, value in state.items()
                if not key.startswith("mpm_head")
            }
            prompts = {
                f"{kind}_prompt_feat": torch.randn(5, 16) for kind in ("video", "image")
            }
            model = Prompter(config)
            model.load_state_dict(whole.state_dict(), strict=False)
            return model, state | unused | prompts

        model = Alpro(config, entities=5)
        state = to_official(model.state_dict(), config) | unused
        if task == "pretrain":
            state |= {
                f"prompter.{key}": value for key, value in make("prompter")[1].items()
            }
        return model, dict(sorted(state.items()))  # key, query, value

    return make


@pytest.mark.parametrize(
    ("task", "bert"),
    [
        ("pretrain", "text_encoder.bert"),
        ("qa", "text_encoder"),
    ],
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
    unused = (".head.", ".position_ids", ".decoder.")
    expected = {
        key: shape for key, shape in keys.items() if not any(x in key for x in unused)
    }
    assert {key: list(value.shape) for key, value in state.items()} == expected

    model = Alpro(config)
    state = to_official(model.state_dict(), config)
    joined = model.multimodal_encoder.layers[0].attention.qkv.weight
    attention = "text_encoder.bert.encoder.layer.1.attention.self"
    names = [f"{attention}.{name}.weight" for name in ("query", "key", "value")]
    assert torch.equal(joined, torch.cat([state[name] for name in names]))


@pytest.fixture
def imported(official, tokenizer, config, tmp_path):
    """imported(task): the weights of an official model, and the import of its checkpoint to
    tmp_path/out.

    The keys of the checkpoint are in another order, and stand beside the optimizer.
    """

    def make(task, **options):
        model, state = official(task)
        state = dict(reversed((state | {"surprise": torch.zeros(1)}).items()))
        ddp = {f"module.{key}": value for key, value in state.items()}
        file = tmp_path / "official.pt"
        torch.save({"model": ddp, "optimizer": {"step": 3}}, file)
        models = import_checkpoint(
            file, tmp_path / "out", task, tokenizer, sizes=config, **options
        )
        return model.state_dict(), models

    return make


@pytest.mark.parametrize("task", ["pretrain", "retrieval", "qa", "prompter"])
def test_every_weight_of_the_model_is_imported(task, imported, config, tmp_path):
    expected, (model, *_) = imported(task)

    folder = ModelBundle.from_pretrained(tmp_path / "out")
    weights = folder.model.state_dict()
    without = ("mlm_head.", "pem_head.") if task == "retrieval" else ()
    expected = {
        key: value for key, value in expected.items() if not key.startswith(without)
    }
    near(dict(weights), expected, atol=0)
    assert model.unknown == ["surprise"]
    assert folder.task == task
    assert folder.preprocessing.max_text_tokens == (
        40 if task in ("retrieval", "qa") else 30
    )
    sizes = folder.model.config
    assert sizes == config


def test_the_prompter_in_a_checkpoint_is_a_model_of_its_own(imported, tmp_path):
    imported("pretrain")

    teacher = ModelBundle.from_pretrained(tmp_path / "out" / "prompter")
    assert isinstance(teacher.model, Prompter)
    assert teacher.entities == [f"entity {i}" for i in range(5)]
    assert (tmp_path / "out" / "prompter" / "prompts.safetensors").is_file()


def test_the_words_of_a_head_keep_its_order(imported, tmp_path):
    answers = {word: i for i, word in enumerate("fedcba")}
    (tmp_path / "ans2label.json").write_text(json.dumps(dict(sorted(answers.items()))))

    imported("qa", words=tmp_path / "ans2label.json")

    assert ModelBundle.from_pretrained(tmp_path / "out").answers == list("fedcba")


def test_another_number_of_words_or_too_long_texts_are_refused(imported, tmp_path):
    (tmp_path / "few.txt").write_text("a\nb\n")
    with one_line("2 words, but the checkpoint's head has 6"):
        imported("qa", words=tmp_path / "few.txt")
    with one_line("--max-text-tokens 57 must be from 4 to 56"):
        imported("qa", max_text_tokens=57)

    assert not (tmp_path / "out").exists()


QUERY = "text_encoder.bert.encoder.layer.0.attention.self.query.bias"
QKV = "text_encoder.layers.0.attention.qkv.bias"
OTHER = "not the weights of ALPRO's official code"


@pytest.mark.parametrize(
    ("task", "key", "value", "message"),
    [
        ("qa", "", None, "no head for answer labels; choose the --task"),
        (
            "retrieval",
            "vision_proj.bias",
            None,
            'Missing key(s) in state_dict: "video_proj.bias"',
        ),
        (
            "retrieval",
            "text_proj.weight",
            (16, 31),
            "size mismatch for text_proj.weight",
        ),
        (
            "retrieval",
            f"{VISUAL}pos_embed",
            (1, 18, 32),
            "size mismatch for video_encoder.pos_embed",
        ),
        ("retrieval", f"{VISUAL}time_embed", None, OTHER),
        ("retrieval", QUERY, (31,), QKV),
        ("retrieval", QUERY, None, QKV),
    ],
)
def test_weights_that_do_not_fit_are_reported_in_one_line(
    task, key, value, message, official, tokenizer, config, tmp_path
):
    _, state = official("retrieval")
    state = {
        name: w for name, w in state.items() if not key or not name.startswith(key)
    }
    if value:
        state[key] = torch.zeros(value)
    torch.save(state, tmp_path / "a.pt")

    with one_line(str(tmp_path / "a.pt"), message):
        import_checkpoint(
            tmp_path / "a.pt", tmp_path / "out", task, tokenizer, sizes=config
        )

    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


class Bomb:
    def __reduce__(self):
        return (print, ("this must never run",))


def write_checkpoint(path, what, state):
    """Writes a file that is no plain checkpoint."""
    if what == "bomb":
        torch.save(state | {"extra": Bomb()}, path)
    elif what == "config object":
        path.write_bytes(pickle.dumps({"args": Bomb(), **state}))
    elif what == "cut":
        torch.save(state, path)
        os.truncate(path, 5000)
    elif what == "pipe":
        os.mkfifo(path)
    elif what != "nothing":
        path.write_bytes(b"no checkpoint")


@pytest.mark.parametrize(
    ("what", "cause"),
    [
        ("bomb", "or it contains code"),
        ("config object", "or it contains code"),
        ("cut", "not readable as weights"),
        ("text", "no plain checkpoint"),
        ("nothing", "no such file"),
        ("pipe", "not a regular file"),
    ],
)
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_a_file_that_is_not_a_plain_checkpoint_is_refused_in_one_line(
    what, cause, official, tokenizer, tmp_path, capsys
):
    _, state = official("retrieval")
    write_checkpoint(tmp_path / "x.pt", what, state)

    with one_line(str(tmp_path / "x.pt"), cause):
        import_checkpoint(tmp_path / "x.pt", tmp_path / "out", "retrieval", tokenizer)

    assert "never run" not in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_the_names_of_the_files_are_checked(official, tokenizer, tmp_path):
    _, state = official("retrieval")
    torch.save(state, tmp_path / "x.pt")
    (tmp_path / "there").mkdir()
    (tmp_path / "broken.json").write_bytes(b"\xff\xfe[PAD]")

    for file, out, words, message in (
        ("x.tar", "out", tokenizer, "no such file"),
        ("x.pt", "there", tokenizer, "exists already"),
        ("x.pt", "out", str(tmp_path / "broken.json"), "tokenizer"),
    ):
        with one_line(message):
            import_checkpoint(tmp_path / file, tmp_path / out, "retrieval", words)
