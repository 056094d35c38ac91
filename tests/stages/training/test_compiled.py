"""Compilation of the layers, with a backend that compiles nothing: the graphs that there are, and
none is broken."""

import pytest
import torch
from torch import nn

from alpro.models import attention, precision
from alpro.models.clip_prompter import ClipPrompter
from alpro.models.timesformer import Block, VideoConfig
from alpro.stages.training import layers
from alpro.stages.training.layers import configure_layers
from alpro.stages.training.objective import PrompterObjective
from tests.stages.training.part_of_a_batch import objective_of, whole_batch

LAYERS = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture
def graphs(monkeypatch):
    """The number of operations of each graph that would be compiled; none is broken."""
    from torch._dynamo.utils import counters

    found = []
    compile_layer = nn.Module.compile

    def backend(graph, inputs):
        found.append(len(graph.graph.nodes))
        return graph.forward

    def compile_with_backend(module, **options):
        compile_layer(module, backend=backend, **options)

    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(nn.Module, "compile", compile_with_backend)
    with torch._dynamo.config.patch(optimize_ddp=True, recompile_limit=8):
        yield found
    assert not counters["graph_break"]
    torch._dynamo.reset()


def towers():
    """A small CLIP with temporal attention for four frames."""
    from transformers import CLIPConfig, CLIPModel

    vision = LAYERS | {"image_size": 32, "patch_size": 8}
    text = LAYERS | {
        "vocab_size": 99,
        "max_position_embeddings": 16,
        "eos_token_id": 98,
    }
    config = CLIPConfig(vision_config=vision, text_config=text, projection_dim=16)
    config._attn_implementation = "sdpa"
    model = ClipPrompter(CLIPModel(config))
    model.unfreeze(4)  # with temporal attention for four frames
    return model


@pytest.mark.long
@pytest.mark.parametrize("mixed", [False, True])
def test_the_layers_of_pretraining_are_few_whole_graphs(graphs, monkeypatch, mixed):
    """`mixed`: in bfloat16 with the residual stream of a GPU."""
    monkeypatch.setattr(precision, "is_on_gpu", lambda _: True)
    objective = objective_of("pretrain").train()
    configure_layers(objective, compiled=True)
    batch = objective.with_pseudo_labels(whole_batch())

    def step():
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss, _ = objective(batch, objective.step_counts([batch]))
        loss.backward()
        return len(graphs)

    assert step() == step()  # a second step compiles nothing
    assert 2 <= len(graphs) <= 12
    assert torch._dynamo.config.recompile_limit == layers.MAX_GRAPHS


def test_the_layers_of_a_clip_are_compiled_too(graphs):
    torch.manual_seed(0)
    model = towers()
    objective = PrompterObjective(model, (0.5,) * 3, (0.5,) * 3).train()
    frames = torch.randn(2, 4, 3, 32, 32)
    ids = torch.randint(1, 98, (2, 16))

    def encode():
        return model.encode_video(frames), model.encode_text(ids, torch.ones_like(ids))

    expected = encode()
    configure_layers(objective, compiled=True)
    compiled = [
        module for module in model.modules() if module._compiled_call_impl is not None
    ]
    actual = encode()
    sum(output.square().sum() for output in actual).backward()

    torch.testing.assert_close(actual, expected)
    assert len(compiled) == 2 + 2 + 2  # vision, text, temporal attention
    assert 3 <= len(graphs) <= 4


def test_a_block_with_the_attention_of_a_gpu_is_one_graph(graphs, monkeypatch):
    """Four frames, whose temporal attention is packed."""
    monkeypatch.setattr(attention, "is_on_gpu", lambda _: True)
    config = VideoConfig(
        image_size=16, patch_size=4, frames=4, width=16, depth=1, heads=2
    )
    block = Block(config)
    x = torch.randn(2, 1 + 4 * config.grid**2, 16, requires_grad=True)
    mask = attention.tile_mask(x, 2 * config.grid**2, 4)
    expected = block(x, 4)  # not packed

    block.compile(dynamic=False)
    for _ in range(2):
        actual = block(x, 4, mask=mask)
        actual.sum().backward()

    torch.testing.assert_close(actual, expected)
    assert len(graphs) == 1
