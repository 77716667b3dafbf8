"""Downloads behind `util.open_url`: files from the internet, kept in the cache directory."""

from __future__ import annotations

import hashlib
import io
import os
import re
import time
import uuid
from pathlib import Path
from typing import IO, Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

import requests

TIMEOUT_SECONDS = (10, 60)  # to connect, and to wait for the next bytes


def is_url(obj: Any, allow_file_urls: bool = False) -> bool:
    """True if `obj` is the text of an http(s) address, or with `allow_file_urls` of a file:// address."""
    if not isinstance(obj, str):
        return False
    try:
        parts = urlsplit(obj)
    except ValueError:
        return False
    if parts.scheme == "file":
        return allow_file_urls and bool(parts.path)
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def open_url(
    url: str, cache_dir: Path, num_attempts: int, verbose: bool, return_filename: bool, cache: bool
) -> IO[bytes] | str:
    """See `util.open_url`."""
    if not re.match(r"[a-z][a-z0-9+.-]+://", url, flags=re.IGNORECASE):
        return url if return_filename else open(url, "rb")
    if url.lower().startswith("file://"):
        path = url2pathname(urlsplit(url).path)
        return path if return_filename else open(path, "rb")
    if not is_url(url):
        raise ValueError(f"{url!r} is neither a path nor an http, https or file address")
    if return_filename and not cache:
        raise ValueError("return_filename needs the cache, since the file's name is its name there")
    key = hashlib.md5(url.encode(), usedforsecurity=False).hexdigest()
    found = sorted(cache_dir.glob(f"{key}_*")) if cache else []
    if found:
        return str(found[0]) if return_filename else open(found[0], "rb")
    content, name = _download(url, num_attempts, verbose)
    if not cache:
        return io.BytesIO(content)
    cache_dir.mkdir(parents=True, exist_ok=True)
    path = str(cache_dir / f"{key}_{re.sub(r'[^0-9a-zA-Z._-]', '_', name)[:128]}")
    # Another process must never see half of a file under the name that it looks for.
    temporary = cache_dir / f"tmp_{uuid.uuid4().hex}"
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    return path if return_filename else open(path, "rb")


def _download(url: str, num_attempts: int, verbose: bool) -> tuple[bytes, str]:
    """The file behind an address, and its name."""
    for attempt in range(1, num_attempts + 1):
        try:
            if verbose and attempt == 1:
                print(f"Downloading {url}", flush=True)
            with requests.get(url, timeout=TIMEOUT_SECONDS) as response:
                response.raise_for_status()
                if response.headers.get("Content-Type", "").lower().startswith("text/html"):
                    raise OSError("the server sent a web page instead of a file")
                named = re.search(r'filename="([^"]+)"', response.headers.get("Content-Disposition", ""))
                return response.content, named[1] if named else unquote(urlsplit(url).path.rpartition("/")[2])
        except (requests.RequestException, OSError) as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            hopeless = status is not None and 400 <= status < 500 and status not in (408, 425, 429)
            if attempt == num_attempts or hopeless:
                raise OSError(f"cannot download {url}: {error}") from error
            time.sleep(min(2 ** (attempt - 1), 10) / 2)
    raise ValueError("num_attempts has to be at least 1")
