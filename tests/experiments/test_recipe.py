"""The study of the recipe for a CLIP, at tiny sizes."""

import json

import pytest

from experiments.recipe import study


@pytest.mark.long
def test_a_run_at_tiny_sizes(tmp_path, capsys):
    """Every arm has a score beside the CLIP as it is; a row that is there is not computed again."""
    arguments = ["--tiny", "--seeds", "0", "--clip-steps", "2", "--epochs", "1"]
    arguments += ["--out", str(tmp_path / "out"), "--results", str(tmp_path / "rows")]
    assert study.main(arguments) == 0
    (file,) = (tmp_path / "rows").glob("*.json")
    row = json.loads(file.read_text())
    arms = [f"{name}, rates x {scale}" for scale in study.SCALES for name in study.arms(scale)]
    assert row["test_R1"].keys() == {"CLIP as it is", *arms}
    assert "new, interpolated, rates x 10" in row["shares"]

    before = file.stat().st_mtime_ns
    assert study.main(arguments) == 0
    assert file.stat().st_mtime_ns == before
    assert "to the CLIP" in capsys.readouterr().out
