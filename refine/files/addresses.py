"""Web addresses without the secrets in them: user name, password, tokens."""

from __future__ import annotations

import re


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
