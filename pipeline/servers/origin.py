"""Which requests a server of this machine answers: not those of pages of other sites."""

from collections.abc import Collection
from urllib.parse import urlsplit

LOCAL = frozenset({"127.0.0.1", "localhost"})


def is_own(host: str | None, origin: str | None, hosts: Collection[str] = LOCAL) -> bool:
    """Whether a request is sent to one of `hosts` (none: to any) and, if a page sends it, by a page of the same server.

    host, origin: its headers. A site whose name is made to resolve to this machine is known by Host; a page of another
    site, whose requests need no CORS if they are simple, by Origin. The names in LOCAL are one server.
    """
    try:
        server, page = urlsplit(f"//{host or ''}"), urlsplit(origin or "")
        same_port = server.port == page.port
    except ValueError:  # not an address
        return False
    if hosts and server.hostname not in hosts:
        return False
    same_host = page.hostname == server.hostname or {page.hostname, server.hostname} <= LOCAL
    return origin is None or (same_host and same_port)
