"""Python programs that this project starts.

Python puts the current folder first on the import path of `python -m` and `python -c`. People run
`alpro` in folders of downloaded data, whose `queue.py` or `calendar.py` would then run in place of
a module of the standard library.
"""

import sys


def interpreter(*arguments: str) -> list[str]:
    """The command line of a Python program that imports nothing from the current folder."""
    return [sys.executable, "-P", *arguments]
