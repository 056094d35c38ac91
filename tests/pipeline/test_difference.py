"""What differs between runs, and between an earlier artifact and a step."""

from dataclasses import replace

from alpro.artifact import Record, Source
from alpro.pipeline.plan.difference import Difference, differences, explain, origin
from tests.pipeline.conftest import TINY
from tests.plans import plan_of

CLIPS = Record(
    stage="decode_videos",
    name="decode_videos clips",
    fingerprint="1" * 64,
    counts={"samples": 9, "rejected": 0},
    run={"commit": "abc"},
)
MODEL = Record(
    stage="pretrain",
    name="pretrain",
    fingerprint="f" * 64,
    stage_version=1,
    config={"lr": 1, "weights": {"x": 2}, "log_every": 1},
    inputs={"clips": Source("decode_videos", "1" * 64)},
    precision="float32",
    versions={"torch": "2.11"},
    run={"commit": "abc"},
)


def test_every_value_that_a_result_depends_on_is_compared():
    first = origin(CLIPS, MODEL)
    other_clips = replace(
        CLIPS, fingerprint="2" * 64, counts={"samples": 8, "rejected": 1}
    )
    other_model = replace(
        MODEL,
        config={"lr": 1, "weights": {"x": 3}, "log_every": 2},
        inputs={"clips": Source("decode_videos", "2" * 64)},
        files={"model": "0123456789"},
        precision="bfloat16",
        stage_version=2,
        versions={"torch": "2.12"},
        run={"commit": "def"},
    )

    assert differences(first, first, origin(other_clips, other_model)) == [
        ("configuration", "pretrain.weights.x", ("2", "2", "3")),
        (
            "data",
            "corpus clips",
            ("11111111: samples 9",) * 2 + ("22222222: samples 8, rejected 1",),
        ),
        ("data", "pretrain file model", ("-", "-", "01234567")),
        ("code", "commit", ("abc", "abc", "abc, def")),
        ("code", "pretrain version", ("1", "1", "2")),
        ("code", "pretrain precision", ("float32", "float32", "bfloat16")),
        ("version", "torch", ("2.11", "2.11", "2.12")),
    ]


def test_an_input_that_was_removed_is_compared_by_its_fingerprint():
    """Its values are lost. Without this line, the runs would look alike."""
    inputs = {"clips": Source("decode_videos", "2" * 64)}

    (one,) = differences(origin(MODEL), origin(replace(MODEL, inputs=inputs)))

    assert one == Difference("data", "pretrain input clips", ("11111111", "22222222"))


def steps(folder, *changes):
    """The steps of the tiny pipeline by name."""
    return {step.name: step for step in plan_of(TINY, *changes, workspace=folder).steps}


def test_a_step_is_compared_with_an_earlier_artifact_of_its_name(tmp_path):
    earlier = steps(tmp_path, "evaluate.seed=2")["evaluate retrieval"].description
    step = steps(tmp_path, "evaluate.seed=3")["evaluate retrieval"]

    assert explain(step.description, earlier) == "evaluate.seed = 3 (previous run: 2)"


def test_a_step_names_what_the_user_set_and_not_where_a_stage_has_it(tmp_path):
    before = steps(tmp_path)
    after = steps(
        tmp_path, "model.video.depth=2", "corpora.clips.frames=3", "evaluate.frames=8"
    )

    for name, key in (
        ("pretrain", "model.video.depth = 2 "),
        ("decode_videos clips", "corpora.clips.frames = 3 "),
        ("evaluate pretrained", "evaluate.frames = 8 "),
        ("finetune_qa", "finetune_qa input model differs"),
    ):
        assert key in explain(after[name].description, before[name].description)
