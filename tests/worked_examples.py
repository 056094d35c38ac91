"""The worked examples of CONTRIBUTING.md do what the page says.

`test_contributing.py` runs this file in a copy of the project to which the diffs of the page have been applied.
"""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import alpro
import alpro.stages
from alpro.models.templates import Templates
from alpro.pipeline.config.pipeline_config import load_config
from alpro.pipeline.flows import flow
from alpro.pipeline.plan import dag as planning
from alpro.pipeline.plan.digests import Digests
from alpro.pipeline.reports.results import tables
from alpro.stages import STAGES, cache_prompts
from alpro.stages.evaluation.metrics import Queries, mean_recall, retrieval_metrics, retrieval_ranks, retrieval_scores
from alpro.stages.evaluation.results import Results
from tests.stages.training.test_no_waiting import no_waiting, run_of

pytest_plugins = ["tests.stages.training.conftest"]
ROOT = Path(__file__).parents[1]
TINY = str(ROOT / "tests" / "tiny.toml")


@pytest.mark.parametrize("module", [alpro, alpro.stages, cache_prompts, flow])
def test_the_code_is_that_of_the_copy(module):
    assert Path(module.__file__).resolve().is_relative_to(ROOT)


def test_the_template_is_one_of_the_prompts_of_videos(tmp_path, monkeypatch):
    config = load_config("own_videos", str(tmp_path))
    texts = []

    def embed_texts(model, tokenizer, prompts, *_):
        texts.extend(prompts)
        return torch.ones(len(prompts), 2)

    monkeypatch.setattr(cache_prompts, "embed_texts", embed_texts)
    video = config.cache_prompts.templates.kinds["video"]
    embeddings = cache_prompts.embed(None, None, ["dog", "cat"], video, torch.device("cpu"))
    assert embeddings.shape == (2, 2)
    assert {"Somebody filmed a dog.", "Somebody filmed a cat."} < set(texts)
    assert config.templates.image == Templates().image
    assert config.build_vocabulary.templates == config.cache_prompts.templates == config.templates


def test_the_metric_is_in_the_results_with_its_chance(tmp_path):
    """By hand: t2v ranks 1, 2 and 3, so 1/1 + 1/2 + 1/3; v2t ranks 1, 2 and 2. Random ranks are 1, 2 or 3."""
    scores = np.array([[0.9, 0.1, 0.4], [0.8, 0.5, 0.1], [0.3, 0.6, 0.2]])
    results = Results("test", tmp_path)
    for direction, ranks in retrieval_ranks(scores, np.arange(3)).items():
        for score in retrieval_scores(ranks, Queries.of(["a", "b", "c"], ["a", "b", "c"])):
            results.add(score, "fine-tuned retrieval", "retrieval", direction)
    rows = {row["name"]: row for row in results.rows}
    random = (1 + 1 / 2 + 1 / 3) / 3 * 100
    assert rows["retrieval/t2v/MRR"]["value"] == pytest.approx(random)
    assert rows["retrieval/v2t/MRR"]["value"] == pytest.approx(200 / 3)
    assert [rows[f"retrieval/{way}/MRR"]["chance"] for way in ("t2v", "v2t")] == pytest.approx([random, random])
    assert results.metrics["test/retrieval/v2t/MRR"] == pytest.approx(200 / 3)
    (table,) = tables(results.rows)
    assert "MRR" in table.heads
    validation = retrieval_metrics(scores, np.arange(3))
    assert mean_recall(validation) == mean_recall(validation | {"t2v/MRR": 0.0, "v2t/MRR": 0.0})


def test_the_chance_of_the_metric_is_its_mean_over_random_rankings():
    of, rng = np.repeat(np.arange(6), 2), np.random.default_rng(0)
    draws = [retrieval_metrics(rng.random((12, 6)), of) for _ in range(2000)]
    for direction, ranks in retrieval_ranks(np.zeros((12, 6)), of).items():
        rows = retrieval_scores(ranks, Queries.of(["v"] * len(ranks), [""] * len(ranks)))
        (score,) = (score for score in rows if score.metric.key == "MRR")
        assert score.chance == pytest.approx(np.mean([draw[f"{direction}/MRR"] for draw in draws]), rel=0.02)


OTHERS = ("vtc", "vtm", "mlm", "pem")


def test_the_objective_is_a_term_of_the_loss(small_objective, small_batch):
    total, metrics = small_objective("pretrain", uniformity=0.5)(small_batch)
    weighted = sum(metrics[f"loss_{name}"] for name in OTHERS) + 0.5 * metrics["loss_uniformity"]
    torch.testing.assert_close(total.detach(), weighted)


def test_without_the_objective_the_losses_are_as_before(small_objective, small_batch):
    total, metrics = small_objective("pretrain")(small_batch)
    assert {name for name in metrics if name.startswith("loss_")} == {f"loss_{name}" for name in OTHERS}
    torch.testing.assert_close(total.detach(), sum(metrics[f"loss_{name}"] for name in OTHERS))


def test_the_objective_trains_the_parts_that_it_names(small_objective, small_batch):
    objective = small_objective("pretrain", **dict.fromkeys(OTHERS, 0.0), uniformity=1.0)
    loss, _ = objective(small_batch)
    loss.backward()
    assert objective.model.video_proj.weight.grad.abs().sum() > 0
    assert objective.unused_parameters >= {"text_proj", "temperature", "multimodal_encoder", "pem_head"}
    for name in objective.unused_parameters:
        part = getattr(objective.model, name)
        assert all(p.grad is None for p in (part.parameters() if hasattr(part, "parameters") else [part])), name


def test_training_steps_lower_the_objective_and_read_nothing_back(small_objective, small_batch, training):
    objective = small_objective("pretrain", **dict.fromkeys(OTHERS, 0.0), uniformity=1.0)
    run = run_of(objective, training(batch_size=4, lr=1e-2))
    _, before = objective(small_batch)
    for number in range(3):
        run.state.step = number
        with no_waiting():
            run.step(small_batch)
    assert run.skipped.read(5) == 0
    assert objective(small_batch)[1]["loss_uniformity"] < before["loss_uniformity"]


def test_the_weight_is_a_key_of_the_configuration():
    assert load_config(TINY).pretrain.weights.uniformity == 0
    assert load_config(TINY, changes=["pretrain.weights.uniformity=0.5"]).pretrain.weights.uniformity == 0.5
    assert "| `weights.uniformity` | `0.0` |" in (ROOT / "docs" / "configuration.md").read_text()


def test_the_stage_is_declared_and_is_a_command():
    assert "count_words" in STAGES
    assert STAGES["count_words"].corpora
    assert "\n## [count_words]\n" in (ROOT / "docs" / "configuration.md").read_text()
    command = [sys.executable, "-m", "alpro.pipeline.cli.main", "run", "--help"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert "count_words" in printed


def test_the_stage_is_a_step_of_a_plan_with_its_table(tmp_path):
    text = Path(TINY).read_text()
    (tmp_path / "with.toml").write_text(f"{text}\n[count_words]\n")
    digests = Digests(tmp_path / "digests.sqlite")
    steps = {step.name: step for step in planning.plan(load_config(str(tmp_path / "with.toml")), digests)}
    assert steps["count_words"].config.limit == 1000
    inputs = {name: step.name for name, step in steps["count_words"].inputs.items()}
    assert inputs == {"clips": "decode_videos clips", "stills": "decode_videos stills"}
    without = {step.name: step.fingerprint for step in planning.plan(load_config(TINY), digests)}
    assert without == {name: step.fingerprint for name, step in steps.items() if name != "count_words"}
