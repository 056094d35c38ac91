"""Removes credentials from URLs that are written to disk or shown.

A manifest row may name a file by a URL that contains a password or a signature. That URL is only used to fetch the
file. Ids, groups, shards, rejects, fingerprints and messages contain the cleaned URL that these functions return.
"""

import re
from typing import Any

# A URL, or one link of a chain of URLs, in any text. The :: of an IPv6 address in square brackets is not a chain.
LINK = re.compile(r"(?P<protocol>[a-z][a-z0-9+.-]*)://(?P<rest>(?:\[[0-9a-f:.]*\]|(?!::)[^\s'\"<>\\])+)", re.IGNORECASE)
# Protocols whose URLs have queries. In object stores a question mark may be part of a name.
WEB = {"http", "https", "ftp", "ftps", "dav", "davs", "webdav", "webhdfs"}
# Words in the names of secret parameters, as in X-Amz-Signature, AWSAccessKeyId, sig, access_token.
SECRET = {"sig", "signature", "token", "accesstoken", "sessiontoken", "session", "sessionid", "key", "apikey"}
SECRET |= {"accesskey", "secret", "password", "passwd", "pass", "pwd", "credential", "credentials", "auth", "jwt"}
SECRET |= {"authorization", "hmac", "sas", "policy"}


def without_credentials(text: str, keep_query: bool = False) -> str:
    """Removes user names, passwords and the queries of web addresses from a URL or from all URLs in a text.

    With keep_query, only queries that contain a parameter with a secret's name are removed: other texts, such as the
    address of a page, need their queries. URLs of object stores are always treated this way.

    >>> without_credentials("https://me:pw@host/a.mp4?id=7&t=x: Forbidden")
    'https://host/a.mp4: Forbidden'
    >>> without_credentials("https://host/watch?v=7 https://host/a.mp4?id=7&X-Amz-Signature=x", keep_query=True)
    'https://host/watch?v=7 https://host/a.mp4'
    """
    if "://" not in text:
        return text
    return LINK.sub(lambda match: _clean(match["protocol"], match["rest"], keep_query), text)


def _clean(protocol: str, rest: str, keep_query: bool) -> str:
    web = protocol.lower() in WEB
    host, slash, path = rest.partition("/")
    user, _, host_alone = host.rpartition("@")
    if web or ":" in user:  # else the name of a container or an account, as in abfs://container@account/path
        host = host_alone
    address = f"{host}{slash}{path}"
    if query := re.search("[?#]", address):
        names = re.split("[?&;#]", address[query.start() :])
        if (web and not keep_query) or any(_is_secret(name.partition("=")[0]) for name in names):
            address = address[: query.start()] + re.findall(r"[:;,.)\]]*$", address)[0]  # punctuation of the sentence
    return f"{protocol}://{address}"


def _is_secret(name: str) -> bool:
    words = re.split(r"[^A-Za-z]+|(?<=[a-z])(?=[A-Z])", name)
    return any(word.lower() in SECRET for word in words)


def has_credentials(url: str) -> bool:
    """Whether a URL contains a user name, a password or a parameter with a secret's name."""
    return without_credentials(url, keep_query=True) != url


def clean_values(value: Any, keep_query: bool = False) -> Any:
    """Removes the credentials from every string in a nested value of lists and dictionaries."""
    if isinstance(value, str):
        return without_credentials(value, keep_query)
    if isinstance(value, dict):
        return {clean_values(key, keep_query): clean_values(item, keep_query) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean_values(item, keep_query) for item in value]
    return value
