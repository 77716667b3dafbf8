"""Web addresses without the secrets in them: user name, password, tokens."""

from __future__ import annotations

import re

HIDDEN = "***"
_USER = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^/?#\s]*@")
_SECRET = re.compile(
    r"(?P<key>[?&;#][^=&;#\s]*(?:token|key|secret|sig|passw|pwd|auth|cred|session|jwt|code)[^=&;#\s]*=)[^&;#\s\"']+",
    re.IGNORECASE,
)


def redacted(url: str) -> str:
    """An address without what may be secret: user name and password, the values of its query, its fragment.

    Args:
        url: Address, or other text, which is returned as it is.
    """
    if "://" not in url:
        return url
    scheme, _, rest = url.partition("://")
    rest, _, _ = rest.partition("#")
    rest, has_query, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    host = authority.rpartition("@")[2]
    # A part without a name may be a token itself.
    names = [f"{part.partition('=')[0]}=..." if "=" in part else "..." for part in query.split("&") if part]
    return f"{scheme}://{host}{slash}{path}{has_query}{'&'.join(names)}"


def scrubbed(text: str) -> str:
    """A message of a library without user names, passwords and queries of the addresses in it."""
    text = re.sub(r"(?<=//)[^/\s@]+@", "", text)
    return re.sub(r"\?[^\s)'\"]+", "?...", text)


def has_secrets(url: str) -> bool:
    """True if an address has parts that `redacted` hides."""
    return redacted(url) != url


def without_secrets(text: str) -> str:
    """A text in which no address carries a user name, a password, or a query value that looks like a secret.

    `https://me:pw@host/a.pkl?token=x&v=2` becomes `https://***@host/a.pkl?token=***&v=2`.
    """
    if "://" not in text:
        return text
    return _SECRET.sub(rf"\g<key>{HIDDEN}", _USER.sub(rf"\g<scheme>{HIDDEN}@", text))
