"""The stage: what it is asked about which corpus, and the items that it leaves out."""

import pyarrow.parquet as pq
import pytest
import torch

from alpro.errors import InputError
from alpro.files import read_json
from alpro.models.folder import ModelBundle
from alpro.pipeline.reports.results import tables
from alpro.stages import evaluate
from alpro.stages.evaluation.loaded_model import LoadedModel
from alpro.stages.evaluation.protocol import EvaluationConfig, check_items
from tests.stages.conftest import run_stage
from tests.stages.evaluation.conftest import also_in_training, statistics

CPU = torch.device("cpu")


@pytest.fixture
def run(folders, clips_of_brightness, tmp_path, resources):
    """run(task, ...): the rows of a model of a task by name, and the folder of the results."""

    def evaluate_task(task, **values):
        out = tmp_path / f"{task}-{len(list(tmp_path.iterdir()))}"
        inputs = {"model": folders[task], "clips": clips_of_brightness}
        run_stage(evaluate, inputs, out, resources, model_name="mine", **values)
        return {row["name"]: row for row in read_json(out / "results.json")}, out

    return evaluate_task


def test_missing_items_are_counted_in_what_is_asked(corpus_of, tmp_path):
    """Captions for retrieval, questions for question answering: not videos, which may have many of
    either."""
    question = {"question": "what?", "answer": "ball", "type": "what"}
    row = {"id": "a", "split": "test", "captions": ["a ball"], "questions": [question]}
    folder = statistics(
        corpus_of(tmp_path, [row]), items=(1, 2), captions=(20, 40), questions=(90, 100)
    )
    both = EvaluationConfig(retrieval="a", qa="a", min_decoded_share=0.5)

    assert check_items(both, "captions", "a", folder) == (20, 40)
    assert check_items(both, "questions", "a", folder) == (90, 100)
    with pytest.raises(InputError, match="90 of 100"):
        check_items(EvaluationConfig(qa="a"), "questions", "a", folder)
    also_in_training(folder, a="test")
    with pytest.raises(
        InputError, match=r"without the 1 that are also in training.*exclude_over"
    ):
        check_items(both, "captions", "a", folder)


@pytest.mark.parametrize(
    ("task", "corpus"),
    [
        ("retrieval", "retrieval"),
        ("qa", "qa"),
    ],
)
def test_items_that_training_has_too_are_left_out(
    run, clips_of_brightness, task, corpus
):
    """By default, and a table of the report says how many. With `exclude_overlap = false` they are
    evaluated, and it says so."""
    also_in_training(clips_of_brightness, down0="test", up0="validation")

    left, out = run(task, **{corpus: "clips"})
    whole, _ = run(task, **{corpus: "clips"}, exclude_overlap=False)

    ids = pq.read_table(out / "scores.parquet")["id"].unique().to_pylist()
    assert ids == ["up0", "up1", "down1"]
    assert left["left_out/clips"]["metric"] == "1 of 4"
    assert left["left_out/clips"]["value"] == 25
    assert whole["also_in_training/clips"]["metric"] == "1 of 4"
    titles = ["Overlap with training: left out", "Overlap with training"]
    for rows, title in zip((left, whole), titles, strict=True):
        *_, last = tables(list(rows.values()))
        assert last.title == title


def test_frames_and_texts_have_the_length_that_is_asked_for(folders):
    """By default those of the model; the paper's pre-training has 4 frames, and is evaluated with
    8."""
    own, longer = (
        ModelBundle.from_pretrained(folders["retrieval"], CPU) for _ in range(2)
    )
    longer.model.set_frames(8)
    own, longer = (
        LoadedModel("", bundle, bundle.normalized(CPU), length=length)
        for bundle, length in ((own, 0), (longer, 3))
    )

    assert own.frames == 4
    assert longer.frames == 8
    assert longer.encode_texts(["a long text"]).mask.sum() == 3
    # Nearest neighbour, as in fine-tuning: each embedding stands for two frames.
    before = own.encoder.model.video_encoder.time_embed
    after = longer.encoder.model.video_encoder.time_embed
    assert torch.equal(after, before.repeat_interleave(2, dim=1))


def test_a_baseline_is_evaluated_with_its_own_name(
    clip_folders, clips, resources, tmp_path
):
    config = {
        "baseline": str(clip_folders["clip"]),
        "model_name": "clip",
        "retrieval": "clips",
        "frames": 2,
        "min_decoded_share": 0.5,
    }

    outcome = run_stage(evaluate, {"clips": clips}, tmp_path, resources, **config)

    rows = [row for row in read_json(tmp_path / "results.json") if row["model"]]
    assert {row["name"].partition("/")[0] for row in rows} == {"similarity"}
    assert {row["protocol"] for row in rows} == {"all pairs, 2 frames"}
    assert "test/clip/similarity/t2v/R1" in outcome.metrics
