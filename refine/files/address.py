"""Addresses without what must not be passed on: User names, passwords, tokens and signatures."""

from __future__ import annotations

import re

HIDDEN = "***"
_USER = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*://)[^/?#\s]*@")
_SECRET = re.compile(
    r"(?P<key>[?&;#][^=&;#\s]*(?:token|key|secret|sig|passw|pwd|auth|cred|session|jwt|code)[^=&;#\s]*=)[^&;#\s\"']+",
    re.IGNORECASE,
)


def without_secrets(text: str) -> str:
    """A text in which no address carries a user name, a password, or a query value that looks like a secret.

    `https://me:pw@host/a.pkl?token=x&v=2` becomes `https://***@host/a.pkl?token=***&v=2`.
    """
    if "://" not in text:
        return text
    return _SECRET.sub(rf"\g<key>{HIDDEN}", _USER.sub(rf"\g<scheme>{HIDDEN}@", text))
