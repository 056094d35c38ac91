"""Official checkpoints to model folders, and what is refused."""

import json
import os
import pickle

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordPiece

from alpro.errors import InputError
from alpro.models.alpro import Alpro, Prompter
from alpro.models.folder import ModelFolder
from alpro.models.import_checkpoint import import_checkpoint
from alpro.pipeline.cli.main import execute
from tests.official_checkpoints import to_official

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(295))]


@pytest.fixture
def tokenizer(tmp_path):
    path = tmp_path / "tokenizer.json"
    Tokenizer(WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")).save(str(path))
    return str(path)


@pytest.fixture
def config(tiny_model):
    """Sizes that shapes alone tell, but for the heads: one for every 64 channels."""
    actual = tiny_model(300)
    video = actual.video.model_copy(update={"heads": 1})
    return actual.model_copy(
        update={"video": video, "text": actual.text.model_copy(update={"heads": 1, "max_length": 63})}
    )


@pytest.fixture
def official(config):
    """official(task): the model, and its weights as the official code saves them."""

    def make(task: str):
        torch.manual_seed(3)
        unused = {"visual_encoder.model.head.weight": torch.zeros(4, 32)}
        if task == "qa":
            model = Alpro(config, answers=6)
            return model, to_official(model.state_dict(), config, "text_encoder.") | unused
        if task == "prompter":  # it carries layers, a matching head and an MLM head that nothing reads
            whole = Alpro(config, entities=5)
            model = Prompter(config)
            model.load_state_dict(whole.state_dict(), strict=False)
            state = {k: v for k, v in to_official(whole.state_dict(), config).items() if not k.startswith("mpm_head")}
            prompts = {f"{kind}_prompt_feat": torch.randn(5, 16) for kind in ("video", "image")}
            return model, state | unused | prompts
        model = Alpro(config, entities=5)
        state = to_official(model.state_dict(), config) | unused
        if task == "pretrain":
            return model, state | {f"prompter.{k}": v for k, v in make("prompter")[1].items()}
        return model, state

    return make


@pytest.mark.parametrize("task", ["pretrain", "retrieval", "qa", "prompter"])
@pytest.mark.parametrize("wrapped", [False, True])
def test_every_weight_of_the_model_is_imported(task, wrapped, official, tokenizer, tmp_path):
    model, state = official(task)
    if wrapped:
        state = {"model": {f"module.{k}": v for k, v in state.items()}, "optimizer": {"step": 3}, "epoch": 1}
    torch.save(state, tmp_path / "official.pt")
    actual = import_checkpoint(tmp_path / "official.pt", tmp_path / "out", task, tokenizer)
    folder = ModelFolder.from_pretrained(tmp_path / "out")
    assert folder.task == task
    assert folder.model.config.model_dump(exclude={"init", "temperature"}) | {"video": None, "text": None} == {
        "embed_dim": 16,
        "video": None,
        "text": None,
    }
    own = folder.model.state_dict()
    for key, value in model.state_dict().items():
        if key in own:
            assert torch.equal(own[key], value), key
    assert own.keys() <= model.state_dict().keys()
    assert actual.unknown == []
    assert "visual_encoder.model.head.weight" in actual.unused
    if task == "prompter":
        assert (tmp_path / "out" / "prompts.safetensors").is_file()
        assert folder.entities == [f"entity {i}" for i in range(5)]
    if task == "pretrain":
        teacher = ModelFolder.from_pretrained(tmp_path / "out" / "prompter")
        assert isinstance(teacher.model, Prompter)
        assert (tmp_path / "out" / "prompter" / "prompts.safetensors").is_file()


def test_the_words_of_a_head_keep_its_order(official, tokenizer, tmp_path):
    _, state = official("qa")
    torch.save(state, tmp_path / "qa.pt")
    answers = {word: i for i, word in enumerate("fedcba")}
    (tmp_path / "ans2label.json").write_text(json.dumps(dict(sorted(answers.items()))))
    import_checkpoint(tmp_path / "qa.pt", tmp_path / "out", "qa", tokenizer, tmp_path / "ans2label.json")
    assert ModelFolder.from_pretrained(tmp_path / "out").answers == list("fedcba")
    (tmp_path / "few.txt").write_text("a\nb\n")
    with pytest.raises(InputError, match="2 words, but the checkpoint's head has 6"):
        import_checkpoint(tmp_path / "qa.pt", tmp_path / "two", "qa", tokenizer, tmp_path / "few.txt")
    assert not (tmp_path / "two").exists()


@pytest.mark.parametrize(("task", "usual"), [("pretrain", 30), ("prompter", 30), ("retrieval", 40), ("qa", 40)])
def test_the_length_of_texts_is_the_tasks_by_default(task, usual, official, tokenizer, tmp_path):
    torch.save(official(task)[1], tmp_path / "a.pt")
    for name, options, expected in (("usual", [], usual), ("given", ["--max-text-tokens", "50"], 50)):
        out = tmp_path / "imported" / name
        command = ["model", "import", str(tmp_path / "a.pt"), str(out), "--task", task, *options]
        assert execute([*command, "--tokenizer", str(tokenizer)]) == 0
        assert ModelFolder.from_pretrained(out).preprocessing.max_text_tokens == expected
    with pytest.raises(InputError, match="--max-text-tokens 57 must be from 4 to 56"):
        import_checkpoint(tmp_path / "a.pt", tmp_path / "long", task, tokenizer, max_text_tokens=57)


def test_unknown_and_missing_keys_and_the_wrong_task_are_reported(official, tokenizer, tmp_path):
    _, state = official("retrieval")
    torch.save(state | {"surprise": torch.zeros(1)}, tmp_path / "a.pt")
    assert import_checkpoint(tmp_path / "a.pt", tmp_path / "a", "retrieval", tokenizer).unknown == ["surprise"]
    with pytest.raises(
        InputError, match="no qa_head, which --task qa needs; this looks like a checkpoint for --task pretrain"
    ):
        import_checkpoint(tmp_path / "a.pt", tmp_path / "b", "qa", tokenizer)
    torch.save({k: v for k, v in state.items() if k != "vision_proj.bias"}, tmp_path / "b.pt")
    with pytest.raises(InputError, match=r"missing weights: video_proj\.bias"):
        import_checkpoint(tmp_path / "b.pt", tmp_path / "b", "retrieval", tokenizer)
    state["text_proj.weight"] = torch.zeros(16, 31)
    torch.save(state, tmp_path / "c.pt")
    with pytest.raises(InputError, match=r"text_proj\.weight is \(16, 31\), not \(16, 32\)"):
        import_checkpoint(tmp_path / "c.pt", tmp_path / "c", "retrieval", tokenizer)
    assert not [path for path in tmp_path.iterdir() if path.name in ("b", "c")]


class Bomb:
    def __reduce__(self):
        return (print, ("this must never run",))


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
def test_a_broken_tokenizer_is_reported(name, official, tmp_path):
    torch.save(official("retrieval")[1], tmp_path / "a.pt")
    (tmp_path / name).write_bytes(b"\xff\xfe[PAD]")
    with pytest.raises(InputError, match=f"(?i)tokenizer .*{name}: not readable: .*UTF-8"):
        import_checkpoint(tmp_path / "a.pt", tmp_path / "out", "retrieval", str(tmp_path / name))


@pytest.mark.parametrize("below", ["a.pt/out", "a.pt/deep/out", "x" * 300])
def test_a_folder_that_cannot_be_written_is_reported(below, official, tokenizer, tmp_path):
    torch.save(official("retrieval")[1], tmp_path / "a.pt")
    with pytest.raises(InputError, match="cannot be written"):
        import_checkpoint(tmp_path / "a.pt", tmp_path / below, "retrieval", tokenizer)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("visual_encoder.model.pos_embed", torch.zeros(32), r"pos_embed is \(32,\)"),
        ("visual_encoder.model.pos_embed", torch.zeros(1, 18, 32), "18 positions, which are not"),
        ("visual_encoder.model.patch_embed.proj.weight", torch.zeros(32, 192), r"proj\.weight is \(32, 192\)"),
        ("text_encoder.bert.encoder.layer.0.attention.self.key.bias", torch.zeros(31), "missing weights"),
        ("text_encoder.bert.encoder.layer.1", None, "TextConfig: depth: Input should be greater"),
    ],
)
def test_weights_of_another_shape_are_reported_in_one_line(key, value, message, official, tokenizer, tmp_path):
    _, state = official("retrieval")
    state = {k: v for k, v in state.items() if not k.startswith(key)} | ({} if value is None else {key: value})
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(InputError, match=message) as error:
        import_checkpoint(tmp_path / "a.pt", tmp_path / "out", "retrieval", tokenizer)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("what", ["bomb", "config object", "text", "cut", "empty", "nothing", "pipe", "folder there"])
def test_a_file_that_is_not_a_plain_checkpoint_is_refused_in_one_line(what, official, tokenizer, tmp_path, capsys):
    path, out = tmp_path / "x.pt", tmp_path / "out"
    _, state = official("retrieval")
    if what == "bomb":
        torch.save(state | {"extra": Bomb()}, path)
    elif what == "config object":
        path.write_bytes(pickle.dumps({"model": state, "args": Bomb()}))
    elif what == "text":
        path.write_text("no checkpoint")
    elif what == "empty":
        path.touch()
    elif what == "pipe":
        os.mkfifo(path)
    elif what == "cut":
        torch.save(state, path)
        path.write_bytes(path.read_bytes()[:5000])
    elif what == "folder there":
        out.mkdir()
        torch.save(state, path)
    with pytest.raises(InputError) as message:
        import_checkpoint(path, out, "retrieval", tokenizer)
    assert "\n" not in str(message.value)
    assert {"bomb": "contains code", "nothing": "no such file", "folder there": "exists already"}.get(what, "") in str(
        message.value
    )
    assert "never run" not in capsys.readouterr().out
    assert not out.exists() or what == "folder there"
