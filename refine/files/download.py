"""Files from the internet, fetched once into the cache directory that NVIDIA's own tools use as well.

A finished file is called `<md5 of the URL>_<name>` and found again by that beginning, as those tools do. Unfinished
files must not begin so, or those tools would take half a file for a whole one: `refine_<md5>.part` holds the bytes so
far, `.version` beside it the server's tag of that file (without which a download cannot be continued), and `.lock`
keeps other processes away.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout
from tqdm import tqdm

from refine.errors import UserError
from refine.files.digest import file_sha256

if TYPE_CHECKING:
    import requests  # takes a while to import, which a start without a download should not pay for

CHUNK_BYTES = 1 << 13  # urllib3 loses an unfinished chunk when the connection breaks off
CONNECT_AND_READ_TIMEOUT_SECONDS = (10, 60)
MAX_FRUITLESS_TRIES = 4
FIRST_PAUSE_SECONDS = 1.0  # doubles after each try that brought nothing

logger = logging.getLogger("refine")


class _TransientError(Exception):
    """The connection or the server failed in a way that may pass."""


def cache_directory() -> Path:
    """Where downloads are kept: `downloads` under $DNNLIB_CACHE_DIR, else under `.cache/dnnlib` in the home folder."""
    home = os.environ.get("HOME") or os.path.expanduser("~")
    return Path(os.environ.get("DNNLIB_CACHE_DIR") or Path(home, ".cache", "dnnlib"), "downloads")


def cached(url: str) -> Path | None:
    """The finished file of `url` in the cache directory, whichever tool put it there; None if there is none."""
    return min(cache_directory().glob(f"{_key(url)}_*"), default=None)


def place_by_hand(url: str) -> Path:
    """The path under which a file that was fetched in some other way is found as the download of `url`."""
    return cache_directory() / f"{_key(url)}_{_safe_name(_url_name(url))}"


def fetch(url: str, *, size: int | None = None, sha256: str | None = None) -> Path:
    """Path of the file behind `url`: from the cache, else downloaded.

    Of several processes that want the same file one downloads it and the others wait for it.

    Args:
        url: http or https; redirects are followed.
        size: Expected length in bytes, None if unknown.
        sha256: Expected digest in hexadecimal, None if unknown. It is checked on cached files too.

    Raises:
        UserError: Not an http(s) URL, not reachable, not a binary file, not the expected file, or the cache directory
            cannot be written. A partial download stays for the next call, except where its content was wrong.
    """
    if not _is_http(url):
        raise UserError(f"{url!r} is not a web address that Refine can fetch: it must begin with http:// or https://.")
    try:
        found = cached(url)
        if not found:
            cache_directory().mkdir(parents=True, exist_ok=True)
            with _lock(url):
                return cached(url) or _download(url, size, sha256)
        if defect := _defect(found, size, sha256):
            found.unlink()
            raise _removed(url, defect)
        return found
    except OSError as error:
        raise UserError(
            f"Cannot use the cache directory {cache_directory()} ({error.strerror or error}): set DNNLIB_CACHE_DIR to "
            f"a folder with room that you may write to, or download {url} by hand and give its path."
        ) from error


def _lock(url: str) -> AbstractContextManager[object]:
    lock = FileLock(cache_directory() / f"refine_{_key(url)}.lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        logger.info(f"Waiting for another process that is downloading {url}")
        return lock.acquire()


def _is_http(url: str) -> bool:
    try:
        parts = urlsplit(url)
    except ValueError:  # for example an unclosed bracket in the host
        return False
    return parts.scheme in ("http", "https") and bool(parts.hostname)


def _key(url: str) -> str:
    return hashlib.md5(url.encode(), usedforsecurity=False).hexdigest()


def _url_name(url: str) -> str:
    return unquote(urlsplit(url).path.rpartition("/")[2]) or "download"


def _safe_name(name: str) -> str:
    return re.sub(r"[^0-9a-zA-Z\-._]", "_", name)[:128]


def _cannot_download(url: str, why: str) -> UserError:
    return UserError(
        f"Cannot download {url} ({why}): check the address and the connection, or save the file by hand as "
        f"{place_by_hand(url)}."
    )


def _removed(url: str, defect: str) -> UserError:
    return UserError(f"The file downloaded from {url} was removed because {defect}: run again to download it anew.")


@dataclass(frozen=True)
class _Part:
    """An unfinished download."""

    path: Path

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def _version_path(self) -> Path:
        return self.path.with_suffix(".version")

    @property
    def version(self) -> str | None:
        """The ETag or date by which the server knows the file that the bytes so far belong to."""
        return self._version_path.read_text("latin-1").strip() or None if self._version_path.exists() else None

    def begin(self, version: str | None) -> None:
        self.discard()
        self._version_path.write_text(version or "", "latin-1")

    def discard(self) -> None:
        # The bytes first: a version must never be that of other bytes.
        self.path.unlink(missing_ok=True)
        self._version_path.unlink(missing_ok=True)


def _download(url: str, size: int | None, sha256: str | None) -> Path:
    import requests
    import urllib3

    part = _Part(cache_directory() / f"refine_{_key(url)}.part")
    most_bytes, fruitless = part.size, 0
    while True:
        try:
            name = _receive(url, part, size)
            break
        except _TransientError as error:
            fruitless = 0 if part.size > most_bytes else fruitless + 1
            most_bytes = max(most_bytes, part.size)
            if fruitless == MAX_FRUITLESS_TRIES:
                raise _cannot_download(url, str(error)) from error
            pause = FIRST_PAUSE_SECONDS * 2 ** max(fruitless - 1, 0)
            logger.info(f"Download interrupted ({error}); trying again in {pause:g} s")
            time.sleep(pause)
        # urllib3 lets through a few complaints about host names that requests does not know.
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise _cannot_download(url, " ".join(str(error).split()).rstrip(".")) from error
    if defect := _defect(part.path, size, sha256):
        part.discard()
        raise _removed(url, defect)
    target = cache_directory() / f"{_key(url)}_{_safe_name(name)}"
    os.replace(part.path, target)
    part.discard()
    if not _on_terminal():
        logger.info(f"Downloaded {target}")
    return target


def _receive(url: str, part: _Part, size: int | None) -> str:
    """One request for what is still missing; the server's name for the file once everything is there."""
    import requests

    # Compressed on the way, lengths and ranges would count other bytes than those of the file.
    headers = {"Accept-Encoding": "identity"}
    if part.size and part.version:
        headers |= {"Range": f"bytes={part.size}-", "If-Range": part.version}
    try:
        with requests.get(url, headers=headers, stream=True, timeout=CONNECT_AND_READ_TIMEOUT_SECONDS) as response:
            if response.status_code == 416 or (response.status_code == 206 and not _continues(part, response)):
                part.discard()
                raise _TransientError("the server has another version of the file by now")
            _refuse_unusable(url, response)
            if response.status_code == 200:
                part.begin(_version(response.headers))
            total = _total_bytes(response, part.size)
            if size is not None and total not in (None, size):
                part.discard()
                raise _cannot_download(url, f"the server offers {total} bytes instead of the {size} expected")
            _save(url, response, part, total)
            name = re.search(r'filename="([^"]+)"', response.headers.get("Content-Disposition", ""))
            return name[1] if name else _url_name(url)
    except requests.Timeout as error:
        raise _TransientError("the server did not answer in time") from error
    except requests.exceptions.SSLError as error:
        raise _TransientError("the server's certificate could not be verified") from error
    except requests.exceptions.ProxyError as error:
        raise _TransientError("the proxy did not answer") from error
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
        raise _TransientError(f"no connection to {urlsplit(url).hostname}, or it broke off") from error


def _refuse_unusable(url: str, response: requests.Response) -> None:
    status = f"HTTP {response.status_code} {response.reason or ''}".strip()
    if response.status_code in (408, 425, 429) or response.status_code >= 500:
        raise _TransientError(f"the server answered {status}")
    if response.status_code not in (200, 206):
        raise _cannot_download(url, f"the server answered {status}")
    if response.headers.get("Content-Type", "").lower().startswith("text/html"):
        raise _cannot_download(url, "the server sent a web page instead of a file")
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise _cannot_download(url, "the server insists on compressing the file")


def _version(headers: Mapping[str, str]) -> str | None:
    """What may stand in If-Range: a strong ETag, else the date of the last change."""
    etag = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def _continues(part: _Part, response: requests.Response) -> bool:
    """Whether a partial answer begins where `part` ends. Some servers ignore If-Range: the version is compared too."""
    begins = response.headers.get("Content-Range", "").startswith(f"bytes {part.size}-")
    return part.size > 0 and begins and _version(response.headers) in (None, part.version)


def _total_bytes(response: requests.Response, offset: int) -> int | None:
    length = response.headers.get("Content-Length", "")
    return offset + int(length) if length.isdecimal() else None


def _on_terminal() -> bool:
    return sys.stderr is not None and sys.stderr.isatty()


def _save(url: str, response: requests.Response, part: _Part, total: int | None) -> None:
    if not _on_terminal():
        amount = f", {total / 1e6:.1f} MB" if total is not None else ""
        logger.info(f"{'Continuing' if part.size else 'Downloading'} {url}{amount}")
    bar = tqdm(
        desc=_url_name(url),
        total=total,
        initial=part.size,
        unit="B",
        unit_scale=True,
        disable=not _on_terminal(),
    )
    with bar, open(part.path, "ab") as file:
        for chunk in response.iter_content(CHUNK_BYTES):
            file.write(chunk)
            bar.update(len(chunk))
        file.flush()
        os.fsync(file.fileno())
    if total is not None and part.size < total:
        raise _TransientError(f"only {part.size} of {total} bytes arrived")


def _defect(path: Path, size: int | None, sha256: str | None) -> str | None:
    """What distinguishes the file at `path` from the expected one; None if nothing does."""
    if size is not None and path.stat().st_size != size:
        return f"it has {path.stat().st_size} bytes instead of {size}"
    if sha256 is not None and (digest := file_sha256(path)) != sha256:
        return f"its sha256 is {digest} instead of {sha256}"
    return None
