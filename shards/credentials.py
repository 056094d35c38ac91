"""Refuse passwords and secrets in URLs.

Every address that a user or a row gives is checked by `refuse_credentials`, so that nothing that is
stored or shown has a secret. `redact` removes secrets from the messages of servers and downloaders.
"""

import re
from collections.abc import Mapping
from itertools import islice
from typing import Any
from urllib.parse import unquote

from alpro.errors import InputError

MAX_LINKS = 1000  # links of a text that are looked at
MAX_LINK = 2000  # characters of a link in which a password is looked for
MAX_MESSAGE = 2000  # characters that are left of a message

# A link, and its protocol. Path("http://host") is http:/host: a web address may lose a slash.
LINK = re.compile(r"([a-z][a-z0-9+.-]{0,30})://|(https?|ftps?):/", re.IGNORECASE)
# NAME:PASSWORD@, where the password may have slashes, as the secrets of S3 do. HOST:80/ is a port,
# and :: begins the next link of a chain.
PASSWORD = re.compile(r"[^:/@\[\s]*:(?!:|\d*(?:[/?#]|$))(?:(?!::)[^@\s])*@")
# NAME@, where the name may be a token. That of abfs://container@account is none.
USER = re.compile(r"[^/?#@\s]*@")
USER_IS_SECRET = {"http", "https", "ftp", "ftps", "s3", "gs"}

PARAMETER = re.compile("(?<=[?#&;])([^=&;?#]+)=([^&;#]+)")
# Names of secrets, and ends of names, such as X-Amz-Signature and AWSAccessKeyId.
NAMES = (
    "(?:token|secret|passw(?:or)?d|passphrase|signature|credentials?|authorization|sessionid|sessid"
    "|(?:api|access|secret|private|account)[-_]?key(?:[-_]?id)?|(?<![a-z0-9])(?:sig|pwd|jwt))"
)
SECRET = re.compile(f"{NAMES}$", re.IGNORECASE)
LABELED = re.compile(
    rf"((?:{NAMES}|\b(?:user|username|login|pass))['\"]?\s*[:=]\s*)[^\s;&]+",
    re.IGNORECASE,
)
AUTHORIZATION = re.compile(
    r"\b(basic|bearer|digest|negotiate|token|apikey)[ :=]+[^\s,;'\"<>]{3,}",
    re.IGNORECASE,
)


def find_credentials(value: object) -> str:
    """Say which credentials are in a URL of a value, or of a list or a table.

    Returns:
        A few words, such as "a password"; empty if there are none. URLs may be chained, and one
        inside of another may be percent-encoded.
    """
    pending: list[Any] = [value]  # not by recursion: a row may be nested deeply
    while pending:
        inner = pending.pop()
        if isinstance(inner, Mapping):
            pending += [*inner, *inner.values()]
        elif isinstance(inner, list | tuple | set | frozenset):
            pending += inner
        # Most of the texts in millions of rows have no link.
        elif isinstance(inner, str) and (":/" in inner or "%3a" in inner.lower()):
            for decoded in dict.fromkeys((inner, unquote(inner))):
                credentials = find_in_url(decoded)
                if credentials:
                    return credentials
    return ""


def find_in_url(text: str) -> str:
    """Say which credentials are in a text as it is (see `find_credentials`)."""
    links = [*islice(LINK.finditer(text), MAX_LINKS)]
    for link in links:
        protocol = (link[1] or link[2]).lower()
        end = link.end() + MAX_LINK
        if PASSWORD.match(text, link.end(), end):
            return "a password"
        if protocol in USER_IS_SECRET and USER.match(text, link.end(), end):
            return "a user name"

    for parameter in PARAMETER.finditer(text) if links else ():
        name = unquote(parameter[1])
        if SECRET.search(name):
            return f"the parameter {name}"
    return ""


def refuse_credentials(where: str, value: object) -> None:
    """Raise InputError if a value, or one inside of a list or a table, is a URL with credentials.

    Args:
        where: The setting, the option or the column. The message does not repeat the value.
    """
    credentials = find_credentials(value)
    if credentials:
        raise InputError(
            f"{where}: this URL contains {credentials}; give it by the environment of the store's "
            "library, or in fsspec's configuration (docs/security.md, Credentials)"
        )


def redact(message: str) -> str:
    """Remove credentials from a message of another program: in URLs and after names of secrets.

    >>> redact("401: no Basic bmV0dXNlcjp=, see https://me:pw@host/a.mp4?id=7&sig=x")
    '401: no Basic ***, see https://***@host/a.mp4?id=7&sig=***'
    """
    # A server decides how long its message is: it is truncated before it is searched.
    text = AUTHORIZATION.sub(r"\1 ***", message[:MAX_MESSAGE])
    text = re.sub(rf"(?<=//)(?:{PASSWORD.pattern}|{USER.pattern})", "***@", text)
    return LABELED.sub(r"\1***", text)
