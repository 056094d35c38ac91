"""Environment variables and streams of this project's processes, and of all that they start.

A shell, a company's proxy, a job of a cluster and a container without a user each set or miss
variables that libraries act on. A program calls `prepare` once, when it starts.
"""

import locale
import os
import re
import signal
import sys
import sysconfig
from collections.abc import Iterator, MutableMapping
from contextlib import chdir, contextmanager
from pathlib import Path

LOCAL = "127.0.0.1,localhost"
# Variables that torchrun sets for its ranks, and, with PET_, options that it reads.
RANKS = re.compile(
    r"((LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|(TORCHELASTIC|PET)_.*)"
)


def prepare() -> None:
    """Normalize the environment at startup, in the main thread."""
    restart_with_streams_in_utf8()
    # A program that ignores it passes that on, and nobody would learn how a child process ended.
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    protect_descendants()
    exempt_local_hosts(os.environ)
    unset_ranks(os.environ)
    try:
        Path.home()
    except RuntimeError:  # A user without a name has none. Prefect needs it.
        os.environ["HOME"] = "/"


def restart_with_streams_in_utf8() -> None:
    """Start this program again if it lacks a standard stream, as under some daemons, or if its
    locale has another encoding, in which it would write files that other machines cannot read."""
    streams = (sys.stdin, sys.stdout, sys.stderr)
    # With -X utf8=0, another start would change nothing.
    is_final = (
        sys.flags.utf8_mode
        or locale.getencoding().lower() == "utf-8"
        or "utf8" in sys._xoptions
    )
    if is_final and None not in streams:
        return

    for descriptor, stream in enumerate(streams):
        if stream is None:
            null = os.open(os.devnull, os.O_RDWR)  # often the same number
            os.dup2(null, descriptor)
            os.set_inheritable(descriptor, True)
    os.environ["PYTHONUTF8"] = "1"
    # An option, too: after -E and -I, Python ignores its variables.
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def protect_descendants() -> None:
    """Keep the current folder off the import path of interpreters that libraries start.

    These are torchrun's ranks, the runs of a Prefect worker, MLflow's servers and the children of
    multiprocessing.
    """
    os.environ["PYTHONSAFEPATH"] = "1"


# Folder that has no settings of a program.
NEUTRAL_FOLDER = sysconfig.get_path("stdlib")


@contextmanager
def outside_current_folder() -> Iterator[None]:
    """Import modules that would read settings from the current folder without them.

    When Prefect is imported, it reads `prefect.toml`, `pyproject.toml` and `.env` there. Its
    settings can name a logging configuration, which can run programs: a folder of downloaded data
    must not.
    """
    with chdir(NEUTRAL_FOLDER):
        yield


def exempt_local_hosts(environment: MutableMapping[str, str]) -> None:
    """Add this machine to NO_PROXY, since no proxy reaches the servers on 127.0.0.1.

    The user's hosts stay.

    >>> environment = {"NO_PROXY": "s3.corp.example"}
    >>> exempt_local_hosts(environment)
    >>> environment["no_proxy"]
    's3.corp.example,127.0.0.1,localhost'
    """
    # Programs differ in which of the two forms they read. Most prefer the second.
    hosts = environment.get("no_proxy") or environment.get("NO_PROXY") or LOCAL
    # `*` means all hosts only if it stands alone. A parent process may have added this machine.
    if hosts != "*" and not hosts.endswith(LOCAL):
        hosts = f"{hosts},{LOCAL}"
    environment.update(NO_PROXY=hosts, no_proxy=hosts)


def unset_ranks(environment: MutableMapping[str, str]) -> None:
    """Unset RANK, WORLD_SIZE and similar, so a process outside torchrun waits for no peers.

    A pod or a job of a cluster may have set them.

    >>> environment = {"RANK": "0", "WORLD_SIZE": "8", "PET_NNODES": "2", "PATH": "/bin"}
    >>> unset_ranks(environment)
    >>> environment
    {'PATH': '/bin'}
    """
    # A list, because entries are removed during the loop.
    for name in [*filter(RANKS.fullmatch, environment)]:
        del environment[name]
