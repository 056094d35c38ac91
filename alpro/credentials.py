"""Finds passwords and signatures in URLs. Such a URL is refused, so that nothing that is stored or shown has one."""

import re
from urllib.parse import unquote

from alpro.errors import InputError

LINK = re.compile(
    r"(?P<protocol>[a-z][a-z0-9+.-]*)://(?P<rest>(?:(?!::[a-z][a-z0-9+.:-]*//).)*)",
    re.IGNORECASE | re.DOTALL,
)
# NAME:PASSWORD@, where the password may have slashes; HOST:80/ is a port. In web addresses NAME@, which may be a token.
# The container of abfs://container@account is neither.
USER, WEB_USER = (
    re.compile(r"[^/@\[]*:(?!\d*(?:[/?#]|$))[^@]*@", re.DOTALL),
    re.compile("[^/?#@]*@"),
)
WEB = {"http", "https", "ftp", "ftps", "dav", "davs", "webdav", "webhdfs"}
PARAMETER = re.compile("(?<=[?#&;])([^=&;?#]+)=")
# Words in the names of secret parameters, as in X-Amz-Signature, AWSAccessKeyId, sig, access_token.
SECRET = {
    "sig",
    "signature",
    "token",
    "accesstoken",
    "sessiontoken",
    "session",
    "sessionid",
    "key",
    "apikey",
}
SECRET |= {
    "accesskey",
    "secret",
    "password",
    "passwd",
    "pass",
    "pwd",
    "credential",
    "credentials",
    "auth",
    "jwt",
}
SECRET |= {
    "authorization",
    "hmac",
    "sas",
    "policy",
    "jsessionid",
    "sign",
    "ticket",
    "hdnts",
    "hdnea",
}


def has_credentials(text: str) -> bool:
    """Whether a URL, chained or not, contains a user name, a password or a parameter with a secret's name."""
    if "://" not in text:
        return False
    names = (
        re.split(r"[^A-Za-z]+|(?<=[a-z])(?=[A-Z])", unquote(name))
        for name in PARAMETER.findall(text)
    )
    return any(word.lower() in SECRET for words in names for word in words) or any(
        USER.match(link["rest"])
        or (link["protocol"].lower() in WEB and WEB_USER.match(link["rest"]))
        for link in LINK.finditer(text)
    )


def refuse_credentials(where: str, value: object) -> None:
    """Raises InputError if a value is a URL with credentials. where: the setting, or the row, that contains it."""
    if isinstance(value, str) and has_credentials(value):
        raise InputError(
            f"{where}: this URL contains a user name, a password or a signature; give it by the environment of the "
            "store's library, or in fsspec's configuration (docs/security.md, Credentials)"
        )
