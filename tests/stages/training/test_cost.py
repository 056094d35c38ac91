"""The estimate of what training costs."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from alpro.models.alpro import Alpro, ModelConfig
from alpro.models.text import TextConfig
from alpro.models.timesformer import VideoConfig
from alpro.stages.execution.interface import Resources
from alpro.stages.finetune_retrieval import Config as FinetuneRetrieval
from alpro.stages.train_prompter import Config as TrainPrompter
from alpro.stages.training import cost
from alpro.stages.training.config import Phase

MODEL = ModelConfig(
    video=VideoConfig(image_size=64, patch_size=8, width=64, depth=2, heads=2, frames=2),
    text=TextConfig(width=64, depth=4, fusion_layer=2, heads=2, vocab_size=100),
)
CPU = Resources(device="cpu")


def test_steps_epochs_and_time_follow_from_the_items_and_the_rate(monkeypatch):
    """Two passes of 40 items, and ten steps of four of 120 captions; no questions, so no such stage."""
    monkeypatch.setattr(cost, "measured_rate", lambda *_: 1e9)
    trainings = {
        "train_prompter": TrainPrompter(phases=(Phase(corpora=("data",), epochs=2),), batch_size=8, model=MODEL),
        "finetune_retrieval": FinetuneRetrieval(phases=(Phase(corpora=("data",), steps=10),), batch_size=4, frames=4),
    }
    train = {"items": 40, "captions": 120, "questions": 0}
    costs = cost.training_costs({**trainings, "finetune_qa": trainings["train_prompter"]}, train, MODEL, CPU)
    assert {stage: (c["examples"], c["steps"], c["epochs"]) for stage, c in costs.items()} == {
        "train_prompter": (40, 10, 2.0),
        "finetune_retrieval": (120, 10, 1 / 3),
    }
    network = Alpro(MODEL)
    assert costs["train_prompter"]["bytes"] == 24 * sum(p.numel() for p in network.parameters())
    assert costs["train_prompter"]["seconds"] == pytest.approx(
        80 * cost.operations(network, "train_prompter", 2, 30) / 1e9
    )


def test_operations_are_those_that_torch_counts_but_for_attention():
    encoder = Alpro(MODEL).video_encoder
    with FlopCounterMode(display=False) as counter:
        encoder(torch.zeros(1, 2, 3, 64, 64)).sum().backward()
    assert 6 * 128 * cost.weights(encoder) == pytest.approx(counter.get_total_flops(), rel=0.15)
    assert cost.measured_rate(MODEL, torch.device("cpu"), torch.float32) > 0
