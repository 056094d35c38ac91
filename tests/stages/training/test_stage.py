"""A training stage from its configuration to its model folder: device, seed, sizes, text length,
normalization, initial weights."""

from dataclasses import replace
from itertools import product

import pytest
import torch

from alpro.errors import InputError
from alpro.files import write_json
from alpro.models.alpro import Alpro
from alpro.models.folder import ModelBundle, Preprocessing
from alpro.models.precision import pick_device
from alpro.models.word_pieces import train_tokenizer
from alpro.stages import finetune_qa, finetune_retrieval, pretrain, train_prompter
from alpro.stages.pretrain import copy_start
from alpro.stages.train_prompter import Config
from alpro.stages.training import layers, loop, stage
from alpro.stages.training.stage import measure_preprocessing
from tests.stages.conftest import run_stage
from tests.stages.training.test_loop import damaged

PHASES = [{"corpora": ["clips"], "steps": 1}]
NO_LOSSES = dict.fromkeys(("vtc", "vtm", "mlm", "pem"), 0.0)


@pytest.fixture
def pretrained(clips, vocabulary, tiny_model, tmp_path, resources):
    """pretrained(name, **config): the weights that pre-training without losses starts from and ends
    with."""

    def run(name, **config):
        values = {
            "phases": PHASES,
            "model": tiny_model(),
            "weights": NO_LOSSES,
            "batch_size": 2,
            "max_text_tokens": 16,
            "validation": {"videos": 2},
        }
        inputs = {"tokenizer": vocabulary, "vocabulary": vocabulary, "clips": clips}
        run_stage(pretrain, inputs, tmp_path / name, resources, **values | config)
        return ModelBundle.from_pretrained(tmp_path / name / "model")

    return run


@pytest.fixture
def tuned(folders, clips, tmp_path, resources):
    """tuned(stage, **config): the outcome of a step of fine-tuning, and the model."""

    def run(stage, **config):
        values = {
            "phases": PHASES,
            "frames": 2,
            "batch_size": 2,
            "validation": {"videos": 2},
        }
        inputs = {"model": folders["pretrain"], "clips": clips}
        outcome = run_stage(
            stage, inputs, tmp_path / "tuned", resources, **values | config
        )
        return outcome, ModelBundle.from_pretrained(tmp_path / "tuned" / "model")

    return run


def weights(folder):
    return torch.cat([p.flatten() for p in folder.model.parameters()])


def test_a_model_is_on_the_configured_device_or_on_a_gpu_if_there_is_one(monkeypatch):
    """NVML may count one that CUDA cannot use."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert pick_device("cpu") == pick_device("auto") == torch.device("cpu")
    with pytest.raises(InputError, match="no GPU"):
        pick_device("cuda")


# Another value of each key of pre-training that decides its weights, in two steps from scratch.
EFFECTS = {
    "phases": [{"corpora": ["clips"], "steps": 3}],
    "seed": 1,
    "batch_size": 4,
    "accumulation_steps": 2,
    "lr": 2e-3,
    "warmup_ratio": 0.9,
    "min_lr_ratio": 0.5,
    "weight_decay": 0.1,
    "max_grad_norm": 0.01,
    "max_text_tokens": 6,
    "sampling": "random",
    "random_crop": 0.5,
    "augmentation": "official",
    "mixed_precision": False,
    "optimizer": "muon",
    "normalization": "half",
    "negative_pool_size": 2,
    "weights": {"pem": 0.0, "mlm": 0.5},
    "mlm_probability": 0.5,
    "negatives": "uniform",
}
# These have no effect on the weights, or need images, accumulation, a prompter or other files: see
# their own tests.
OTHERS = {
    "log_every",
    "max_unreadable_share",
    "repeat_images",
    "contrast",
    "threshold",
    "start",
}
OTHERS |= {"vit", "bert", "model", "validation"}


def test_every_key_has_an_effect(pretrained, monkeypatch):
    monkeypatch.setattr("alpro.models.precision.WIDE", 1)
    monkeypatch.setattr("alpro.models.precision.cpu_has_bfloat16", lambda: True)
    assert EFFECTS.keys() | OTHERS == pretrain.Config.model_fields.keys()
    base = {"phases": [{"corpora": ["clips"], "steps": 2}], "batch_size": 8, "lr": 1e-3}
    base["weights"] = {"pem": 0.0}
    before = weights(pretrained("base", **base))
    assert torch.equal(before, weights(pretrained("again", **base)))
    for key, value in EFFECTS.items():
        after = weights(pretrained(key, **base | {key: value}))
        assert not torch.equal(before, after), key


def test_a_start_decides_the_initial_weights_and_not_the_seed(pretrained, tmp_path):
    other = pretrained("other", seed=4)
    assert other.model.pem_head is None  # it was not trained
    started = pretrained("started", seed=3, start=str(tmp_path / "other" / "model"))
    assert torch.equal(weights(started), weights(other))


def test_a_start_of_another_normalization_is_a_warning(
    tokenizer, tiny_model, monkeypatch
):
    lines = []
    monkeypatch.setattr(pretrain.log, "warning", lines.append)
    config = tiny_model(tokenizer.get_vocab_size())
    target, start = (ModelBundle("pretrain", Alpro(config, 8), tokenizer) for _ in "12")

    copy_start(target, start)
    assert not lines
    half = start.preprocessing.model_copy(update={"mean": (0.5, 0.5, 0.5)})
    copy_start(target, replace(start, preprocessing=half))
    (line,) = lines
    assert "another normalization" in line


def test_a_start_with_other_word_pieces_or_another_encoder_is_refused(
    pretrained, tokenizer, tiny_model, tmp_path
):
    """Also one with as many: its word embeddings are of the same shape, and of other words. Which
    encoders differ is in tests/models/test_folder.py."""
    size = tokenizer.get_vocab_size()
    triples = product("abcdefgh", "xyzuvw", "qrstop")
    words = train_tokenizer({"".join(letters): 2 for letters in triples}, size)
    assert words.get_vocab_size() == size
    shape = tiny_model(size)
    video = shape.video.model_copy(update={"activation": "quick_gelu"})
    other = shape.model_copy(update={"video": video})
    starts = {
        "other word pieces": (shape, words),
        "activation is gelu": (other, tokenizer),
    }
    for name, (config, own) in starts.items():
        folder = ModelBundle(
            "pretrain", Alpro(config, 8), own, entities=list("abcdefgh")
        )
        folder.save_pretrained(tmp_path / name)
        with pytest.raises(InputError, match=f"^pretrain.start: .*{name}"):
            pretrained(f"from {name}", start=str(tmp_path / name))


def test_training_in_bfloat16_and_what_it_counts_and_warns_of_is_in_the_outcome(
    tuned, monkeypatch
):
    """As on a GPU, or on a processor that has it; the weights stay float32."""
    monkeypatch.setattr(layers, "compute_dtype", lambda *_: torch.bfloat16)
    monkeypatch.setattr(stage, "TrainingDataset", damaged(0, 1))

    phases = [{"corpora": ["clips"], "steps": 2}]
    outcome, folder = tuned(
        finetune_retrieval, phases=phases, lr=1e30, max_text_tokens=4
    )
    assert outcome.precision == "bfloat16"
    assert outcome.counts == {"steps": 2, "examples": 132, "samples_without_text": 0}
    cut, skipped, unreadable = outcome.warnings
    assert "131 of 132 captions" in cut
    assert "1 of 2 steps" in skipped
    assert "2 of" in unreadable
    assert {p.dtype for p in folder.model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("matching", "ranking"),
    [
        (40.0, "similarity"),
        (60.0, "matching"),
    ],
)
def test_a_model_ranks_by_what_was_better_on_validation(
    matching, ranking, tuned, monkeypatch
):
    scores = {"validation/mean_recall": matching, "validation/vtc/mean_recall": 50.0}
    monkeypatch.setattr(loop.Trainer, "train", lambda *_: scores)
    assert tuned(finetune_retrieval)[1].ranking == ranking


@pytest.mark.parametrize("stage", [finetune_retrieval, finetune_qa])
def test_a_fine_tuned_model_has_the_text_length_and_the_frames_of_its_own_training(
    stage, tuned
):
    _, folder = tuned(stage, max_text_tokens=11)

    assert folder.entities == []  # not trained any more
    assert folder.model.pem_head is None
    assert folder.model.mlm_head is None
    assert folder.preprocessing.max_text_tokens == 11
    assert folder.model.config.video.frames == 2


def test_a_head_of_other_answers_starts_anew(tiny_model, tokenizer):
    """Also one of as many, whose classes would be others."""
    model = Alpro(tiny_model(tokenizer.get_vocab_size()), answers=2)
    start = ModelBundle("qa", model, tokenizer, answers=["a", "b"])

    def build_head(*answers):
        cpu = torch.device("cpu")
        built = stage.build_fine_tuned("qa", start, 2, cpu, list(answers))
        return built.model.qa_head[2].weight

    assert torch.equal(build_head("a", "b"), model.qa_head[2].weight)
    assert not torch.equal(build_head("b", "a"), model.qa_head[2].weight)


def test_several_corpora_are_normalized_by_the_mean_of_their_statistics(tmp_path):
    """Each corpus of the phases once, however often it is in them. The paper's normalization needs
    none."""
    for name, mean, std in (
        ("dark", 0.1, 0.05),
        ("bright", 0.7, 0.25),
        ("other", 0.9, 0.9),
    ):
        (tmp_path / name).mkdir()
        statistics = {"mean": [mean, mean + 0.01, mean + 0.02], "std": [std] * 3}
        write_json(tmp_path / name / "statistics.json", statistics)
    corpora = {folder.name: folder for folder in tmp_path.iterdir()}
    phases = [
        {"corpora": ["dark"], "steps": 1},
        {"corpora": ["dark", "bright"], "steps": 1},
    ]
    paper = Config(phases=phases)
    own = paper.model_copy(update={"normalization": "corpus"})

    measured = measure_preprocessing(own, corpora)

    assert measured.mean == pytest.approx((0.4, 0.41, 0.42))
    assert measured.std == pytest.approx((0.15, 0.15, 0.15))
    assert measure_preprocessing(paper, {}) == Preprocessing()


def test_without_crops_their_area_may_fit_no_patches(
    clips, vocabulary, tiny_model, tmp_path, resources
):
    values = {
        "phases": PHASES,
        "model": tiny_model().model_dump(include={"video", "text", "embed_dim"}),
        "crops": {"share": 0, "area": (0.001, 0.002)},
        "batch_size": 2,
        "max_text_tokens": 16,
    }
    inputs = {"tokenizer": vocabulary, "clips": clips}
    run_stage(train_prompter, inputs, tmp_path, resources, **values)
    assert (tmp_path / "model" / "config.json").is_file()
