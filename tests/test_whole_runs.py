"""Whole runs as a person starts them: the sample as it ships, with its scores and examples of the
documentation; real clips with captions and questions, from the folder that ALPRO_CLIPS names
(default ../shared/clips); the benchmarks."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from alpro.artifact import artifacts
from alpro.files import read_json
from alpro.pipeline.reports.results import rows
from alpro.stages import TRAININGS
from alpro.stages.decode_videos import Config
from alpro.stages.evaluation.score_names import full_name
from alpro.stages.execution.interface import Resources
from tests.conftest import ROOT, decode_data, read_lines, write_lines

CLIPS = Path(os.environ.get("ALPRO_CLIPS", ROOT.parent / "shared" / "clips")).resolve()

pytestmark = pytest.mark.long

# Far below the means of five seeds (docs/results.md), and far above what is left if a stage learns
# nothing.
FLOORS = {
    "pre-trained/similarity/t2v/R1": 70,
    "fine-tuned/similarity/t2v/R1": 78,
    "prompter/entities/acc": 60,
    "fine-tuned/qa/acc": 85,
    "fine-tuned/qa/left_or_right": 98,
}
# As few steps as show that every stage takes the data.
SHORT = {f"{stage}.phases.0.steps": 4 for stage in TRAININGS}
SHORT |= {
    "corpora.data.frames": 4,
    "corpora.data.size": 64,
    "model.video.image_size": 64,
    "model.video.depth": 2,
}


@pytest.fixture
def alpro(tmp_path):
    """alpro(*words): the output of a command in a workspace of its own."""

    def call(*arguments):
        words = ["-m", "alpro.pipeline.cli.main", *map(str, arguments)]
        command = [sys.executable, *words, "--workspace", str(tmp_path)]
        done = subprocess.run(
            command, cwd=tmp_path, stdout=subprocess.PIPE, text=True, check=True
        )
        return done.stdout

    return call


def test_the_sample_reaches_its_scores_and_answers_the_examples(alpro, tmp_path):
    alpro("run")
    results = artifacts(tmp_path / "artifacts")
    scores = {full_name(row): row["value"] for row in rows(results)}
    for name, floor in FLOORS.items():
        assert scores[name] >= floor, name

    pages = ("docs/search.md", "docs/results.md", "pipeline/serving/page/index.html")
    question = "what color is the fish?"
    for page in pages:
        assert {*re.findall(r'"(what [^"]*\?)"', (ROOT / page).read_text())} <= {
            question
        }, page

    (videos,) = tmp_path.glob("artifacts/render_sample/*/videos")
    alpro("index", "add", "index", videos, "--model", "finetune_retrieval")
    text = "a red ball gets smaller beside an orange flower"
    assert "test-00071.mp4" in alpro("search", "index", text, "-k", 1)
    words = ("model", "ask", "finetune_qa", videos / "test-00000.mp4", question)
    assert alpro(*words).split()[2] == "orange"


@pytest.mark.skipif(not CLIPS.is_dir(), reason=f"no clips in {CLIPS}; set ALPRO_CLIPS")
def test_the_whole_pipeline_runs_on_real_clips(alpro, tmp_path):
    changes = [
        part for key, value in SHORT.items() for part in ("--set", f"{key}={value}")
    ]
    printed = alpro(
        "run", "--config", "own_videos", "--data", CLIPS / "manifest.jsonl", *changes
    )
    assert "fine-tuned, by matching" in printed
    assert "question answering" in printed

    (decoded,) = (tmp_path / "artifacts" / "decode_videos").glob("*/")
    rows = read_lines(CLIPS / "manifest.jsonl")
    samples = pq.read_table(
        decoded / "index.parquet", columns=["id", "split"]
    ).to_pylist()
    assert sorted(sample["id"] for sample in samples) == sorted(
        row["id"] for row in rows
    )

    # Clips without a caption are of no use to the caption stages, which say so, and stay for the
    # questions.
    silent = {row["id"] for row in rows if not row["captions"]}
    unused = [one for one in samples if one["split"] == "train" and one["id"] in silent]
    (record,) = (tmp_path / "artifacts" / "build_vocabulary").glob("*/artifact.json")
    assert read_json(record)["counts"]["samples_without_caption"] == len(unused)


@pytest.mark.skipif(not CLIPS.is_dir(), reason=f"no clips in {CLIPS}; set ALPRO_CLIPS")
def test_every_original_is_decoded_or_rejected_with_a_true_reason(tmp_path):
    """Durations are those of ffprobe."""
    originals = {
        entry["file"]: entry
        for entry in read_lines(CLIPS / "originals" / "manifest.jsonl")
    }
    folder = tmp_path / "originals"
    folder.mkdir()
    for file in originals:
        (folder / file).symlink_to(CLIPS / "originals" / file)
    rows = [
        {"path": file, "caption": "a video", "split": "train"} for file in originals
    ]
    manifest = write_lines(folder / "manifest.jsonl", rows)

    decode_data(Config(frames=16, size=64), manifest, tmp_path, Resources(workers=2))

    rejects = pq.read_table(tmp_path / "rejects.parquet").to_pylist()
    reasons = {row["path"]: row["reason"] for row in rejects}
    assert reasons == {"audio_only.webm": "no video", "corrupted.mp4": "unreadable"}
    samples = pq.read_table(tmp_path / "index.parquet").to_pylist()
    durations = {row["id"]: row["duration"] for row in samples}
    assert len(durations) == len(originals) - 2
    assert {len(row["frame_offsets"]) for row in samples} == {16}
    for file, entry in originals.items():
        # The file of a variable rate states a length that its frames do not have.
        if (
            file not in reasons
            and "duration_s" in entry
            and file != "portrait_vfr_204x360.mp4"
        ):
            stated = float(entry["duration_s"])
            assert durations[Path(file).stem] == pytest.approx(stated, abs=0.3), file


def test_every_benchmark_has_figures(tmp_path):
    """No request to a server is lost, with more clients than places."""

    def benchmark(name, *options):
        program = ROOT / "benchmarks" / f"{name}.py"
        file = tmp_path / "figures.json"
        command = [sys.executable, program, *options, "--json", file]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return read_json(file)

    figures = benchmark("decode", "--runs", "1")
    assert all(
        each["processor"] > 0
        for methods in figures.values()
        for each in methods.values()
    )
    assert len(benchmark("loader", "--clips", "16")["samples/s"]) == 3
    rows = benchmark("serve", "--clients", "40", "--requests", "2", "--videos", "8")
    # Similarity and matching, of 1 and of 40 clients.
    assert [row["answers"] for row in rows.values()] == [8, 80, 8, 40]
    assert all(0 < row["p50"] <= row["p99"] for row in rows.values())

    # The program for a lent GPU works before there is one.
    figures = benchmark("gpu", "--small", "--batch", "4", "--steps", "20")
    assert {row["attention"] for row in figures["attention"]} >= {
        "products",
        "broadcast",
        "packed",
    }
    assert all(row["largest difference"] < 1e-5 for row in figures["attention"])
    assert [row["run"] for row in figures["runs"]] == [
        "ALPRO, T=2",
        "ALPRO, T=1",
        "CLIP",
    ]
    assert all(row["kernels"] for row in figures["runs"])
