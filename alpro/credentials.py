"""Removes credentials from URLs that are written to disk or shown.

A manifest row may name a file by a URL that contains a password or a signature. That URL is only used to fetch the
file. Ids, groups, shards, rejects, fingerprints and messages contain the cleaned URL that these functions return. A
value that is a URL is parsed as a whole (`clean_url`); in a message, the end of a URL is only a guess
(`without_credentials`), so that messages about a URL are cleaned with it (`without_secrets_of`).
"""

import re
from typing import Any
from urllib.parse import quote, unquote, unquote_plus

PROTOCOL = r"(?P<protocol>[a-z][a-z0-9+.-]*)://"
URL = re.compile(rf"\s*(?:[a-z][a-z0-9+.-]*::)*{PROTOCOL}", re.IGNORECASE)
CHAIN = re.compile(r"::(?=/|[a-z][a-z0-9+.-]*:(?::|//))", re.IGNORECASE)  # between the links of a chain of URLs
LINK = re.compile(r"(?P<protocol>[a-z][a-z0-9+.-]*)://(?P<rest>.*)", re.IGNORECASE | re.DOTALL)
# A URL in a text: a name and a password may have any character, except for a quote that ends a JSON string; the rest no
# spaces and quotes. The :: of an IPv6 address in square brackets is not a chain.
IN_TEXT = re.compile(
    PROTOCOL + r"(?P<rest>"
    r'(?:(?:(?!://)(?:\\.|[^\n/"\\]|"(?![,:}\]\s])))*@|'
    r'[^\s/@:"]+:(?!\d*[/?#\s])(?:(?!://)(?:\\.|[^\n"\\]|"(?![,:}\]\s])))*@)?'
    r"(?:\[[0-9a-f:.]*\]|(?!::)[^\s'\"<>\\?#])*(?:[?#]\S*?(?=['\"<>\\:;,.)\]]*(?:\s|$|::[a-z])))?)",
    re.IGNORECASE,
)
PARAMETER = re.compile(r"(?<=[?#&;])([\w.%-]+)=[^\s&;#]*")
# Protocols whose URLs have queries. In object stores a question mark may be part of a name.
WEB = {"http", "https", "ftp", "ftps", "dav", "davs", "webdav", "webhdfs"}
# Words in the names of secret parameters, as in X-Amz-Signature, AWSAccessKeyId, sig, access_token.
SECRET = {"sig", "signature", "token", "accesstoken", "sessiontoken", "session", "sessionid", "key", "apikey"}
SECRET |= {"accesskey", "secret", "password", "passwd", "pass", "pwd", "credential", "credentials", "auth", "jwt"}
SECRET |= {"authorization", "hmac", "sas", "policy", "jsessionid", "sign", "ticket", "hdnts", "hdnea"}
MIN_SECRET = 4  # characters of a part of a URL that is also removed where a message repeats it without the URL


def clean_url(url: str, keep_query: bool = False) -> str:
    """Removes user names, passwords and the query of a web address from a text that is one URL, chained or not.

    With keep_query, only a query that contains a parameter with a secret's name is removed: other texts, such as the
    address of a page, need their queries. URLs of object stores are always treated this way. Other texts are unchanged.

    >>> clean_url("https://me:p 'w'/@host/a.mp4?id=7&t=x")
    'https://host/a.mp4'
    >>> clean_url("https://host/watch?v=7", keep_query=True)
    'https://host/watch?v=7'
    """
    return "::".join(
        _clean(match["protocol"], match["rest"], keep_query) if (match := LINK.fullmatch(link)) else link
        for link in CHAIN.split(url)
    )


def without_credentials(text: str, keep_query: bool = False) -> str:
    """As `clean_url`, for all URLs in a text.

    >>> without_credentials("https://me:pw@host/a.mp4?id=7&t=x: Forbidden")
    'https://host/a.mp4: Forbidden'
    >>> without_credentials("https://host/watch?v=7 https://host/a.mp4?id=7&X-Amz-Signature=x", keep_query=True)
    'https://host/watch?v=7 https://host/a.mp4'
    """
    if "://" not in text:
        return text
    text = IN_TEXT.sub(lambda match: _clean(match["protocol"], match["rest"], keep_query), text)
    return PARAMETER.sub(lambda match: "" if _is_secret(match[1]) else match[0], text)


def without_secrets_of(text: str, url: str) -> str:
    """As `without_credentials`, for a message about a URL: also where it repeats parts of that URL, as a server does in
    the reason of its error."""
    text = text.replace(url, clean_url(url))
    parts: set[str] = set()
    for link in filter(None, map(LINK.fullmatch, CHAIN.split(url))):
        user, address = _split_user(link["protocol"], link["rest"])
        query = _split_query(link["protocol"], address, keep_query=False)[1]
        values = [part for name in re.split("[?#&;]", query) for part in (name, name.partition("=")[2].strip("'\""))]
        parts |= {user, *user.split(":", 1), query, *values}
    forms = {form for p in parts for form in (p, unquote(p), unquote_plus(p), quote(p), repr(p)[1:-1])}
    for form in sorted(forms, key=len, reverse=True):
        if len(form) >= MIN_SECRET:
            text = text.replace(form, "")
    return without_credentials(text)


def _clean(protocol: str, rest: str, keep_query: bool) -> str:
    _, address = _split_user(protocol, rest)
    address, _ = _split_query(protocol, address, keep_query)
    return f"{protocol}://{address}"


def _split_user(protocol: str, rest: str) -> tuple[str, str]:
    """Splits what follows the protocol into a user's name with a password, and the address."""
    authority, slash, path = rest.partition("/")
    user, at, host = authority.rpartition("@")
    if at:
        if protocol.lower() in WEB or ":" in user:  # else the name of a container, as in abfs://container@account/path
            return user, f"{host}{slash}{path}"
        return "", rest
    _, colon, port = re.sub(r"\[.*?\]", "", authority).rpartition(":")
    is_port = port.isdecimal() or not port
    named = re.split("[?#]", path)[0] if is_port else path
    # A password may have slashes. A path such as that of host:80/@me is none.
    if colon and re.search("[^/]@" if is_port else "@", f"{slash}{named}"):
        user, _, address = f"{authority}{slash}{named}".rpartition("@")
        return user, address + path[len(named) :]
    return "", rest


def _split_query(protocol: str, address: str, keep_query: bool) -> tuple[str, str]:
    """Splits an address before its query, or before the first secret in its path; it has no query to remove if that is
    kept and has no secret."""
    marks = list(re.finditer("[?#&;]", address))
    queries = [mark.start() for mark in marks if mark[0] in "?#"]
    secrets = [mark.start() for mark in marks if _is_secret(re.split("[=&;?#]", address[mark.end() :])[0])]
    if secrets or (queries and protocol.lower() in WEB and not keep_query):
        start = min(secrets[:1] + queries[:1])
        return address[:start], address[start:]
    return address, ""


def _is_secret(name: str) -> bool:
    words = re.split(r"[^A-Za-z]+|(?<=[a-z])(?=[A-Z])", unquote(name))
    return any(word.lower() in SECRET for word in words)


def has_credentials(url: str) -> bool:
    """Whether a URL contains a user name, a password or a parameter with a secret's name."""
    return clean_url(url, keep_query=True) != url


def clean_values(value: Any, keep_query: bool = False) -> Any:
    """Removes the credentials from every string in a nested value of lists and dictionaries: from a URL, or a text."""
    if isinstance(value, str):
        return (clean_url if URL.match(value) else without_credentials)(value, keep_query)
    if isinstance(value, dict):
        return {clean_values(key, keep_query): clean_values(item, keep_query) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean_values(item, keep_query) for item in value]
    return value
