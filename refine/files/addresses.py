"""Addresses without what must not be passed on: user names, passwords, tokens and signatures."""

from __future__ import annotations

import re

HIDDEN = "***"

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s\"'<>]+")
_QUERY = re.compile(r"\?[^\s\"'<>)]+")

# Parts of a query that say which file is meant. The value of any other part may be a secret under any name.
_HARMLESS = re.compile(
    r"(?:id|v|version|ver|dl|download|export|confirm|raw|inline|file|filename|name|path|ref|rev|revision|format|type)"
    r"(?:=[^&;]*)?",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """A text in which no address carries a user name, a password, or a query value that may be a secret.

    `https://me:pw@host/a.pkl?token=x&v=2` becomes `https://***@host/a.pkl?token=***&v=2`.

    Args:
        text: An address, or a text that may contain some.
    """
    return _ADDRESS.sub(lambda found: _hidden(found[0]), text) if "://" in text else text


def scrubbed(message: str) -> str:
    """A library's message without secrets, which may name the path and query of an address only."""
    return _QUERY.sub(lambda found: "?" + _hidden_query(found[0][1:]), without_secrets(message))


def has_secrets(address: str) -> bool:
    """True if an address has parts that `without_secrets` hides."""
    return without_secrets(address) != address


def _hidden(address: str) -> str:
    scheme, _, rest = address.partition("://")
    rest, has_fragment, fragment = rest.partition("#")
    rest, has_query, query = rest.partition("?")
    authority, slash, path = rest.partition("/")
    user, at, host = authority.rpartition("@")
    shown = f"{scheme}://{HIDDEN if user else ''}{at}{host}{slash}{path}"
    return f"{shown}{has_query}{_hidden_query(query)}{has_fragment}{_hidden_query(fragment)}"


def _hidden_query(query: str) -> str:
    return re.sub(r"[^&;]+", lambda part: part[0] if _HARMLESS.fullmatch(part[0]) else _hidden_part(part[0]), query)


def _hidden_part(part: str) -> str:
    name, equals, _ = part.partition("=")
    return f"{name}={HIDDEN}" if equals else HIDDEN  # a part without a name may be a token itself
