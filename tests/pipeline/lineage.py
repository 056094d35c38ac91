"""A workspace with two corpora and two results of each stage, the newer of which needs one corpus."""

from hashlib import sha256
from pathlib import Path

from alpro.artifact import Source, artifacts
from tests.pipeline.conftest import write_artifact

CHANGE = f"train.words={'word' * 20}"
COMMAND = {
    "config": "sample",
    "changes": [CHANGE, "finetune_qa.lr=2", "name='my own'"],
    "folder": "/home/me",
}
# Name and inputs of each artifact, by the character of which its fingerprint consists.
GRAPH = {
    "a": ("decode clips", ""),
    "b": ("decode stills", ""),
    "c": ("train", "ab"),
    "d": ("evaluate", "ca"),
    "e": ("train", "a"),
    "0": ("evaluate", "ea"),
}


def add_artifacts(workspace: Path) -> None:
    """Write the artifacts; each is newer than the one before, and larger."""
    for day, (mark, (name, inputs)) in enumerate(GRAPH.items(), 1):
        data = bytes(day * 100_000)
        file = {"size": len(data), "sha256": sha256(data).hexdigest()}
        more = {
            "name": name,
            "contents": {"data": file},
            "fingerprint": mark * 64,
            "inputs": {source: Source(source, source * 64) for source in inputs},
            "counts": {"rows": 3},
            "config": {"seed": 7, "lr": 0.1234567891},
        }
        run = {
            "at": f"2026-01-0{day}T00:00:00",
            "seconds": 1.0,
            "commit": "abc123-dirty",
        }
        run |= {"arguments": COMMAND}
        folder, _ = write_artifact(workspace, name.split()[0], run=run, **more)
        (folder / "data").write_bytes(data)


def folder_of(workspace: Path, mark: str) -> Path:
    stage = GRAPH[mark][0].split()[0]
    return workspace / "artifacts" / stage / (mark * 16)


def marks(workspace: Path) -> str:
    """The artifacts that are there."""
    return "".join(
        record.fingerprint[0] for _, record in artifacts(workspace / "artifacts")
    )
