"""A prompter from both towers of a CLIP or SigLIP: at first the mean of the frames; trained, as any other prompter."""

import pytest
import torch

from alpro.errors import InputError
from alpro.models.clip_prompter import ClipFolder, load_clip
from alpro.pipeline.config.load import load_config
from alpro.stages import train_prompter
from alpro.stages.train_prompter import load_towers
from alpro.stages.training.batch import Batch
from alpro.stages.training.loop import configure_layers
from alpro.stages.training.metrics import read_metrics
from alpro.stages.training.objective import PrompterObjective
from tests.stages.training.part_of_a_batch import losses_of

CPU = torch.device("cpu")


def configured(folder, **changes) -> train_prompter.Config:
    values = {"phases": [{"corpora": ["clips", "stills"], "weights": [1, 1], "steps": 4}], "clip": str(folder)}
    values |= {"batch_size": 4, "lr": 1e-2, "max_text_tokens": 24, "log_every": 1, "model": {"video": {"frames": 3}}}
    values |= {"contrast": "batch", "accumulation_steps": 2}
    return train_prompter.Config.model_validate(values | changes)


@pytest.fixture(scope="module", params=["clip", "siglip"])
def folder(request, clip_folders):
    return clip_folders[request.param]


@pytest.fixture(scope="module")
def trained(folder, clips, stills, vocabulary, tmp_path_factory, resources):
    """The artifact of four steps on batches of videos and of images."""
    out = tmp_path_factory.mktemp("train_prompter")
    inputs = {"tokenizer": vocabulary, "vocabulary": vocabulary, "clips": clips, "stills": stills}
    train_prompter.run(configured(folder), inputs, out, resources)
    return out


def change(folder: ClipFolder) -> None:
    """Temporal attention that does something."""
    with torch.no_grad():
        for temporal in folder.model.temporal:
            temporal.attn.proj.weight.normal_(std=0.3)


def test_training_changes_both_towers_and_temporal_attention(trained, folder):
    before, after = load_towers(configured(folder), CPU).model, load_clip(str(trained / "model")).model
    changed = {name for name, value in after.state_dict().items() if (value != before.state_dict()[name]).any()}
    for part in ("clip.vision_model.", "clip.text_model.", "temporal.0.attn.proj", "clip.logit_scale"):
        assert any(name.startswith(part) for name in changed), part
    lines = [line for line in read_metrics(trained / "metrics.jsonl") if "train/loss_vtc" in line]
    assert len(lines) == 4


@pytest.fixture
def objective(folder) -> PrompterObjective:
    loaded = load_towers(configured(folder), CPU)
    change(loaded)
    return PrompterObjective(loaded.model, loaded.preprocessing.mean, loaded.preprocessing.std).eval()


@pytest.fixture
def batch() -> Batch:
    random = torch.Generator().manual_seed(1)
    clips = torch.randint(0, 256, (4, 3, 3, 32, 32), generator=random, dtype=torch.uint8)
    text = torch.randint(2, 50, (4, 8), generator=random)
    text[:, -1] = 1  # the end
    return Batch(0, "video", list("abcd"), torch.arange(4), clips, text, torch.ones_like(text))


def gradients(objective: PrompterObjective) -> dict[str, torch.Tensor | None]:
    return {name: p.grad for name, p in objective.named_parameters() if p.requires_grad}


def test_every_weight_that_is_trained_has_a_gradient_also_with_recomputed_activations(objective, batch, resources):
    """DistributedDataParallel waits for all of them."""
    losses_of(objective, batch)[0].backward()
    expected = gradients(objective)
    assert [name for name, gradient in expected.items() if gradient is None] == []
    objective.zero_grad(set_to_none=True)
    for module in objective.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    configure_layers(objective, resources.model_copy(update={"checkpoint_activations": True}))
    assert any(getattr(module, "gradient_checkpointing", False) for module in objective.modules())
    for tower in (objective.model.clip.vision_model, objective.model.clip.text_model):
        for layer in tower.encoder.layers:
            layer.training, layer.self_attn.dropout = True, 0.0  # only then activations are recomputed
    losses_of(objective, batch)[0].backward()
    for name, gradient in gradients(objective).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-4)


def test_keys_that_do_not_go_together_are_refused(clip_folders, tmp_path):
    clip = clip_folders["clip"]
    dropping = {"phases": [{"corpora": ["clips"], "steps": 1, "patch_dropping": 0.5}]}
    wrong = {"vit": {"vit": "vit_tiny_patch16_224.a"}, "bert": {"bert": "b"}, "muon": {"optimizer": "muon"}}
    for key, changes in (wrong | {"patch_dropping": dropping}).items():
        with pytest.raises(ValueError, match=key):
            configured(clip, **changes)
    with pytest.raises(InputError, match="max_text_tokens"):  # of the text tower
        load_towers(configured(clip, max_text_tokens=30), CPU)
    with pytest.raises(InputError, match=r"pretrain.start: the prompter has the towers of 'a/clip'"):
        load_config("own_videos", str(tmp_path), ["train_prompter.clip=a/clip"])
