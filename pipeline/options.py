"""Options of several commands, and what their values are."""

import argparse
import os
from pathlib import Path


def port(text: str) -> int:
    """The number of a port."""
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a valid port (1 to 65535)")
    return int(text)


def user_path(text: str) -> Path:
    """A path from the command line. `~` is the home folder, also if the shell does not expand it (--out=~/x)."""
    return Path(os.path.expanduser(text))  # noqa: PTH111 (Path.expanduser fails for an unknown ~user)


def add_workspace(command: argparse.ArgumentParser, text: str) -> None:
    command.add_argument(
        "--workspace", type=user_path, default="workspace", metavar="FOLDER", help=f"{text} (default: workspace)"
    )


def add_tracking_uri(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--tracking-uri", default="", metavar="URI", help="an MLflow server (default: a file in the workspace)"
    )
