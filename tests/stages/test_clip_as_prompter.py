"""A CLIP or SigLIP of transformers instead of a trained prompter, through the stages that use one."""

import shutil

import pytest
import torch

from alpro.errors import InputError
from alpro.files import read_json
from alpro.inference.model import Model
from alpro.models.alpro import Alpro
from alpro.models.clip_prompter import ClipFolder, load_clip
from alpro.models.folder import ModelFolder
from alpro.models.words import Templates
from alpro.stages import cache_prompts, pretrain, zero_shot
from alpro.stages.cache_prompts import read_entities, read_prompts
from alpro.stages.training.metrics import read_metrics
from alpro.stages.training.pretrain_objective import LossWeights, PretrainObjective

TEMPLATES = Templates(video=("A video of a {}.",), image=("A photo of a {}.", "one {}"))


@pytest.fixture(scope="module", params=["clip", "siglip"])
def kind(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def cached(kind, clip_folders, vocabulary, tmp_path_factory, resources):
    """The artifact of cache_prompts; the folder of the model is gone afterwards."""
    source = shutil.copytree(clip_folders[kind], tmp_path_factory.mktemp("source") / "clip")
    out = tmp_path_factory.mktemp("prompts")
    config = cache_prompts.Config(templates=TEMPLATES, prompter=str(source))
    cache_prompts.run(config, {"vocabulary": vocabulary}, out, resources)
    shutil.rmtree(source)
    return out


@pytest.fixture(scope="module")
def pretraining(cached, clips, stills, vocabulary, tiny_model, tmp_path_factory, resources):
    """The artifact of two steps of pre-training with all losses, on batches of videos and of images."""
    out = tmp_path_factory.mktemp("pretrain")
    values = {"phases": [{"corpora": ["clips", "stills"], "weights": [1, 1], "steps": 4}], "model": tiny_model()}
    values |= {"normalization": "corpus", "batch_size": 4, "lr": 1e-3, "max_text_tokens": 16}
    inputs = {"tokenizer": vocabulary, "vocabulary": vocabulary, "prompts": cached, "clips": clips, "stills": stills}
    pretrain.run(pretrain.Config(**values, threshold=0.0, log_every=1), inputs, out, resources)
    return out


def test_prompts_are_those_of_the_named_model_whatever_becomes_of_its_folder(cached, kind, clip_folders, vocabulary):
    prompts, entities, named = read_prompts(cached), read_entities(vocabulary), load_clip(str(clip_folders[kind]))
    for of, templates in TEMPLATES.kinds.items():
        expected = cache_prompts.embed(named.model, named.tokenizer, entities, templates)
        torch.testing.assert_close(prompts[of], expected, atol=1e-5, rtol=1e-4)


def test_pretraining_learns_from_its_pseudo_labels(pretraining, clips, stills):
    """The model's normalization stays its own: not that of the prompter, as if there were none."""
    losses = [line for line in read_metrics(pretraining / "metrics.jsonl") if "train/loss_pem" in line]
    assert len(losses) == 4
    assert all(line["train/loss_pem"] > 0.1 for line in losses)
    assert all(line["train/pseudo_labels_kept"] == 1 for line in losses)
    assert (pretraining / "pictures" / "pseudo_labels.png").is_file()
    folder = ModelFolder.from_pretrained(pretraining / "model")
    means = [read_json(corpus / "statistics.json")["mean"] for corpus in (clips, stills)]
    assert folder.preprocessing.mean == pytest.approx(
        [sum(values) / 2 for values in zip(*means, strict=True)], abs=1e-4
    )
    assert not any("clip" in name for name in folder.model.state_dict())


def test_the_prompter_of_pretraining_converts_its_frames_and_is_frozen(cached, vocabulary, tiny_model, clips, training):
    phases = training(("clips",)).phases
    config = pretrain.Config(phases=phases, model=tiny_model(), normalization="corpus", max_text_tokens=16)
    inputs = {"tokenizer": vocabulary, "vocabulary": vocabulary, "prompts": cached, "clips": clips}
    prompter, tokenizer, preprocessing = pretrain.load_teacher(config, inputs, torch.device("cpu"))
    assert isinstance(prompter, ClipFolder)
    assert tokenizer.token_to_id("[CLS]") is not None
    assert preprocessing.mean != pytest.approx([0.48, 0.46, 0.41], abs=1e-3)
    prompts = read_prompts(cached)
    arguments = preprocessing.mean, preprocessing.std, prompter.normalized(torch.device("cpu")), prompts
    objective = PretrainObjective(Alpro(config.model, 8), *arguments, LossWeights(), 0.0)
    frames, boxes = torch.randint(0, 256, (2, 4, 3, 32, 32), dtype=torch.uint8), torch.tensor([[0, 1, 2, 3]] * 2)
    black = frames.clone()
    black[..., :8, :], black[..., 16:] = 0, 0
    for kind in ("video", "image"):  # crops in the patches of the student, with the normalization of the prompter
        expected = prompter.model.probabilities(prompter.normalized(torch.device("cpu")).pixels(black), prompts[kind])
        torch.testing.assert_close(objective.pseudo_labels(frames, boxes, kind), expected, atol=1e-5, rtol=1e-4)


def test_entities_of_evaluation_and_in_python_come_from_the_artifact_of_the_prompts(
    cached, pretraining, sample, vocabulary, clips, tmp_path, resources
):
    inputs = {"pretrained": pretraining, "vocabulary": vocabulary, "prompts": cached, "clips": clips}
    config = zero_shot.Config(retrieval="clips", entity_crops=1, min_decoded_share=0.5)
    zero_shot.run(config, inputs, tmp_path, resources)
    keys = {row["what"] for row in read_json(tmp_path / "results.json")}
    assert "prompter" in keys
    assert any("crops" in key for key in keys)
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
