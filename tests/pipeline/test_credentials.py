"""Passwords and signatures in URLs are sent to servers, and never written or printed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from alpro.pipeline.cli import main as cli
from alpro.stages import decode_videos

SECRETS = [f"hush{number}" for number in range(9)]


@pytest.fixture
def manifest(sample: Path, tmp_path: Path, served) -> tuple[Path, list]:
    """A manifest with credentials in every column that may have a URL, and its server."""
    folder = tmp_path / "served"
    folder.mkdir()
    names = [json.loads(line)["path"] for line in (sample / "clips.jsonl").read_text().splitlines()][:2]
    for number, name in enumerate(names):
        (folder / f"{number}.mp4").write_bytes((sample / name).read_bytes())
    (folder / "text.mp4").write_text("no video")
    url, server = served(folder)
    place = url.replace("http://", f"http://me:{SECRETS[0]}@")
    signed = f"?X-Amz-Signature={SECRETS[1]}&t={SECRETS[2]}"
    page = f"https://u:{SECRETS[3]}@host/watch?v=7&token={SECRETS[4]}"
    rows = [
        {"path": f"{place}/0.mp4{signed}", "caption": "a ball", "page": page, "pages": [{"of": page}]},
        {"path": f"{place}/1.mp4{signed}", "caption": "a box", "id": f"{url}/x?sig={SECRETS[5]}", "group": page},
        {"path": f"{place}/text.mp4{signed}", "caption": "no video"},
        {"path": f"{place}/gone.mp4{signed}", "caption": "missing"},
        {"path": f"http://me:{SECRETS[6]}@127.0.0.1:1/a.mp4?key={SECRETS[7]}", "caption": "no answer"},
        {"path": f"{place}/bad.mp4{signed}", "caption": "a bad row", "start": "soon"},
    ]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "m.jsonl", server


def leaks(folder: Path, *printed: str) -> list[str]:
    """The places that contain a secret."""
    contents = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    contents |= {f"printed {number}": text.encode() for number, text in enumerate(printed)}
    return [name for name, content in contents.items() if any(secret.encode() in content for secret in SECRETS)]


def alpro(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "alpro.pipeline.cli.main", *map(str, arguments)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT")}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.long
def test_nothing_that_is_written_or_printed_has_credentials(manifest, tmp_path):
    data, server = manifest
    answered = [line for line in data.read_text().splitlines() if "no answer" not in line]  # a host costs its pauses
    data.write_text("\n".join(answered))
    changes = ["corpora.data.max_reject_share=1", "corpora.data.size=32", "resources.workers=1"]
    options = [part for change in changes for part in ("--set", change)]
    done = alpro(
        "run", "decode_videos", "--config", "own_videos", "--data", data, "--workspace", tmp_path / "work", *options
    )
    assert done.returncode == 0, done.stderr
    assert leaks(tmp_path / "work", done.stdout, done.stderr) == []
    (artifact,) = (tmp_path / "work" / "artifacts" / "decode_videos").glob("*/")
    index = pq.read_table(artifact / "index.parquet")
    assert len(index) == 2
    assert all("127.0.0.1" in name for name in index["id"].to_pylist())
    rejects = pq.read_table(artifact / "rejects.parquet").to_pylist()
    assert sorted(row["reason"] for row in rejects) == ["bad row", "missing", "unreadable"]
    # The server was asked with all of them.
    assert any(SECRETS[1] in path and SECRETS[2] in path for _, path, _ in server.asked)
    assert any(user.startswith("Basic ") for user in server.users)


def test_nothing_is_on_disk_while_decoding(manifest, tmp_path, resources, inline_pool, monkeypatch, capsys):
    marks, queries = ("'", " ", "<", "/"), (";token=", "?n='q'&sig=", "?n=a b&key=")
    odd = [f"http://u:pa{mark}{SECRETS[8]}@127.0.0.1:1/{mark!r}.mp4" for mark in marks]
    odd += [f"http://127.0.0.1:1/{number}.mp4{query}{SECRETS[8]}" for number, query in enumerate(queries)]
    with manifest[0].open("a") as file:
        file.writelines(json.dumps({"path": url, "caption": "x", "id": url, "page": [url]}) + "\n" for url in odd)
    leaked, process_unit = [], decode_videos.process_unit

    def watched(unit, **how):
        leaked.extend(leaks(tmp_path / "out"))
        process_unit(unit, **how)
        leaked.extend(leaks(tmp_path / "out"))

    monkeypatch.setattr(decode_videos, "process_unit", watched)
    monkeypatch.setattr("alpro.shards.storage.RETRY_DELAYS", ())
    config = decode_videos.Config(frames=2, size=16, max_reject_share=1)
    decode_videos.run(config, {"data": manifest[0]}, tmp_path / "out", resources)
    printed = capsys.readouterr()
    assert leaked == leaks(tmp_path / "out", printed.out, printed.err) == []


def test_a_configuration_with_credentials_is_refused_before_anything_is_written(
    manifest, tmp_path, monkeypatch, capsys
):
    url = f"http://me:{SECRETS[0]}@127.0.0.1:1/m.jsonl"
    monkeypatch.setattr("alpro.shards.storage.RETRY_DELAYS", ())
    for options, key in (
        (["--data", url], "corpora.data.data"),
        (["--data", url.replace(f"me:{SECRETS[0]}@", "") + f"?sig={SECRETS[1]}"], "corpora.data.data"),
        (["--data", manifest[0], "--set", f"resources.artifacts=s3://k:{SECRETS[2]}@b/x"], "resources.artifacts"),
    ):
        command = [
            "alpro",
            "run",
            "decode_videos",
            "--config",
            "own_videos",
            "--workspace",
            tmp_path / "work",
            *options,
        ]
        monkeypatch.setattr(sys, "argv", list(map(str, command)))
        with pytest.raises(SystemExit) as left:
            cli.main()
        printed = capsys.readouterr()
        assert left.value.code == 2
        assert printed.err.startswith(f"error: {key}: this URL contains a user name, a password or a signature")
        assert printed.err.count("\n") == 1
        assert leaks(tmp_path / "work", printed.out, printed.err) == []
