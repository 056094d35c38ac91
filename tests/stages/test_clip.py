"""A CLIP or SigLIP of transformers through the stages: as the prompter, and as the start of both of
its towers."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch

from alpro.errors import InputError
from alpro.files import read_json
from alpro.inference.loading import read_entities, read_prompts
from alpro.inference.model import Model
from alpro.models.folder import ModelBundle, load_clip_model
from alpro.models.words import Templates
from alpro.stages import cache_prompts, evaluate, pretrain, train_prompter
from alpro.stages.execution.interface import Outcome
from alpro.stages.train_prompter import load_towers
from alpro.stages.training import stage
from alpro.stages.training.batch import Batch
from alpro.stages.training.checkpoint import trainable
from alpro.stages.training.layers import configure_layers
from alpro.stages.training.metrics import read_metrics
from alpro.stages.training.objective import PrompterObjective
from tests.plans import configure
from tests.stages.conftest import run_stage
from tests.stages.training.part_of_a_batch import losses_of

CPU = torch.device("cpu")
PHASES = [{"corpora": ["clips", "stills"], "weights": [1, 1], "steps": 4}]


def configured(folder, **changes):
    values = {
        "phases": PHASES,
        "clip": str(folder),
        "model": {"video": {"frames": 3}},
        "batch_size": 4,
        "accumulation_steps": 2,
        "contrast": "batch",
        "lr": 1e-2,
        "max_text_tokens": 24,
        "log_every": 1,
    }
    return train_prompter.Config.model_validate(values | changes)


@pytest.fixture(scope="module", params=["clip", "siglip"])
def folder(request, clip_folders):
    return clip_folders[request.param]


@dataclass
class Trained:
    """The artifact of a training, its outcome, and the trained weights at each validation."""

    out: Path
    outcome: Outcome
    weights: list[dict[str, torch.Tensor]]


@pytest.fixture(scope="module")
def trained(folder, clips, stills, vocabulary, tmp_path_factory, resources):
    """Four steps on batches of videos and of images. Of two validations the first is the best, and
    of the shares of the fine-tuning the half."""
    out = tmp_path_factory.mktemp("train_prompter")
    inputs = {
        "tokenizer": vocabulary,
        "vocabulary": vocabulary,
        "clips": clips,
        "stills": stills,
    }
    scores = [7.0, 3.0, 1.0, 2.0, 9.0, 4.0, 5.0]
    weights = []

    def scripted(objective, *arguments, **options):
        validate = build_validation(objective, *arguments, **options)
        names = list(validate())

        def next_scores():
            current = trainable(objective)
            weights.append({name: weight.clone() for name, weight in current.items()})
            return dict.fromkeys(names, scores[len(weights) - 1])

        return next_scores

    config = configured(folder, interpolate=True, validation={"times": 2, "videos": 2})
    build_validation = stage.build_validation
    with mock.patch.object(stage, "build_validation", scripted):
        outcome = train_prompter.run(
            config, train_prompter.Inputs.of(inputs), out, resources
        )
    return Trained(out, outcome, weights)


def test_the_best_weights_on_validation_are_kept_and_moved_towards_the_original(
    trained,
):
    metrics = trained.outcome.metrics
    assert metrics["selected_step"] == 2
    assert metrics["interpolation_share"] == 0.5
    assert metrics[f"{train_prompter.SELECTED}/interpolated/0.75"] == 4
    assert metrics[train_prompter.SELECTED] == 9

    best, last, original, *_, interpolated = trained.weights
    stored = load_clip_model(str(trained.out / "model")).model.state_dict()
    for name, weight in best.items():
        half = (original[name] + weight) / 2
        torch.testing.assert_close(stored[name.removeprefix("model.")], half)
        # All of the fine-tuning was tried last.
        assert torch.equal(interpolated[name], weight)
    assert any((best[name] != last[name]).any() for name in best)


@pytest.fixture
def objective(folder):
    loaded = load_towers(configured(folder), CPU)
    with torch.no_grad():
        # So that temporal attention does something.
        for temporal in loaded.model.temporal:
            temporal.attn.proj.weight.normal_(std=0.3)
    return PrompterObjective(
        loaded.model, loaded.preprocessing.mean, loaded.preprocessing.std
    ).eval()


@pytest.fixture
def batch():
    random = torch.Generator().manual_seed(1)
    clips = torch.randint(
        0, 256, (4, 3, 3, 32, 32), generator=random, dtype=torch.uint8
    )
    text = torch.randint(2, 50, (4, 8), generator=random)
    text[:, -1] = 1  # the end
    mask = torch.ones_like(text)
    uniforms = torch.rand(4, 2, generator=random)
    return Batch(0, "video", list("abcd"), torch.arange(4), clips, text, mask, uniforms)


def gradients(objective):
    return {name: p.grad for name, p in objective.named_parameters() if p.requires_grad}


def test_every_weight_that_is_trained_has_a_gradient_also_with_recomputed_activations(
    objective, batch
):
    """DistributedDataParallel waits for all of them."""
    losses_of(objective, batch)[0].backward()
    expected = gradients(objective)
    assert [name for name, gradient in expected.items() if gradient is None] == []

    objective.zero_grad(set_to_none=True)
    configure_layers(objective, checkpoint_activations=True)
    temporal = objective.model.temporal[0]
    computed = []
    temporal.register_forward_pre_hook(lambda *_: computed.append(1))
    objective.train()  # only then activations are recomputed
    for module in objective.modules():
        module.dropout = 0.0
    losses_of(objective, batch)[0].backward()
    assert len(computed) == 2

    for name, gradient in gradients(objective).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4)


def test_only_the_last_layers_of_each_tower_are_trained(folder):
    towers = load_towers(
        configured(folder, trained_layers=1), torch.device("cpu")
    ).model
    *first, last = towers.clip.vision_model.encoder.layers
    trained = {
        name for name, weight in towers.named_parameters() if weight.requires_grad
    }
    assert not any(
        weight.requires_grad for layer in first for weight in layer.parameters()
    )
    assert all(weight.requires_grad for weight in last.parameters())
    assert not any(".embeddings." in name for name in trained)
    assert any(name.startswith("temporal.0") for name in trained)
    assert any("layernorm" in name or "layer_norm" in name for name in trained)


def test_keys_that_do_not_go_together_are_refused(clip_folders, tmp_path):
    clip = clip_folders["clip"]
    for changes in (
        {"vit": "vit_tiny_patch16_224.a"},
        {"bert": "b"},
        {"optimizer": "muon"},
    ):
        with pytest.raises(ValueError, match=r"vit|bert|muon"):
            configured(clip, **changes)
    with pytest.raises(InputError, match="max_text_tokens"):  # of the text tower
        load_towers(configured(clip, max_text_tokens=30), CPU)
    with pytest.raises(InputError, match=r"pretrain\.start"):
        configure("own_videos", "train_prompter.clip=a/clip", data=tmp_path)


TEMPLATES = Templates(video=("A video of a {}.",), image=("A photo of a {}.", "one {}"))


@pytest.fixture(scope="module")
def cached(folder, vocabulary, tmp_path_factory, resources):
    """The artifact of cache_prompts; the folder of the model is gone afterwards."""
    source = shutil.copytree(folder, tmp_path_factory.mktemp("source") / "clip")
    out = tmp_path_factory.mktemp("prompts")
    config = {"templates": TEMPLATES, "prompter": str(source)}
    run_stage(cache_prompts, {"vocabulary": vocabulary}, out, resources, **config)
    shutil.rmtree(source)
    return out


@pytest.mark.parametrize("kept", [True, False])
def test_pretraining_learns_from_its_confident_pseudo_labels(
    kept, cached, clips, stills, vocabulary, tiny_model, tmp_path, resources
):
    """In two steps with all losses, on batches of videos and of images. The model's normalization
    stays its own: not that of the prompter, as if there were none."""
    config = {
        "phases": PHASES,
        "model": tiny_model(),
        "normalization": "corpus",
        "batch_size": 4,
        "lr": 1e-3,
        "max_text_tokens": 16,
        "threshold": 1.0 - kept,
        "log_every": 1,
    }
    inputs = {
        "tokenizer": vocabulary,
        "vocabulary": vocabulary,
        "prompts": cached,
        "clips": clips,
        "stills": stills,
    }
    outcome = run_stage(pretrain, inputs, tmp_path, resources, **config)
    metrics = read_metrics(tmp_path / "metrics.jsonl")
    losses = [line for line in metrics if "train/loss_pem" in line]
    assert len(losses) == 4
    for line in losses:
        assert (line["train/loss_pem"] > 0.1) == kept
        assert line["train/pseudo_labels_kept"] == kept
    assert (tmp_path / "pictures" / "pseudo_labels.png").is_file()
    assert kept != any("threshold" in warning for warning in outcome.warnings)

    folder = ModelBundle.from_pretrained(tmp_path / "model")
    means = [
        read_json(corpus / "statistics.json")["mean"] for corpus in (clips, stills)
    ]
    assert folder.preprocessing.mean == pytest.approx(np.mean(means, axis=0), abs=1e-4)
    assert not any("clip" in name for name in folder.model.state_dict())


def test_entities_of_evaluation_and_in_python_come_from_the_artifact_of_the_prompts(
    cached, sample, vocabulary, clips, tmp_path, resources
):
    config = {"model_name": "prompter", "retrieval": "clips", "entity_crops": 1}
    inputs = {"prompts": cached, "clips": clips}
    run_stage(evaluate, inputs, tmp_path, resources, min_decoded_share=0.5, **config)
    names = {
        row["name"].partition("/")[0] for row in read_json(tmp_path / "results.json")
    }
    assert names >= {"similarity", "entities", "entity_crops"}
    model = Model.load(cached, device="cpu")
    video = min((sample / "videos").glob("test-*.mp4"))
    whole = model.entities(video, top_k=99)
    assert sorted(word for word, _ in whole) == sorted(read_entities(vocabulary))
    assert sum(p for _, p in whole) == pytest.approx(1, abs=1e-5)
    assert dict(model.entities(video, (0.5, 0.5, 0.5, 0.5), top_k=99)) != dict(whole)
    texts = model.encode(["A video of a box.", "A photo of a box."])
    assert abs(model.encode([video]) @ texts.T).max() <= 1 + 1e-5
    with pytest.raises(InputError, match="no multimodal encoder"):
        model.match(["a box"], [video])


def test_pretraining_has_the_tokenizer_and_the_normalization_of_a_prompter_that_was_trained(
    folders, vocabulary, tmp_path
):
    prompter = ModelBundle.from_pretrained(folders["prompter"] / "model")
    prompter.preprocessing = prompter.preprocessing.model_copy(
        update={"mean": (0.1, 0.2, 0.3)}
    )
    prompter.save_pretrained(tmp_path / "model")
    config = pretrain.Config(phases=PHASES)
    words = {"tokenizer": vocabulary, "vocabulary": vocabulary}
    inputs = pretrain.Inputs.of(
        {"prompter": tmp_path, "prompts": folders["prompts"], **words}
    )

    teacher, tokenizer, preprocessing = pretrain.load_teacher(config, inputs, CPU)
    assert tokenizer == teacher.tokenizer
    assert preprocessing == prompter.preprocessing


def test_an_entity_is_the_mean_of_its_own_prompts(
    folders, vocabulary, tmp_path, resources
):
    """Of one template for videos and of two for images."""
    inputs = {"prompter": folders["prompter"], "vocabulary": vocabulary}
    run_stage(cache_prompts, inputs, tmp_path, resources, templates=TEMPLATES)

    _, prompts = read_prompts(tmp_path)
    entities = read_entities(vocabulary)
    prompter = ModelBundle.from_pretrained(folders["prompter"] / "model")

    def embedded(template):
        texts = [template.format(entity) for entity in entities]
        return prompter.embed_texts(texts, 64)

    assert read_json(tmp_path / "entities.json") == entities
    torch.testing.assert_close(
        prompts["video"], embedded("A video of a {}."), atol=1e-5, rtol=0
    )
    mean = (embedded("A photo of a {}.") + embedded("one {}")) / 2
    torch.testing.assert_close(prompts["image"], mean, atol=1e-5, rtol=0)
