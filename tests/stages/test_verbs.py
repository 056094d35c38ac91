"""Verbs through the stages that use them: vocabulary, prompts (of a CLIP), pre-training, fine-tuning."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from torch.nn.functional import normalize

from alpro.models.clip_prompter import load_clip
from alpro.models.folder import ModelFolder
from alpro.models.templates import Templates
from alpro.stages import build_vocabulary, cache_prompts, pretrain
from alpro.stages.cache_prompts import read_prompts, read_verbs
from alpro.stages.training.metrics import read_metrics
from alpro.stages.training.stage import fine_tuned

TEMPLATES = Templates(video=("a {}",), image=("a {}",), verb=("It {}.", "Something {}."))


@pytest.fixture(scope="module")
def inputs(corpora, clip_folders, tmp_path_factory, resources) -> dict[str, Path]:
    """The sample's corpora, its vocabulary with four verbs, and their prompts by a CLIP."""
    vocabulary, prompts = tmp_path_factory.mktemp("vocabulary"), tmp_path_factory.mktemp("prompts")
    config = build_vocabulary.Config(entities=8, verbs=4, word_pieces=300, templates=TEMPLATES)
    build_vocabulary.run(config, corpora, vocabulary, resources)
    config = cache_prompts.Config(templates=TEMPLATES, prompter=str(clip_folders["clip"]))
    outcome = cache_prompts.run(config, {"vocabulary": vocabulary}, prompts, resources)
    assert outcome.counts == {"entities": 8, "verbs": 4}
    assert outcome.metrics["prompts/verb/disagreement"] > 0
    return {**corpora, "vocabulary": vocabulary, "prompts": prompts}


def configured(tiny_model, **changes) -> pretrain.Config:
    """Four steps, on batches of videos and of images."""
    values = {
        "phases": [{"corpora": ["clips", "stills"], "weights": [1, 1], "steps": 4}],
        "model": tiny_model(),
        "normalization": "corpus",
        "batch_size": 4,
        "max_text_tokens": 16,
        "threshold": 0.0,
        "verb_threshold": 0.0,
        "log_every": 1,
    }
    return pretrain.Config.model_validate(values | changes)


def test_verbs_have_one_embedding_each_the_mean_of_their_prompts(inputs, clip_folders):
    prompts, verbs = read_prompts(inputs["prompts"]), read_verbs(inputs["vocabulary"])
    assert {kind: tuple(value.shape) for kind, value in prompts.items()} == {
        "video": (8, 16),
        "image": (8, 16),
        "verb": (4, 16),
    }
    loaded = load_clip(str(clip_folders["clip"]))
    for verb, embedding in zip(verbs, prompts["verb"], strict=True):
        both = loaded.model.embed_texts(loaded.tokenizer, [f"It {verb}.", f"Something {verb}."])
        torch.testing.assert_close(embedding, normalize(both, dim=1).mean(0), atol=1e-5, rtol=1e-4)
    assert pq.read_table(inputs["prompts"] / "prompts.parquet").num_rows == 8  # of the entities


@pytest.mark.parametrize("region", ["clip", "tube"])
def test_pre_training_learns_verbs_from_videos_and_its_model_can_be_fine_tuned(
    region, inputs, tiny_model, tmp_path, resources
):
    config = configured(tiny_model, weights={"pvm": 1.0}, verb_region=region)
    pretrain.run(config, inputs, tmp_path, resources)
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "train/loss_pvm" in line]
    assert len(lines) == 4
    assert {line["train/verb_labels_kept"] for line in lines} == {0.0, 1.0}  # images and videos
    assert all((line["train/loss_pvm"] > 0.1) == (line["train/verb_labels_kept"] == 1) for line in lines)
    folder = ModelFolder.from_pretrained(tmp_path / "model")
    assert folder.verbs == read_verbs(inputs["vocabulary"])
    assert folder.model.pvm_head[2].out_features == 4
    tuned = fine_tuned(folder, 2, torch.device("cpu"), answers=3)
    assert tuned.pvm_head is None
    assert torch.equal(tuned.video_proj.weight, folder.model.video_proj.weight)


def test_without_the_loss_a_vocabulary_with_verbs_changes_nothing_in_the_model(inputs, tiny_model, tmp_path, resources):
    pretrain.run(configured(tiny_model), inputs, tmp_path, resources)
    assert not (tmp_path / "model" / "verbs.json").exists()
    assert not any(key.startswith("pvm") for key in ModelFolder.from_pretrained(tmp_path / "model").model.state_dict())
    assert not any("train/loss_pvm" in line for line in read_metrics(tmp_path / "metrics.jsonl"))
