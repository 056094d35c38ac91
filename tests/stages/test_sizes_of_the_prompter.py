"""A prompter of another size than the model that it teaches."""

import torch

from alpro.models.alpro import Prompter
from alpro.stages import cache_prompts, pretrain, train_prompter
from alpro.stages.encoding.encode import load_model, load_prompter
from alpro.stages.training.metrics import read_metrics


def test_a_wider_prompter_teaches_a_narrow_model(clips, vocabulary, tiny_model, tmp_path, resources, monkeypatch):
    """Its labels are those that it gives alone, and the model that learns from them keeps its own width."""
    narrow = tiny_model()
    wide = narrow.model_copy(
        update={part: getattr(narrow, part).model_copy(update={"width": 48}) for part in ("video", "text")}
        | {"embed_dim": 24}
    )
    inputs = {"tokenizer": vocabulary, "vocabulary": vocabulary, "clips": clips}
    values = {"phases": [{"corpora": ["clips"], "steps": 2}], "normalization": "corpus", "log_every": 1}
    values |= {"batch_size": 4, "max_text_tokens": 16, "validation": {"videos": 2}}

    def make(stage, config) -> None:
        (tmp_path / stage.__name__).mkdir()
        stage.run(config, inputs, tmp_path / stage.__name__, resources)

    make(train_prompter, train_prompter.Config.model_validate(values | {"model": wide}))
    inputs["prompter"] = tmp_path / train_prompter.__name__
    make(cache_prompts, cache_prompts.Config())
    inputs["prompts"] = tmp_path / cache_prompts.__name__
    seen, label = [], Prompter.probabilities

    def labeled(self, *inputs):
        seen.append((inputs, labels := label(self, *inputs)))
        return labels

    monkeypatch.setattr(Prompter, "probabilities", labeled)
    make(pretrain, pretrain.Config.model_validate(values | {"model": narrow, "threshold": 0.0}))
    alone = load_prompter(inputs["prompter"], torch.device("cpu")).model
    assert alone.config.video.width == 48
    assert len(seen) >= 2
    for (frames, prompts), labels in seen:
        assert prompts.shape[1] == 24
        torch.testing.assert_close(label(alone, frames, prompts), labels)
        assert labels.std() > 0
    taught = load_model(tmp_path / pretrain.__name__, torch.device("cpu")).model
    assert (taught.config.video.width, taught.config.embed_dim) == (32, 16)
    assert all("train/loss_pem" in line for line in read_metrics(tmp_path / pretrain.__name__ / "metrics.jsonl")[:2])
