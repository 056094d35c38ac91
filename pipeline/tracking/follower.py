"""Reading the metrics that a stage appends to a file while it runs."""

import json
import os
from contextlib import suppress
from pathlib import Path
from typing import Any


class MetricsFollower:
    """Reads the lines of metrics.jsonl that were appended since the last read.

    It remembers its position, so a read costs what was appended and not the whole training. A
    training that resumes from a checkpoint replaces the file: then the follower starts again, and
    leaves out the steps that it has returned.
    """

    def __init__(self, path: Path):
        self.path = path
        self.inode = 0
        self.position = 0  # bytes
        self.last_step = -1  # last step that `read` returned

    def read(self, final: bool = False) -> list[dict[str, Any]]:
        """Return the new lines.

        Args:
            final: Whether the stage has ended. Until then the lines of the newest step wait:
                training and validation may share a step.
        """
        try:
            file = open(self.path, "rb")
        except FileNotFoundError:  # The stage has not written a line yet.
            return []
        with file:
            status = os.fstat(file.fileno())
            if status.st_ino != self.inode or status.st_size < self.position:
                self.inode = status.st_ino
                self.position = 0
            file.seek(self.position)
            # The text after the last line break is incomplete.
            *texts, _ = file.read().split(b"\n")

        lines: list[dict[str, Any]] = []
        # A power failure may damage a line. The stage replaces the file when it continues.
        with suppress(ValueError):
            lines += map(json.loads, texts)

        complete = [line for line in lines if final or line["step"] < lines[-1]["step"]]
        self.position += sum(len(text) + 1 for text in texts[: len(complete)])
        new = [line for line in complete if line["step"] > self.last_step]
        if new:
            self.last_step = new[-1]["step"]
        return new
