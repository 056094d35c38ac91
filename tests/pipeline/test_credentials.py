"""A configuration or a manifest with passwords in URLs is refused before anything is written."""

import sys

import pytest

from alpro.pipeline.cli import main as cli


@pytest.mark.parametrize(
    ("options", "place"),
    [
        (["--data", "http://me:hush@127.0.0.1:1/m.jsonl"], "corpora.data.data"),
        (["--data", "http://127.0.0.1:1/m.jsonl?sig=hush"], "corpora.data.data"),
        (["--data", "m.jsonl"], "line 1: path"),
    ],
)
def test_credentials_are_refused_before_anything_is_written(options, place, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m.jsonl").write_text('{"path": "https://me:hush@host/a.mp4", "caption": "a"}')
    command = ["alpro", "run", "decode_videos", "--config", "own_videos", "--workspace", "work", *options]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as left:
        cli.main()
    printed = capsys.readouterr()
    assert left.value.code == 2
    assert place in printed.err
    assert printed.err.count("\n") == 1
    written = [path for path in (tmp_path / "work").rglob("*") if path.is_file()]
    assert "hush" not in printed.out + printed.err
    assert not any(b"hush" in path.read_bytes() for path in written)
