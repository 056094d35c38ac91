"""The environment variables with which this project's processes, and all that they start, can work.

A person's shell, a company's proxy, a job of a cluster and a container without a user each set or
miss variables that libraries act on. A program calls `prepare` once, when it starts.
"""

import os
import re
import sysconfig
from collections.abc import Iterator, MutableMapping
from contextlib import chdir, contextmanager
from pathlib import Path

LOCAL = ("127.0.0.1", "localhost")
# What torchrun tells its ranks, and, with PET_, the options that it reads.
RANKS = re.compile(
    r"((LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|(TORCHELASTIC|PET)_.*)"
)


def prepare() -> None:
    """Makes the environment of this process one that it can work in."""
    protect_descendants()
    reach_this_machine(os.environ)
    forget_ranks(os.environ)
    have_a_home(os.environ)


def protect_descendants() -> None:
    """Keeps the current folder off the import path of interpreters that libraries start from this
    process on: torchrun's ranks, the runs of a Prefect worker, the servers of MLflow, the children
    of multiprocessing."""
    os.environ["PYTHONSAFEPATH"] = "1"


# A folder without anybody's settings.
NEUTRAL_FOLDER = sysconfig.get_path("stdlib")


@contextmanager
def outside_current_folder() -> Iterator[None]:
    """Imports in this block read no settings from the current folder.

    Prefect reads `prefect.toml`, `pyproject.toml` and `.env` of it when it is imported, and its
    settings can name a configuration of logging, which runs programs: a folder of downloaded data
    must not.
    """
    with chdir(NEUTRAL_FOLDER):
        yield


def reach_this_machine(environment: MutableMapping[str, str]) -> None:
    """Adds this machine to the hosts that are reached without a proxy, as NO_PROXY names them: no
    proxy reaches the servers on 127.0.0.1. The user's hosts stay.

    >>> environment = {"NO_PROXY": "s3.corp.example"}
    >>> reach_this_machine(environment)
    >>> environment["no_proxy"]
    's3.corp.example,127.0.0.1,localhost'
    """
    # Programs differ in which of the two forms they read, so both get the hosts of both.
    named = ",".join(environment.get(name, "") for name in ("NO_PROXY", "no_proxy"))
    hosts = [host.strip() for host in named.split(",") if host.strip()]
    both = ",".join(dict.fromkeys([*hosts, *LOCAL]))
    if "*" in hosts:
        both = "*"  # only alone it means all hosts

    environment["NO_PROXY"] = both
    environment["no_proxy"] = both


def forget_ranks(environment: MutableMapping[str, str]) -> None:
    """Removes the ranks that a pod or a job has set: what torchrun did not start is alone, and
    waits for no other.

    >>> environment = {"RANK": "0", "WORLD_SIZE": "8", "PET_NNODES": "2", "PATH": "/bin"}
    >>> forget_ranks(environment)
    >>> environment
    {'PATH': '/bin'}
    """
    # A list, because entries are removed from what it is made of.
    for name in [name for name in environment if RANKS.fullmatch(name)]:
        del environment[name]


def have_a_home(environment: MutableMapping[str, str]) -> None:
    """Sets HOME as a container's runtime does, for a user without a name and without it: Prefect
    would not start."""
    try:
        Path.home()
    except RuntimeError:
        environment["HOME"] = "/"
