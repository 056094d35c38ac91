"""What a run of a deployment may read, write and connect to.

Whoever can open Prefect's page can start runs with any parameters. So the folders and addresses are named by the person
who starts the workers, in their environment. `alpro up` sets it; commands in a terminal are not limited.

    ALPRO_WORKSPACE     the folder of artifacts and reports
    ALPRO_CONFIGS       folders of configurations, by default `configs` in the workspace
    ALPRO_DATA          more folders and URLs of videos, annotations, models, shared artifacts
    ALPRO_TRACKING_URI  the MLflow server
    ALPRO_HOSTS         host:port of Dask schedulers and of the first of several training machines

Lists are separated by commas. A limit is on the real path: a link, or `..`, does not lead out of a folder.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from alpro.credentials import without_credentials
from alpro.errors import InputError
from alpro.pipeline.checks import split
from alpro.pipeline.config import shipped
from alpro.pipeline.form import leaves
from alpro.shards.storage import Location, absolute, is_url, located, refuse_credentials

CONNECTIONS = ("resources.dask", "resources.rendezvous")  # objects of the other side are unpickled


@dataclass(frozen=True)
class Limits:
    """The limits of the runs that a worker starts. All paths are absolute and real."""

    workspace: Path
    configs: tuple[Path, ...]
    data: tuple[Location, ...]
    tracking_uri: str
    hosts: tuple[str, ...] = ()

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> "Limits":
        """The limits in a worker's environment. Raises InputError if it names no workspace."""
        named = environment.get("ALPRO_WORKSPACE", "")
        if not Path(named).is_absolute():
            raise InputError(
                f"ALPRO_WORKSPACE = {named!r} of this worker is not an absolute path; start the worker with "
                "ALPRO_WORKSPACE=/shared/alpro, say"
            )
        workspace = Path(named).resolve()
        configs = [Path(absolute(text)) for text in split(environment.get("ALPRO_CONFIGS", ""))]
        configs = configs or [workspace / "configs"]
        data = [absolute(text) for text in split(environment.get("ALPRO_DATA", ""))]
        return cls(
            workspace,
            tuple(configs),
            (*data, workspace / "data", workspace, *configs),
            environment.get("ALPRO_TRACKING_URI", ""),
            tuple(split(environment.get("ALPRO_HOSTS", ""))),
        )

    def check_workspace(self, text: str) -> str:
        """The workspace of a run: that of the worker, or a folder in it. Raises InputError."""
        chosen = Path(text).resolve() if text else self.workspace
        if text and not (Path(text).is_absolute() and chosen.is_relative_to(self.workspace)):
            raise InputError(f"workspace = {text}: not in {self.workspace}, the workspace of this worker; leave it out")
        return str(chosen)

    def check_tracking_uri(self, uri: str) -> str:
        """The MLflow store of a run: that of the worker. Raises InputError."""
        if uri not in ("", self.tracking_uri):
            raise InputError(f"tracking_uri = {uri}: this worker logs to {self.tracking_uri or 'its workspace'}")
        return self.tracking_uri

    def check_config(self, source: str) -> str:
        """A configuration by names that ship and absolute paths. Raises InputError for a file outside the folders."""
        return "+".join(self._config(part.strip()) for part in source.split("+"))

    def _config(self, name: str) -> str:
        if name in shipped():
            return name
        for folder in self.configs:
            path = (folder / name).resolve()
            if path.suffix == ".toml" and path.is_relative_to(folder) and path.is_file():
                return str(path)
        raise InputError(
            f"config = {without_credentials(name)}: neither a shipped configuration ({', '.join(shipped())}) nor a "
            f".toml file in {listed(self.configs)}"
        )

    def check_data(self, text: str) -> str:
        """Data as an absolute path or a URL; a relative path is looked up in each folder. Raises InputError."""
        if not text or is_url(text) or Path(text).is_absolute():
            return self.check_place("data", text) if text else ""
        for folder in self.data:
            path = folder / text if isinstance(folder, Path) else None
            if path and path.exists() and self.contains(path):
                return str(path.resolve())
        raise InputError(f"data = {text}: not in {listed(self.data)}")

    def check_values(self, values: Any, where: str = "") -> None:
        """Raises InputError if a text in nested values leads to a file or an address outside the limits."""
        for key, value in leaves(values, where):
            if key in CONNECTIONS and value:
                if value.rpartition("/")[2] not in self.hosts:
                    raise InputError(
                        f"{key} = {without_credentials(value)}: not one of the addresses in ALPRO_HOSTS of this worker"
                    )
            elif isinstance(value, str) and leads_elsewhere(value):
                self.check_place(key, value)

    def check_place(self, key: str, value: str) -> str:
        """Raises InputError if a path or a URL is outside the folders. Returns it, with links resolved."""
        refuse_credentials(key, located(value))
        if not self.contains(value):
            raise InputError(
                f"{key} = {value}: not in {listed(self.data)}; name other folders in ALPRO_DATA where the worker is "
                "started (alpro up --data FOLDER)"
            )
        return str(absolute(value))

    def contains(self, text: Location) -> bool:
        place = located(text)
        if isinstance(place, Path):
            real = Path(absolute(place))
            return any(isinstance(root, Path) and real.is_relative_to(root.resolve()) for root in self.data)
        for root in self.data:
            rest = place.removeprefix(str(root).rstrip("/")) if isinstance(root, str) else place
            if rest != place and (not rest or rest.startswith("/")):
                return "::" not in rest and not re.search(r"(^|/)(\.|%2e){2}(/|$)", rest, re.IGNORECASE)
        return False


def listed(places: tuple[Location, ...]) -> str:
    return ", ".join(map(str, places))


def leads_elsewhere(text: str) -> bool:
    """Whether a text may be a path outside the current folder, or a URL. Names of models on the hub are neither.

    >>> [leads_elsewhere(text) for text in ("/etc/passwd", "a/../../b", "s3://b", "a dog", "google/vit-base")]
    [True, True, True, False, False]
    """
    return is_url(text) or "::" in text or text.startswith(("/", "~", ".")) or ".." in PurePosixPath(text).parts


def current_limits() -> Limits | None:
    """The limits of the run that calls this; None for a run of the command line or of a Python program."""
    return Limits.of(os.environ) if deployed() else None


def deployed() -> bool:
    """Whether a worker started this process for a run of a deployment."""
    from prefect.runtime import deployment

    return deployment.id is not None
