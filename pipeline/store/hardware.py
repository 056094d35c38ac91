"""The machine that built an artifact, for its record."""

import os
import platform
import re
import shutil
import socket
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any


@cache
def hardware() -> dict[str, Any]:
    """This machine: host, model and number of CPU cores, memory (GiB), and the names of its GPUs."""
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "host": socket.gethostname(),
        "cpu": cpu(),
        "cores": os.cpu_count() or 1,
        "memory": round(pages / 2**30, 1),
        "gpus": gpus(),
    }


def cpu(file: Path = Path("/proc/cpuinfo")) -> str:
    """The model of the CPU. On Linux it is in a file."""
    with suppress(OSError):
        if model := re.search(r"^model name\s*:\s*(.+)$", file.read_text(), re.MULTILINE):
            return model[1]
    return platform.processor() or platform.machine()


def gpus() -> list[str]:
    """The names of the NVIDIA GPUs of this machine. Asks the driver: torch would open each GPU."""
    if not (program := shutil.which("nvidia-smi")):
        return []
    command = [program, "--query-gpu=name", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.splitlines()


def described(machine: dict[str, Any]) -> str:
    """A machine on a line.

    >>> described({"host": "node-3", "cpu": "EPYC 7763", "cores": 64, "memory": 502.6, "gpus": ["A100", "A100"]})
    'node-3: EPYC 7763, 64 cores, 502.6 GiB, 2 x A100'
    """
    counts = {name: machine["gpus"].count(name) for name in dict.fromkeys(machine["gpus"])}
    parts = [machine["cpu"], f"{machine['cores']} cores", f"{machine['memory']:g} GiB"]
    parts += [f"{count} x {name}" for name, count in counts.items()] or ["no GPU"]
    return f"{machine['host']}: {', '.join(parts)}"
