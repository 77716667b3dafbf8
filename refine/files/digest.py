"""SHA-256 digests of files and text."""

from __future__ import annotations

import hashlib
from pathlib import Path

CHUNK_BYTES = 1 << 20


def file_sha256(path: str | Path) -> str:
    """SHA-256 of a file's content, hexadecimal.

    Raises:
        OSError: The file cannot be read.
    """
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def text_sha256(text: str) -> str:
    """SHA-256 of text in UTF-8, hexadecimal. Lone surrogates, as in undecodable file names, are allowed."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
