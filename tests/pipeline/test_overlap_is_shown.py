"""Overlap of test and training items is in the report of a run, and printed at its end."""

from pathlib import Path

from alpro.artifact import RECORD_VERSION
from alpro.files import write_json
from alpro.pipeline.console import console, print_results
from alpro.pipeline.reporting.report import write_report
from alpro.pipeline.reporting.run_summary import RunSummary


def manifest(**counts: int) -> dict:
    return {
        "version": RECORD_VERSION,
        "stage": "decode_videos",
        "name": "decode_videos own",
        "fingerprint": 64 * "a",
        "counts": {"samples": 9, **counts},
        "metrics": {},
        "run": {"seconds": 1.0},
    }


def shown(folder: Path, **counts: int) -> tuple[str, str]:
    """The report of a run with one stage with these counts, and the printed text."""
    folder.mkdir()
    write_json(folder / "artifact.json", manifest(**counts))
    page = write_report(
        folder / "page.html", RunSummary("own", "own"), [("decode_videos own", folder, manifest(**counts), False)]
    )
    with console.capture() as printed:
        print_results({"decode_videos own": folder, "evaluate": folder.parent}, folder, page)
    return page.read_text(), printed.get()


def test_overlap_with_training_is_in_the_report_and_printed(tmp_path):
    page, printed = shown(tmp_path / "some", test_captions_in_training=3, test_frames_in_training=1)
    assert "test captions in training 3" in page
    assert "decode_videos own: 3 test captions in training\n" in printed
    assert "decode_videos own: 1 test frames in training\n" in printed
    page, printed = shown(tmp_path / "none")
    assert "in training" not in page + printed
