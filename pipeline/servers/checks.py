"""Addresses that a server cannot have, and those that would store a password."""

import errno
import socket

from alpro.credentials import has_credentials
from alpro.errors import InputError


def check_port(option: str, port: int, host: str = "127.0.0.1") -> None:
    """Raises InputError if a server could not listen on a port of an address."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except socket.gaierror as error:
            raise InputError(f"--host {host}: not an address of this machine ({error.strerror})") from error
        except OSError as error:
            if error.errno == errno.EADDRNOTAVAIL:
                raise InputError(f"--host {host}: not an address of this machine ({error.strerror})") from error
            raise InputError(
                f"port {port} is in use or not allowed ({error.strerror}); choose another with {option}"
            ) from error


def check_tracking_uri(uri: str) -> None:
    """Raises InputError if the address of an MLflow store contains a password: Prefect stores the parameters of runs,
    and messages name the store."""
    if has_credentials(uri):
        raise InputError(
            "tracking_uri: contains a user name or a password; leave them out, and set "
            "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or PGPASSWORD for PostgreSQL"
        )
