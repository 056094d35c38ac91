"""Real clips with people's captions and questions, from the folder that ALPRO_CLIPS names (default ../shared/clips)."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch

from alpro.models.alpro import Alpro, ModelConfig
from alpro.stages.decode_videos import Config, run
from alpro.stages.execution.interface import Resources
from tests.official_checkpoints import to_official

CLIPS = Path(os.environ.get("ALPRO_CLIPS", Path(__file__).parents[2] / "shared" / "clips"))

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not (CLIPS / "manifest.jsonl").is_file(), reason=f"no clips in {CLIPS}; set ALPRO_CLIPS"),
]

# As few steps as show that every stage takes the data.
SHORT = {
    "train_prompter.phases.0.steps": 4,
    "pretrain.phases.0.steps": 4,
    "finetune_retrieval.phases.0.steps": 4,
    "finetune_qa.phases.0.steps": 4,
    "corpora.data.frames": 4,
    "corpora.data.size": 64,
    "model.video.image_size": 64,
    "model.video.depth": 2,
}


def test_the_whole_pipeline_runs_on_real_clips(tmp_path):
    changes = [part for key, value in SHORT.items() for part in ("--set", f"{key}={value}")]
    command = [
        sys.executable,
        "-m",
        "alpro.pipeline.cli.main",
        "run",
        "--config",
        "own_videos",
        "--workspace",
        str(tmp_path),
    ]
    command += ["--data", str(CLIPS / "manifest.jsonl"), *changes]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    assert "fine-tuned by matching" in done.stdout
    assert "question answering" in done.stdout

    (decoded,) = (tmp_path / "artifacts" / "decode_videos").glob("*/")
    rows = [json.loads(line) for line in (CLIPS / "manifest.jsonl").read_text().splitlines()]
    index, rejects = pq.read_table(decoded / "index.parquet"), pq.read_table(decoded / "rejects.parquet")
    assert index.num_rows + rejects.num_rows == len(rows)
    assert rejects.num_rows == 0
    # Clips without a caption are of no use to the caption stages, which say so, and stay for the questions.
    (vocabulary,) = (tmp_path / "artifacts" / "build_vocabulary").glob("*/")
    silent = {row["id"] for row in rows if not row["captions"]}
    trained = {row["id"] for row in index.select(["id", "split"]).to_pylist() if row["split"] == "train"}
    assert set(pq.read_table(vocabulary / "rejects.parquet")["id"].to_pylist()) == silent & trained
    assert silent <= set(index["id"].to_pylist())


def test_an_official_checkpoint_is_evaluated_and_fine_tuned_on_msrvtt_files(tmp_path):
    """The README's second example, with generated weights."""
    rows = [json.loads(line) for line in (CLIPS / "manifest.jsonl").read_text().splitlines()]
    captioned = [row for row in rows if row["captions"]][:60]
    words = sorted({word for row in captioned for text in row["captions"] for word in text.lower().split()})[:400]
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(word for word in words if word.isalpha())]
    (tmp_path / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    video = {"image_size": 32, "patch_size": 8, "frames": 4, "width": 64, "depth": 2, "heads": 1}
    text = {"vocab_size": len(vocabulary), "width": 64, "depth": 2, "fusion_layer": 1, "heads": 1, "max_length": 64}
    config = ModelConfig.model_validate({"video": video, "text": text, "embed_dim": 32})
    state = to_official(Alpro(config, entities=7).state_dict(), config)
    torch.save({"model": {f"module.{key}": value for key, value in state.items()}, "epoch": 3}, tmp_path / "alpro.pt")
    files = {"train": captioned[:40], "validation": captioned[40:50], "test": captioned[50:]}
    for split, chosen in files.items():
        lines = [{"caption": c, "clip_name": Path(r["path"]).stem} for r in chosen for c in r["captions"]]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    alpro = [sys.executable, "-m", "alpro.pipeline.cli.main"]
    importing = [*alpro, "model", "import", tmp_path / "alpro.pt", tmp_path / "alpro", "--task", "pretrain"]
    subprocess.run([*map(str, importing), "--tokenizer", str(tmp_path / "vocab.txt")], check=True, timeout=200)
    changes = {
        "pretrained": tmp_path / "alpro",
        "corpora.msrvtt.data": CLIPS,
        **{f"corpora.msrvtt.annotations.{split}": tmp_path / f"{split}.jsonl" for split in files},
        "finetune_retrieval.phases.0.epochs": 0.5,
    }
    sets = [part for key, value in changes.items() for part in ("--set", f"{key}={value}")]
    command = [*alpro, "run", "--config", "msrvtt_retrieval", "--workspace", str(tmp_path / "work"), *sets]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stderr
    assert "zero-shot by matching" in done.stdout
    assert "fine-tuned by matching" in done.stdout
    assert not list((tmp_path / "work" / "artifacts").glob("pretrain*"))


def test_every_original_is_decoded_or_rejected_with_a_true_reason(tmp_path):
    originals = [json.loads(line) for line in (CLIPS / "originals" / "manifest.jsonl").read_text().splitlines()]
    manifest = tmp_path / "originals" / "manifest.jsonl"
    manifest.parent.mkdir()
    for entry in originals:
        (manifest.parent / entry["file"]).symlink_to(CLIPS / "originals" / entry["file"])
    rows = [{"path": entry["file"], "caption": entry["file"], "split": "train"} for entry in originals]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = run(Config(frames=16, size=64), {"data": manifest}, tmp_path, Resources(workers=2))
    rejects = {row["path"]: row["reason"] for row in pq.read_table(tmp_path / "rejects.parquet").to_pylist()}
    assert rejects.keys() == {"audio_only.webm", "corrupted.mp4"}
    assert rejects["audio_only.webm"] == "no video"
    assert rejects["corrupted.mp4"] == "unreadable"
    assert outcome.counts["samples"] == len(originals) - 2
    by_id = {row["id"]: row for row in pq.read_table(tmp_path / "index.parquet").to_pylist()}
    assert Counter(len(row["frame_offsets"]) for row in by_id.values()) == {16: len(originals) - 2}
    for entry in originals:  # durations and sizes are those of ffprobe
        row = by_id.get(Path(entry["file"]).stem)
        if row and "duration_s" in entry and entry["file"] != "portrait_vfr_204x360.mp4":
            assert row["duration"] == pytest.approx(float(entry["duration_s"]), abs=0.3), entry["file"]
