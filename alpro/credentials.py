"""Finds passwords and signatures in URLs.

Every address that a person or a row gives is checked by `refuse_credentials`, so that nothing that
is stored or shown has a secret. `redacted` removes secrets from what others say: the messages of
servers and of downloaders.
"""

import base64
import binascii
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any
from urllib.parse import unquote

from alpro.errors import InputError

# What stands before and after the colon of a link. Path("http://host") is http:/host: the second
# slash of a web address may be lost.
PROTOCOL = re.compile(r"[a-z][a-z0-9+.-]*$", re.IGNORECASE)
SLASHES = re.compile("://|:/")
# A link ends where the next one of a chain starts, as in filecache::https://host/a.mp4.
NEXT_LINK = re.compile(r"::[a-z][a-z0-9+.:-]{0,60}//", re.IGNORECASE)
MAX_LINKS = 1000  # of a text that are looked at
MAX_LINK = 2000  # characters of a link in which a password is looked for
MAX_MESSAGE = 2000  # characters that are left of a message

# NAME:PASSWORD@, where the password may have slashes. HOST:80/ is a port.
USER = re.compile(r"[^/@\[]*:(?!\d*(?:[/?#]|$))[^@]*@", re.DOTALL)
# The same with a password that starts as a port or a path does. A port has at most five digits, and
# is not empty; after one, only NAME:80/...@a.host/ is a password: a path may have an @, as in
# nas:8080/@home/a.mp4.
ODD_PASSWORD = re.compile(r"[^/@\[]*:(?:|\d{6,})[/?#][^@]*@", re.DOTALL)
AFTER_PORT = re.compile(r"[^/@\[.]*:\d+[/?#][^@]*@[\w-]+(?:\.[\w-]+)+(?::\d+)?/", re.DOTALL)
# NAME@: of a web address, the name may be a token; of a bucket, it is a part of a secret. The
# container of abfs://container@account is neither.
NAME = re.compile("[^/?#@]*@")
# The start of a password that has a link inside, such as https://me:a::s3://b@host.
NO_PORT = re.compile(r"[^/?#@\[\]]*:(?!\d{0,5}$)[^/?#@]+$")
WEB = {"http", "https", "ftp", "ftps", "dav", "davs", "webdav", "webhdfs"}
BUCKETS = {"s3", "s3a", "gs", "gcs", "oss"}

PARAMETER = re.compile("(?<=[?#&;])([^=&;?#]+)=([^&;#]*)")
# The ends of names of secret parameters: letters alone, in lower case, without a final `id`, as in
# AWSAccessKeyId.
SECRET = re.compile(
    "(token|secret|passw(or)?d|passwort|passphrase|passcode|pswd|userpass|signature|credentials?"
    "|creds?|bearer|jwt|hmac|authorization|session|sess|sessid|cookie|keypair|securelink"
    "|hdnts|hdnea|hdntl|authcode|accesscode"
    "|(api|access|secret|private|auth|app|shared|master|encryption|subscription|license|stream"
    "|sign|signing|session|user|account|consumer|client|security|service|host|storage)key)$"
)
SECRET_WORDS = {"sig", "sas", "pwd", "pw", "psw", "oauth", "ticket", "otp", "policy", "secretid"}
# Words that also have other meanings, which their values tell: sign=left, key=3, auth=0, md5=(a
# checksum).
AMBIGUOUS = {
    *("key", "pass", "auth", "sign", "md5", "pin", "credentials"),
    *("session", "sess", "sessionid", "sid"),
}
HARMLESS = {
    "md5": re.compile("[0-9a-fA-F]{32}"),
    "pass": re.compile(r"\d{1,2}"),
    "pin": re.compile(r"\d{1,2}"),
    "sign": re.compile(r"[+-]?\d{0,4}|[a-zA-Z]{1,12}"),
    "": re.compile(
        r"[+-]?\d{1,6}|true|false|yes|no|on|off|none|null"
        r"|[\w/.-]+\.(?:mp4|webm|mkv|mov|avi|jpe?g|png|tar)",
        re.IGNORECASE,
    ),
}
EXPIRES = {"expires", "expire", "expiry", "exp", "e", "st"}  # beside md5: a signed link of nginx

HIDDEN = "***"
AUTHORIZATION = re.compile(
    r"\b(basic|bearer|digest|negotiate|token|apikey)[ :=]+[^\s,;'\"<>]{3,}", re.IGNORECASE
)
BASE64 = re.compile(r"(?<![\w+/=-])[A-Za-z0-9+/_-]{8,}={0,2}(?![\w+/=-])")
USER_IN_TEXT = re.compile(r"(?<=//)[^\s/@]*:[^\s@]*@|(?<=//)[^\s/@:]+@")
LABELLED = re.compile(
    r"\b((?:user(?:name)?|login|pass(?:word|wd)?|pwd|secret|token|credentials?)\b"
    r"['\"]?\s*[:=]\s*)[^\s,;&]+",
    re.IGNORECASE,
)


def has_credentials(text: str) -> bool:
    """Whether a URL, chained or not, contains a user name, a password or a parameter with a
    secret's name; as it stands, or percent-encoded, as a URL inside of another is."""
    # Most texts have no link, and those of millions of rows are checked.
    if ":/" not in text and "%3a" not in text.lower():
        return False

    decoded = unquote(text)
    return _has_credentials(text) or (decoded != text and _has_credentials(decoded))


def _has_credentials(text: str) -> bool:
    links = list(islice(_links(text), MAX_LINKS))
    if not links:
        return False
    return _has_secret_parameter(text) or any(map(_has_user, links))


@dataclass(frozen=True)
class Link:
    protocol: str
    rest: str  # up to the next link of a chain
    after: str  # from there on


def _links(text: str) -> Iterator[Link]:
    """The links of a text, also those inside of another, as in https://host/?url=https://other."""
    for slashes in SLASHES.finditer(text):
        # A protocol is short: searching all of the text before each link takes quadratic time.
        before = text[max(0, slashes.start() - 30) : slashes.start()]
        protocol = PROTOCOL.search(before)
        # Only a web address can have lost a slash: c:/videos is a path.
        if not protocol or (slashes[0] == ":/" and protocol[0].lower() not in WEB):
            continue

        following = text[slashes.end() : slashes.end() + MAX_LINK]
        next_link = NEXT_LINK.search(following)
        end = next_link.start() if next_link else len(following)
        yield Link(protocol[0].lower(), following[:end], following[end:])


def _has_user(link: Link) -> bool:
    if any(pattern.match(link.rest) for pattern in (USER, ODD_PASSWORD, AFTER_PORT)):
        return True
    if link.protocol in WEB | BUCKETS and NAME.match(link.rest):
        return True
    return bool(link.protocol in WEB and NO_PORT.match(link.rest) and "@" in link.after)


def _has_secret_parameter(text: str) -> bool:
    parameters = [(unquote(name), unquote(value)) for name, value in PARAMETER.findall(text)]
    expires = any(name.lower() in EXPIRES for name, _ in parameters)

    return any(_is_secret(name, value, expires) for name, value in parameters)


def _is_secret(name: str, value: str, expires: bool) -> bool:
    """Whether a parameter is a secret. Its last word tells: key_frame is a frame, and frame_key is
    a key."""
    words = re.split(r"[^A-Za-z0-9]+|(?<=[a-z])(?=[A-Z])", name)
    words = [word.lower() for word in words if word]
    if words[-1:] == ["id"] and len(words) > 1:
        words.pop()
    if not words or not value:
        return False

    if words[-1] in AMBIGUOUS:
        harmless = HARMLESS.get(words[-1], HARMLESS[""])
        return (expires and words[-1] == "md5") or not harmless.fullmatch(value)

    # Joined, because api_key, apiKey and apikey are one name.
    letters = re.sub("[^a-z]", "", "".join(words)).removesuffix("id")
    return words[-1] in SECRET_WORDS or bool(SECRET.search(letters))


def contains_credentials(value: object) -> bool:
    """Whether a value, or one inside of a list or a table, is a URL with credentials."""
    return any(map(has_credentials, _texts(value)))


def refuse_credentials(where: str, value: object) -> None:
    """Raises InputError if a value, or one inside of a list or a table, is a URL with credentials.

    where: the setting, the option or the column that contains it. The message does not repeat the
    value.
    """
    if contains_credentials(value):
        raise InputError(
            f"{where}: this URL contains a user name, a password or a signature; give it by the "
            "environment of the store's library, or in fsspec's configuration (docs/security.md, "
            "Credentials)"
        )


def _texts(value: object) -> Iterator[str]:
    """The texts in a value, also those that are keys of a table."""
    pending: list[Any] = [value]  # not by recursion: a row may be nested deeply
    while pending:
        inner = pending.pop()
        if isinstance(inner, str):
            yield inner
        elif isinstance(inner, Mapping):
            pending += [*inner, *inner.values()]
        elif isinstance(inner, list | tuple | set | frozenset):
            pending += inner


def redacted(text: str) -> str:
    """A message of somebody else without the credentials that it may repeat: in URLs, after the
    name of a scheme such as Basic, after a label such as password, and in base64.

    >>> redacted("401: no Basic bmV0dXNlcjpTRUNSRVQ=, see https://me:pw@host/a.mp4?id=7&sig=x")
    '401: no Basic ***, see https://***@host/a.mp4?id=7&sig=***'
    """
    # A server decides how long its message is: it is cut before it is searched.
    text = AUTHORIZATION.sub(rf"\1 {HIDDEN}", text[:MAX_MESSAGE])
    text = USER_IN_TEXT.sub(f"{HIDDEN}@", text)
    text = LABELLED.sub(rf"\1{HIDDEN}", text)
    text = BASE64.sub(lambda match: HIDDEN if _is_encoded_user(match[0]) else match[0], text)
    return PARAMETER.sub(_hidden_parameter, text)


def _hidden_parameter(match: re.Match[str]) -> str:
    is_secret = _is_secret(unquote(match[1]), unquote(match[2]), expires=False)
    return f"{match[1]}={HIDDEN}" if is_secret else match[0]


def _is_encoded_user(text: str) -> bool:
    """Whether a text is NAME:PASSWORD in base64."""
    # Senders may leave out the padding, which the decoder requires.
    padded = text.rstrip("=")
    padded += "=" * (-len(padded) % 4)

    try:
        decoded = base64.b64decode(padded, altchars=b"-_", validate=True).decode()
    except (binascii.Error, ValueError):
        return False
    return ":" in decoded and decoded.isprintable()
