"""The silent study: a run at tiny sizes."""

import json
import shutil
from pathlib import Path

import pytest

from experiments.silent import arms, study


@pytest.mark.long
def test_a_run_at_tiny_sizes(tmp_path, monkeypatch, capsys):
    """Every arm finishes; a study with more seeds continues; one of other sizes is refused."""
    trained: list[Path] = []
    monkeypatch.setattr(
        study, "pretrain_arm", lambda *a: trained.append(a[3]) or arms.pretrain_arm(*a)
    )
    sizes = "--stills 24 --test 5 --steps 2 2 2 --batch-size 8"
    tiny = ["--out", str(tmp_path / "work"), "--results", str(tmp_path / "rows"), *sizes.split()]
    assert study.main([*tiny, "--seeds", "0", "--arms", "none", "permuted", "true"]) == 0
    assert study.main([*tiny, "--seeds", "0", "1", "--arms", "none", "head on none"]) == 0
    names = "none-0 permuted-0 true-0 head-on-none-0 none-1 head-on-none-1"
    assert [out.name for out in trained] == names.split()
    rows = {path.stem: json.loads(path.read_text()) for path in (tmp_path / "rows").iterdir()}
    assert len(rows) == 6
    one, head = (rows[f"draw-0-named-1-{arm}-0"] for arm in ("none", "head-on-none"))
    assert head["scores"].keys() - one["scores"].keys() == {
        "pointing"
    }  # a head that was not trained is not kept
    assert one["scores"].keys() == {"naming", "naming_vtc", "R1"}
    assert one["teacher"].keys() == {"right", "ece", "kept", "right_kept", "sure", "right_sure"}
    assert {name: value for name, value in head["scores"].items() if name != "pointing"} == one[
        "scores"
    ]
    shutil.rmtree(tmp_path / "work")  # rows alone are enough
    assert study.main([*tiny, "--seeds", "0", "1", "--arms", "none", "head on none"]) == 0
    assert len(trained) == 6
    assert study.main([*tiny, "--stills", "26"]) == 2
    assert str(tmp_path) in capsys.readouterr().err
