"""Runs a program in a process that exists already. It imports little."""

import os
import runpy
import sys
from collections.abc import Mapping, Sequence


def run_program(
    program: str, arguments: Sequence[str], environment: Mapping[str, str]
) -> None:
    """Run a Python file as this process's program."""
    os.environ.update(environment)
    sys.argv = [program, *arguments]
    runpy.run_path(program, run_name="__main__")
