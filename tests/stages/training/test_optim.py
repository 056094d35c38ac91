"""Which weights decay, and the learning rate of every step."""

from copy import deepcopy

import pytest
import torch
from torch import nn

from alpro.models.alpro import Alpro
from alpro.models.text import Layer, TextConfig
from alpro.stages.train_prompter import Config as PrompterConfig
from alpro.stages.training.config import EncoderConfig
from alpro.stages.training.objective import MatchingObjective
from alpro.stages.training.optim import build_optimizer, learning_rate, step_if

# steps, warm-up share, share left at the end: the rate of every step, in shares of the highest.
RATES = [
    (5, 0.0, 0.0, [1, 0.8, 0.6, 0.4, 0.2]),
    (10, 0.2, 0.0, [0.5, 1, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8]),
    (8, 0.5, 0.6, [0.25, 0.5, 0.75, 1, 1, 0.9, 0.8, 0.7]),
    (4, 0.25, 1.0, [1, 1, 1, 1]),
    (1, 0.05, 0.0, [1]),
]


@pytest.mark.parametrize(("steps", "warmup", "last", "shares"), RATES)
def test_the_learning_rate_of_every_step(steps, warmup, last, shares, training):
    config = training(lr=2.0, warmup_ratio=warmup, min_lr_ratio=last)

    rates = [learning_rate(step, steps, config) for step in range(steps)]

    assert rates == pytest.approx([2.0 * share for share in shares])


@pytest.fixture
def objective(tiny_model):
    torch.manual_seed(0)
    return MatchingObjective(
        Alpro(tiny_model(), entities=4, answers=3), [0.5] * 3, [0.5] * 3
    )


PLACE_AND_TIME = [
    "pos_embed",
    "time_embed",
    "cls_token",
    "position_embeddings",
    "token_type_embeddings",
]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
@torch.no_grad()
def test_weights_decay_but_biases_norms_and_embeddings_of_place_and_time_do_not(
    objective, optimizer
):
    """With a gradient of zero nothing is done but decay: by lr x weight_decay of the weight, and no
    more."""
    optimizer = build_optimizer(objective, encoder(optimizer, lr=0.5, weight_decay=0.1))
    for parameter in objective.parameters():
        parameter.grad = torch.zeros_like(parameter.fill_(1.0))
    optimizer.step()

    for name, parameter in objective.named_parameters():
        spared = parameter.ndim < 2 or any(part in name for part in PLACE_AND_TIME)
        expected = torch.full_like(parameter, 1.0 if spared else 0.95)
        torch.testing.assert_close(parameter, expected, msg=name)
    for group in optimizer.param_groups:
        assert group["lr"] == 0.5
        assert group["betas"] == (0.9, 0.98)
        assert group["eps"] == 1e-6


YES = torch.tensor(True)
NO = torch.tensor(False)


def layer_and_head():
    """A small model with a transformer layer, whose matrices Muon trains; the same each time."""
    torch.manual_seed(0)
    layer = Layer(TextConfig(width=8, heads=2, depth=2, fusion_layer=1))
    return nn.Sequential(layer, nn.Linear(8, 3))


def encoder(optimizer, **values):
    phases = [{"corpora": ["clips"], "steps": 4}]
    return EncoderConfig(phases=phases, optimizer=optimizer, **{"lr": 0.1} | values)


@pytest.fixture(params=["adamw", "muon"])
def stepping(request):
    """stepping(): a new small model that decays, and its optimizer; the same each time."""

    def make():
        model = layer_and_head()
        return model, build_optimizer(model, encoder(request.param, weight_decay=0.1))

    return make


def give_gradient(model, seed, spoiled=0.0):
    """A gradient by its seed; where `spoiled` is no finite number, so is one of its elements."""
    random = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=random)
        parameter.grad.view(-1)[0] += spoiled


def all_of(model, optimizer):
    """Weights and the optimiser's whole state."""
    values = dict(model.state_dict())
    for number, state in optimizer.state_dict()["state"].items():
        values |= {
            f"{number}.{key}": torch.as_tensor(value) for key, value in state.items()
        }
    assert len(values) > len(model.state_dict())
    return values


@pytest.mark.parametrize("spoiled", [float("nan"), float("inf"), 0.0])
@pytest.mark.parametrize("bad", [(), (0,), (2,), (0, 1, 3), (4,)])
def test_a_skipped_step_changes_nothing_and_another_is_that_of_the_optimizer(
    bad, spoiled, stepping
):
    """To the last bit, in weights and state."""
    model, optimizer = stepping()
    other, plain = stepping()
    for seed in range(5):
        give_gradient(model, seed, spoiled if seed in bad else 0.0)
        step_if(optimizer, NO if seed in bad else YES)
        if seed not in bad:
            give_gradient(other, seed)
            plain.step()

    expected = all_of(other, plain)
    torch.testing.assert_close(all_of(model, optimizer), expected, rtol=0, atol=0)


def test_muon_takes_orthogonal_steps_of_the_matrices_of_layers_and_leaves_the_rest_to_adamw():
    """Its state is momentum; queries, keys and values are three matrices. All singular values of a
    step are near 0.2 sqrt(larger side) times the rate. What it does not train takes the steps of
    AdamW, to the last bit."""
    model = layer_and_head()
    plain = layer_and_head()
    muon = build_optimizer(model, encoder("muon", weight_decay=0.0))
    adamw = build_optimizer(plain, encoder("adamw", weight_decay=0.0))
    for seed in range(2):
        for one, optimizer in ((model, muon), (plain, adamw)):
            give_gradient(one, seed)
            step_if(optimizer, YES)

    layers = ("attention.qkv", "attention.proj", "mlp.fc1", "mlp.fc2")
    moved = {f"0.{name}.weight" for name in layers}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, plain.get_parameter(name)) == (
            name not in moved
        ), name
        assert ("momentum" in muon.state[parameter]) == (name in moved)

    give_gradient(model, 2)
    before = deepcopy(model.state_dict())
    step_if(muon, YES)
    for name in moved:
        step = (before[name] - model.state_dict()[name]) / 0.1
        for part in step.chunk(3) if "qkv" in name else [step]:
            values = torch.linalg.svdvals(part) / (0.2 * max(part.shape) ** 0.5)
            assert values.min() > 0.5, name
            assert values.max() < 1.3, name


def test_new_modules_have_a_learning_rate_of_their_own():
    """The temporal attention of a CLIP; its decay is that of the others."""
    model = nn.Module()
    model.old = nn.Linear(2, 2)
    model.temporal = nn.Linear(2, 2)
    phases = [{"corpora": ["a"], "steps": 1}]
    rates = {"lr": 1e-3, "new_lr": 2e-2, "weight_decay": 0.1}
    config = PrompterConfig(phases=phases, clip="x", **rates)

    settings = {}
    for group in build_optimizer(model, config).param_groups:
        for parameter in group["params"]:
            settings[parameter] = (group.get("lr_scale", 1.0), group["weight_decay"])

    assert [settings[weight] for weight in model.old.parameters()] == [(1, 0.1), (1, 0)]
    scale = pytest.approx(20)
    assert [settings[weight] for weight in model.temporal.parameters()] == [
        (scale, 0.1),
        (scale, 0),
    ]
