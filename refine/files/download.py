"""Downloads into the cache directory that NVIDIA's own tools use as well.

A finished file is called `<md5 of the URL>_<name>` and found again by that beginning, as those tools do. Unfinished
files must not begin so, or those tools would take half a file for a whole one: `refine_<md5>.part` holds the bytes so
far, `.version` beside it the server's tag of that file (without which a download cannot be continued), and `.lock`
keeps other processes away. A file is looked into before it gets its name, and again whenever it is found there.

Addresses may hold a user name, a password or a token: they are sent to the server, and shown to nobody.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import socket
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from filelock import FileLock, Timeout
from tqdm import tqdm

from refine.errors import UserError
from refine.files.addresses import scrubbed, without_secrets
from refine.files.digest import file_sha256

if TYPE_CHECKING:
    import requests  # takes a while to import, which a start without a download should not pay for

CHUNK_BYTES = 1 << 13  # urllib3 loses an unfinished chunk when the connection breaks off
CONNECT_AND_READ_TIMEOUT_SECONDS = (10, 60)
MAX_FRUITLESS_TRIES = 4
BACKOFF_SECONDS = 0.5  # urllib3's backoff factor: pauses of 0, 1, 2 s after tries that brought nothing
MAX_PAUSE_SECONDS = 120  # that a server may ask for by Retry-After

logger = logging.getLogger("refine")

Check = Callable[[Path, str], "str | None"]
"""A look into a file: (path, its name at the server) -> the end of a sentence that begins with the file, if it is not
the one that was meant; None if it is."""


class DownloadError(UserError):
    """A file cannot be downloaded.

    Attributes:
        url: Address without secrets.
        why: Cause.
        place: Path under which a file that is fetched in another way is found.
    """

    def __init__(self, url: str, why: str, note: str = "") -> None:
        self.url, self.why, self.place = without_secrets(url), scrubbed(why), place_by_hand(url)
        super().__init__(
            f"Cannot download {self.url} ({self.why}): check the address and the connection, or save the file by hand "
            f"as {self.place}.{note}"
        )


class _TransientError(Exception):
    """The connection or the server failed in a way that may pass.

    Args:
        why: Cause.
        retry_after: The server's header of that name, if it sent one.
    """

    def __init__(self, why: str, retry_after: str | None = None) -> None:
        super().__init__(why)
        self.retry_after = retry_after


def cache_directory() -> Path:
    """Folder of downloads: `downloads` under $DNNLIB_CACHE_DIR, else under `.cache/dnnlib` in the home folder."""
    home = os.environ.get("HOME") or os.path.expanduser("~")
    chosen = os.environ.get("DNNLIB_CACHE_DIR")
    # A job script or a .env file expands no tilde.
    return Path(os.path.expanduser(chosen) if chosen else Path(home, ".cache", "dnnlib"), "downloads")


def cached(url: str) -> Path | None:
    """The finished file of `url` in the cache directory, whichever tool put it there; None if there is none."""
    return min(cache_directory().glob(f"{_key(url)}_*"), default=None)


def place_by_hand(url: str) -> Path:
    """The path under which a file that was fetched in some other way is found as the download of `url`."""
    return cache_directory() / f"{_key(url)}_{_safe_name(_url_name(url))}"


def fetch(url: str, *, size: int | None = None, sha256: str | None = None, check: Check | None = None) -> Path:
    """Path of the file behind `url`: from the cache, else downloaded.

    Of several processes that want the same file one downloads it and the others wait for it. A file in the cache that
    is not the expected one is named and replaced.

    Args:
        url: Address, http or https; redirects are followed.
        size: Expected length in bytes, None if unknown.
        sha256: Expected digest in hexadecimal, None if unknown.
        check: A look into the file, beyond size and digest.

    Raises:
        DownloadError: Not reachable, or the server sends something other than a file.
        UserError: Not an http(s) URL, not the expected file, or the cache directory cannot be written. A partial
            download stays for the next call, except if its content was wrong.
    """
    if not _is_http(url):
        raise UserError(
            f"{without_secrets(url)!r} is not a web address that Refine can fetch: it must begin with http:// or https://."
        )
    expected = _Expected(size, sha256, check)
    try:
        found = cached(url)
        if found and not expected.defect(found, found.name.partition("_")[2]):
            return found
        cache_directory().mkdir(parents=True, exist_ok=True)
        with _lock(url):
            return _under_lock(url, expected)
    except OSError as error:
        raise UserError(
            f"Cannot use the cache directory {cache_directory()} ({error.strerror or error}): set DNNLIB_CACHE_DIR to "
            f"a folder with room that you may write to, or download {without_secrets(url)} by hand and give its path."
        ) from None


@dataclass(frozen=True)
class _Expected:
    """Properties of the file that is wanted; None is unknown."""

    size: int | None
    sha256: str | None
    check: Check | None

    def defect(self, path: Path, name: str) -> str | None:
        """The end of a sentence that begins with a file, if it is not the wanted one; None if it may be."""
        size = path.stat().st_size
        if size == 0:
            return "is empty"
        if self.size is not None and size != self.size:
            return f"has {size} bytes instead of {self.size}"
        if self.sha256 is not None and (digest := file_sha256(path)) != self.sha256:
            return f"has the sha256 {digest} instead of {self.sha256}"
        return self.check(path, name) if self.check else None


def _under_lock(url: str, expected: _Expected) -> Path:
    found = cached(url)
    defect = expected.defect(found, found.name.partition("_")[2]) if found else None
    if found and not defect:  # another process was faster
        return found
    if not found:
        return _download(url, expected)
    logger.warning(f"The file {found} in the cache {_first_part(defect)}: downloading it again")
    try:
        path = _download(url, expected)
    except DownloadError as error:
        note = f" The file {found} in the cache {_first_part(defect)}: remove it."
        raise DownloadError(url, error.why, note) from None
    if path != found:
        found.unlink(missing_ok=True)
    return path


def _first_part(defect: str | None) -> str:
    """A defect without its remedy, which is about files that are not downloaded."""
    return re.split(r"[:;] (?:download|open|get|run)", str(defect))[0]


def _lock(url: str) -> AbstractContextManager[object]:
    lock = FileLock(cache_directory() / f"refine_{_key(url)}.lock")
    try:
        return lock.acquire(timeout=0)
    except Timeout:
        logger.info(f"Waiting for another process that is downloading {without_secrets(url)}")
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


def _download(url: str, expected: _Expected) -> Path:
    import requests
    import urllib3

    part = _Part(cache_directory() / f"refine_{_key(url)}.part")
    most_bytes, tries = part.size, _new_tries()
    while True:
        try:
            name = _receive(url, part, expected.size)
            break
        except _TransientError as error:
            if part.size > most_bytes:
                most_bytes, tries = part.size, _new_tries()
            pause, tries = _pause(url, tries, error)
            logger.info(f"Download failed ({error}); trying again" + (f" in {pause:g} s" if pause else ""))
            time.sleep(pause)
        # urllib3 lets through a few complaints about host names that requests does not know.
        except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
            raise DownloadError(url, " ".join(str(error).split()).rstrip(".")) from None
    if defect := expected.defect(part.path, _safe_name(name)):
        part.discard()
        raise UserError(
            f"The file from {without_secrets(url)} was removed because it {_first_part(defect)}: run again to get "
            "another copy, or check the address."
        )
    target = cache_directory() / f"{_key(url)}_{_safe_name(name)}"
    os.replace(part.path, target)
    part.discard()
    if not _on_terminal():
        logger.info(f"Downloaded {target}")
    return target


def _new_tries() -> Any:
    """Tries that are left, and the pauses between them."""
    from urllib3.util import Retry

    return Retry(total=MAX_FRUITLESS_TRIES - 1, backoff_factor=BACKOFF_SECONDS)


def _pause(url: str, tries: Any, error: _TransientError) -> tuple[float, Any]:
    """Seconds to wait after a failed try, and the tries that are left.

    Raises:
        DownloadError: None is left, or the server asks for a longer pause than anybody waits.
    """
    from urllib3.exceptions import InvalidHeader, MaxRetryError, ProtocolError

    try:
        tries = tries.increment("GET", without_secrets(url), error=ProtocolError(str(error)))
    except MaxRetryError:
        raise DownloadError(url, str(error)) from None
    asked = 0.0
    if error.retry_after is not None:
        with suppress(InvalidHeader, ValueError, OverflowError):
            asked = tries.parse_retry_after(error.retry_after)
    if asked > MAX_PAUSE_SECONDS:
        raise DownloadError(url, f"{error}, and asks to come again in {asked:.0f} s") from None
    return max(asked, tries.get_backoff_time()), tries


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
                raise DownloadError(url, f"the server offers {total} bytes instead of the {size} expected")
            _save(url, response, part, total)
            name = re.search(r'filename="([^"]+)"', response.headers.get("Content-Disposition", ""))
            return name[1] if name else _url_name(url)
    except requests.Timeout:
        raise _TransientError("the server did not answer in time") from None
    except requests.exceptions.SSLError:
        raise _TransientError("the server's certificate could not be verified") from None
    except requests.exceptions.ProxyError as error:
        if _is_unresolved(error):
            raise DownloadError(url, "the name of the proxy does not resolve") from None
        raise _TransientError("the proxy did not answer") from None
    except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError) as error:
        host = urlsplit(url).hostname
        if _is_unresolved(error):
            raise DownloadError(url, f"the name {host} does not resolve: is this machine offline?") from None
        raise _TransientError(f"no connection to {host}, or it broke off") from None


def _is_unresolved(error: BaseException) -> bool:
    """True if an error came from looking up a host name, which another try will not change."""
    seen: list[BaseException] = []
    waiting: list[Any] = [error]
    while waiting:
        one = waiting.pop()
        if isinstance(one, socket.gaierror) or type(one).__name__ == "NameResolutionError":
            return True
        if isinstance(one, BaseException) and one not in seen:
            seen.append(one)
            waiting += [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]
    return False


def _refuse_unusable(url: str, response: requests.Response) -> None:
    status = f"HTTP {response.status_code} {response.reason or ''}".strip()
    if response.status_code in (408, 425, 429) or response.status_code >= 500:
        raise _TransientError(f"the server answered {status}", response.headers.get("Retry-After"))
    if response.status_code not in (200, 206):
        raise DownloadError(url, f"the server answered {status}")
    kind = response.headers.get("Content-Type", "").lower()
    if kind.startswith("text/html"):
        raise DownloadError(url, "the server sent a web page instead of a file")
    if kind.startswith(("application/json", "text/json", "application/problem+json")):
        raise DownloadError(url, "the server sent a message instead of a file")
    if response.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise DownloadError(url, "the server insists on compressing the file")


def _version(headers: Mapping[str, str]) -> str | None:
    """The value of If-Range: a strong ETag, else the date of the last change."""
    etag = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")


def _continues(part: _Part, response: requests.Response) -> bool:
    """True if a partial answer begins where `part` ends. Some servers ignore If-Range: the version is compared too."""
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
        logger.info(f"{'Continuing' if part.size else 'Downloading'} {without_secrets(url)}{amount}")
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
