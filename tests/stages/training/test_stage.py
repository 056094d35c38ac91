"""A training stage from its configuration to its model folder: seed, sizes, text length, initial weights."""

import pytest
import torch

from alpro.errors import InputError
from alpro.models.alpro import Alpro
from alpro.models.attention import Mlp
from alpro.models.folder import ModelFolder, Preprocessing
from alpro.models.word_pieces import train_tokenizer
from alpro.stages import finetune_qa, finetune_retrieval, pretrain
from alpro.stages.training import loop

NO_LOSSES = dict.fromkeys(("vtc", "vtm", "mlm", "pem"), 0.0)


@pytest.fixture
def pretrained(clips, vocabulary, tiny_model, tmp_path, resources):
    """pretrained(name, **config): the weights that pre-training without losses starts from and ends with."""

    def run(name: str, **config) -> ModelFolder:
        (tmp_path / name).mkdir()
        values = {"phases": [{"corpora": ["clips"], "steps": 1}], "model": tiny_model(), "weights": NO_LOSSES}
        values |= {"batch_size": 2, "max_text_tokens": 16, "validation": {"videos": 2}}
        inputs = {"tokenizer": vocabulary, "vocabulary": vocabulary, "clips": clips}
        pretrain.run(pretrain.Config.model_validate(values | config), inputs, tmp_path / name, resources)
        return ModelFolder.from_pretrained(tmp_path / name / "model")

    return run


def weights(folder: ModelFolder) -> torch.Tensor:
    return torch.cat([p.flatten() for p in folder.model.parameters()])


def test_the_seed_alone_decides_the_initial_weights(pretrained):
    one = weights(pretrained("one", seed=3))
    torch.rand(5)  # the state of the generator before the stage has no effect
    assert torch.equal(one, weights(pretrained("again", seed=3)))
    assert not torch.equal(one, weights(pretrained("other", seed=4)))


def test_a_start_copies_the_weights_of_another_model(pretrained, tmp_path):
    other = pretrained("other", seed=4)
    assert torch.equal(weights(pretrained("one", start=str(tmp_path / "other" / "model"))), weights(other))


def test_a_start_with_other_word_pieces_is_refused(pretrained, tokenizer, tiny_model, tmp_path):
    """Also one with as many: its word embeddings are of the same shape, and of other words."""
    words = train_tokenizer({f"{a}{b}{c}": 2 for a in "abcdefgh" for b in "xyzuvw" for c in "qrstop"}, 300)
    size = tokenizer.get_vocab_size()
    model = Alpro(tiny_model(size), 8)
    ModelFolder("pretrain", model, words, Preprocessing(), [str(n) for n in range(8)]).save_pretrained(tmp_path / "a")
    with pytest.raises(InputError, match=r"^pretrain\.start: .* other word pieces .* train_tokenizer\.tokenizer"):
        pretrained("one", start=str(tmp_path / "a"))


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("video", {"activation": "quick_gelu"}, r"video\.activation is quick_gelu, not gelu"),
        ("video", {"heads": 4}, r"video\.heads is 4, not 2"),
        ("text", {"heads": 4}, r"text\.heads is 4, not 2"),
        ("text", {"width": 16}, r"weights of another shape"),
    ],
)
def test_a_start_with_another_encoder_is_refused(part, values, message, pretrained, tiny_model, tokenizer, tmp_path):
    """Also where all shapes are the same: with other heads, the same weights compute something else."""
    shape = tiny_model(tokenizer.get_vocab_size())
    changed = {part: getattr(shape, part).model_copy(update=values)}
    if "width" in values:
        changed["video"] = shape.video.model_copy(update=values)
    model = Alpro(shape.model_copy(update=changed), 8)
    entities = [str(n) for n in range(8)]
    ModelFolder("pretrain", model, tokenizer, entities=entities).save_pretrained(tmp_path / "a")
    with pytest.raises(InputError, match=rf"^pretrain\.start: .*{message}"):
        pretrained("one", start=str(tmp_path / "a"))


def test_training_in_bfloat16_says_so(pretrained, clips, tmp_path, resources, monkeypatch):
    """As on a GPU, or on a processor that has it; the weights are float32 all the same."""
    pretrained("start")
    monkeypatch.setattr(loop, "precision", lambda *_: torch.bfloat16)
    seen = set[torch.dtype]()
    forward = Mlp.forward
    monkeypatch.setattr(Mlp, "forward", lambda self, x: seen.add((y := forward(self, x)).dtype) or y)
    (tmp_path / "tuned").mkdir()
    values = {"phases": [{"corpora": ["clips"], "steps": 1}], "frames": 2, "batch_size": 2}
    config = finetune_retrieval.Config.model_validate(values | {"validation": {"videos": 2}})
    outcome = finetune_retrieval.run(
        config, {"model": tmp_path / "start", "clips": clips}, tmp_path / "tuned", resources
    )
    assert outcome.precision == "bfloat16"
    assert torch.bfloat16 in seen
    tuned = ModelFolder.from_pretrained(tmp_path / "tuned" / "model").model
    assert {p.dtype for p in tuned.parameters()} == {torch.float32}


@pytest.mark.parametrize(("matching", "ranking"), [(50.0, "matching"), (40.0, "similarity")])
def test_the_ranking_that_was_better_on_validation_is_stored(
    matching, ranking, pretrained, clips, tmp_path, resources, monkeypatch
):
    pretrained("start")
    (tmp_path / "tuned").mkdir()
    metrics = {"validation/mean_recall": matching, "validation/vtc/mean_recall": 40.0}
    validate = (lambda: metrics), "validation/mean_recall"
    monkeypatch.setattr(finetune_retrieval, "validate_retrieval", lambda *_: validate)
    values = {"phases": [{"corpora": ["clips"], "steps": 1}], "frames": 2, "batch_size": 2}
    config = finetune_retrieval.Config.model_validate(values)
    finetune_retrieval.run(config, {"model": tmp_path / "start", "clips": clips}, tmp_path / "tuned", resources)
    assert ModelFolder.from_pretrained(tmp_path / "tuned" / "model").ranking == ranking


@pytest.mark.parametrize("stage", [finetune_retrieval, finetune_qa], ids=["retrieval", "qa"])
def test_a_fine_tuned_model_has_the_text_length_and_the_frames_of_its_own_training(
    stage, pretrained, clips, tmp_path, resources
):
    pretrained("start")
    (tmp_path / "tuned").mkdir()
    values = {"phases": [{"corpora": ["clips"], "steps": 1}], "max_text_tokens": 11, "frames": 2, "batch_size": 2}
    config = stage.Config.model_validate(values | {"validation": {"videos": 2}})
    stage.run(config, {"model": tmp_path / "start", "clips": clips}, tmp_path / "tuned", resources)
    tuned = ModelFolder.from_pretrained(tmp_path / "tuned" / "model")
    assert (tuned.entities, tuned.model.pem_head, tuned.model.mlm_head) == ([], None, None)  # not trained any more
    assert tuned.preprocessing.max_text_tokens == 11
    assert tuned.model.config.video.frames == 2
