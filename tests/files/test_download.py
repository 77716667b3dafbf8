"""Downloads against a real HTTP server on this machine, which can misbehave in all the ways that servers do."""

from __future__ import annotations

import base64
import email.utils
import errno
import hashlib
import http.server
import io
import os
import pickle
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests

import refine
from refine.errors import UserError
from refine.files import download

# A pickle of half a million bytes, since downloads called .pkl are looked into.
CONTENT = pickle.dumps(bytes(i * i % 251 for i in range(500_000 - 9)), protocol=4)
SHA256 = hashlib.sha256(CONTENT).hexdigest()
HALF = 200_000


@dataclass
class Answer:
    """An answer of the server to one request; the defaults are those of a server that does everything right."""

    content: bytes = CONTENT
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    etag: str | None = '"v1"'
    ranges: bool = True
    heeds_if_range: bool = True
    cut_after: int | None = None  # bytes of this answer's body, then the connection breaks off
    claimed_length: int | None = None
    no_length: bool = False
    pause_after: int | None = None  # bytes of this answer's body, then it waits for `Server.go_on`


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answers: list[Answer] = []  # the last one repeats
        self.requests: list[dict[str, str]] = []
        self.sent: list[int] = []
        self.go_on = threading.Event()

    def url(self, name: str = "net.pkl") -> str:
        return f"http://127.0.0.1:{self.server_port}/{name}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.server.requests.append(dict(self.headers))
        number = len(self.server.requests) - 1
        answer = self.server.answers[min(number, len(self.server.answers) - 1)]
        status, first, headers = answer.status, 0, dict(answer.headers)
        wanted = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") in (None, answer.etag, headers.get("Last-Modified"))
        if wanted and status == 200 and answer.ranges and (same or not answer.heeds_if_range):
            first = int(wanted[1])
            status = 206 if first < len(answer.content) else 416
            headers.setdefault("Content-Range", f"bytes {first}-{len(answer.content) - 1}/{len(answer.content)}")
        body = answer.content[first:] if status != 416 else b""
        if answer.etag:
            headers["ETag"] = answer.etag
        if not answer.no_length:
            headers["Content-Length"] = str(len(body) if answer.claimed_length is None else answer.claimed_length)
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        end = len(body) if answer.cut_after is None else answer.cut_after
        pause = end if answer.pause_after is None else answer.pause_after
        self.server.sent.append(end)
        try:
            self.wfile.write(body[:pause])
            self.wfile.flush()
            if answer.pause_after is not None:
                self.server.go_on.wait()
            self.wfile.write(body[pause:end])
        except OSError:  # the client went away
            pass


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield server
    server.go_on.set()
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 0.001)
    return tmp_path / "cache" / "downloads"


def md5(url: str) -> str:
    return hashlib.md5(url.encode()).hexdigest()


def finished(cache: Path) -> list[Path]:
    """Names that NVIDIA's tools would take for downloaded files."""
    return [path for path in cache.glob("*_*") if re.match("[0-9a-f]{32}_", path.name)]


def range_start(request: dict[str, str]) -> int:
    match = re.fullmatch(r"bytes=(\d+)-", request["Range"])
    assert match
    return int(match[1])


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("waited in vain")


def start(program: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *program.split(), *arguments],
        cwd=Path(refine.__file__).parents[1],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Shells start background jobs with Ctrl-C ignored, and children inherit that.
        preexec_fn=None if sys.platform == "win32" else lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def read_stderr_until(process: subprocess.Popen[str], text: str) -> None:
    assert process.stderr
    end = threading.Timer(60, process.kill)
    end.start()
    try:
        assert any(text in line for line in process.stderr), f"{text!r} never came"
    finally:
        end.cancel()


# -- The cache directory ------------------------------------------------------------------------------------------


def test_file_is_stored_where_nvidias_tools_look(server: Server, cache: Path):
    server.answers = [Answer()]
    url = server.url("some/folder/my%20net.pkl?x=1")
    path = download.fetch(url, size=len(CONTENT), sha256=SHA256)
    assert path == cache / f"{md5(url)}_my_net.pkl"
    assert path.read_bytes() == CONTENT
    assert finished(cache) == [path]
    assert not list(cache.glob("*.part")) + list(cache.glob("*.version"))


def test_a_second_call_asks_nobody(server: Server):
    server.answers = [Answer()]
    path = download.fetch(server.url())
    assert download.fetch(server.url()) == path == download.cached(server.url())
    assert len(server.requests) == 1


def test_file_of_another_tool_is_found_under_any_name(cache: Path):
    url = "http://127.0.0.1:1/net.pkl"
    cache.mkdir(parents=True)
    assert download.cached(url) is None
    (cache / f"{md5(url)}_http___127.0.0.1_1_net.pkl").write_bytes(b"theirs")
    assert download.fetch(url).read_bytes() == b"theirs"


def test_name_is_taken_from_content_disposition(server: Server, cache: Path):
    server.answers = [Answer(headers={"Content-Disposition": 'attachment; filename="../a b.pkl"'})]
    url = server.url("download?id=7")
    assert download.fetch(url) == cache / f"{md5(url)}_.._a_b.pkl"


def test_default_cache_is_in_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("DNNLIB_CACHE_DIR")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert download.cache_directory() == tmp_path / ".cache" / "dnnlib" / "downloads"


def test_redirects_are_followed_and_the_first_url_counts(server: Server, cache: Path):
    server.answers = [Answer(status=302, headers={"Location": server.url("elsewhere.pkl")}), Answer()]
    path = download.fetch(server.url())
    assert path == cache / f"{md5(server.url())}_net.pkl"
    assert path.read_bytes() == CONTENT


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/x"])
def test_redirects_to_other_schemes_are_not(server: Server, cache: Path, location: str):
    server.answers = [Answer(status=302, headers={"Location": location})]
    with pytest.raises(UserError, match="Cannot download"):
        download.fetch(server.url())
    assert not finished(cache)


def test_endless_redirects_end(server: Server):
    server.answers = [Answer(status=302, headers={"Location": server.url()})]
    with pytest.raises(UserError, match="redirects"):
        download.fetch(server.url())


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://host/x", "http://", "https:///x", "http://[::1/x", "x.pkl"]
)
def test_only_http_addresses(url: str, cache: Path):
    with pytest.raises(UserError, match=re.escape(f"{url!r} is not a web address")):
        download.fetch(url)
    assert not cache.exists()


@pytest.mark.parametrize("host", [".a.b", "a" * 70 + ".com"])
def test_impossible_host_names(host: str):
    with pytest.raises(UserError, match="Cannot download"):
        download.fetch(f"http://{host}/x.pkl")


# -- Breaks -------------------------------------------------------------------------------------------------------


def test_continued_after_a_break(server: Server):
    server.answers = [Answer(cut_after=HALF), Answer()]
    assert download.fetch(server.url(), sha256=SHA256).read_bytes() == CONTENT
    first, second = server.requests
    assert "Range" not in first
    kept = range_start(second)
    assert HALF - download.CHUNK_BYTES < kept <= HALF
    assert second["If-Range"] == '"v1"'
    assert server.sent[1] == len(CONTENT) - kept


def test_continued_by_date_where_the_etag_is_weak(server: Server):
    date = "Wed, 21 Oct 2015 07:28:00 GMT"
    server.answers = [Answer(cut_after=HALF, etag='W/"v1"', headers={"Last-Modified": date})]
    server.answers += [Answer(etag='W/"v2"', headers={"Last-Modified": date})]
    assert download.fetch(server.url()).read_bytes() == CONTENT
    assert server.requests[1]["If-Range"] == date
    assert server.sent[1] == len(CONTENT) - range_start(server.requests[1])


def test_many_breaks_are_survived_as_long_as_bytes_arrive(server: Server):
    server.answers = [Answer(cut_after=50_000)]
    assert download.fetch(server.url()).read_bytes() == CONTENT
    assert len(server.requests) > 2 * download.MAX_FRUITLESS_TRIES
    starts = [range_start(request) for request in server.requests[1:]]
    assert starts == sorted(set(starts))


def changed(size: int = len(CONTENT), **how: bool) -> Answer:
    return Answer(content=CONTENT[::-1][:size], etag='"v2"', **how)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("second", "requests"),
    [
        pytest.param(changed(), 2, id="changed"),
        pytest.param(changed(heeds_if_range=False), 3, id="changed, and If-Range ignored"),
        pytest.param(changed(ranges=False), 2, id="no ranges"),
        pytest.param(changed(1000, heeds_if_range=False), 3, id="shorter than the part"),
        pytest.param(Answer(headers={"Content-Range": "bytes 7-499999/500000"}), 3, id="wrong range"),
    ],
)
def test_started_again_where_continuing_would_mix_two_files(server: Server, second: Answer, requests: int):
    last = Answer(content=second.content, etag=second.etag)
    server.answers = [Answer(cut_after=HALF), second, last]
    assert download.fetch(server.url()).read_bytes() == second.content
    assert ["Range" in request for request in server.requests] == [False, True, False][:requests]


def test_a_partial_answer_that_nobody_asked_for(server: Server, cache: Path):
    headers = {"Content-Range": f"bytes 0-9/{len(CONTENT)}"}
    server.answers = [Answer(status=206, content=CONTENT[:10], headers=headers, etag=None)]
    with pytest.raises(UserError, match="another version of the file"):
        download.fetch(server.url())
    assert not finished(cache)


def test_a_file_that_changes_all_the_time_is_given_up(server: Server):
    server.answers = [Answer(cut_after=HALF), changed(heeds_if_range=False)] * 20
    with pytest.raises(UserError, match=r"another version|broke off"):
        download.fetch(server.url())


def test_a_short_answer_is_noticed_where_urllib3_does_not(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch):
    # Before version 2 it takes the end of the connection for the end of the file.
    monkeypatch.setattr(requests.Response, "iter_content", lambda *_: iter([b"12345"]))
    server.answers = [Answer(ranges=False)]
    with pytest.raises(UserError, match=f"only 5 of {len(CONTENT)} bytes arrived"):
        download.fetch(server.url())
    assert not finished(cache)


def test_started_again_where_the_server_names_no_version(server: Server):
    server.answers = [Answer(cut_after=HALF, etag=None), Answer(etag=None)]
    assert download.fetch(server.url()).read_bytes() == CONTENT
    assert "Range" not in server.requests[1]


@pytest.mark.parametrize("cut_after", [0, HALF])
def test_a_server_that_always_breaks_off_is_given_up(server: Server, cache: Path, cut_after: int):
    server.answers = [Answer(cut_after=cut_after, ranges=False)]
    with pytest.raises(UserError, match=r"broke off|bytes arrived"):
        download.fetch(server.url())
    assert download.MAX_FRUITLESS_TRIES <= len(server.requests) <= download.MAX_FRUITLESS_TRIES + 1
    assert not finished(cache)


@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
def test_ctrl_c_leaves_the_part_for_the_next_call(server: Server, cache: Path):
    server.answers = [Answer(pause_after=HALF)]
    process = start("-m refine zoo --fetch", server.url())
    part = cache / f"refine_{md5(server.url())}.part"
    wait_until(lambda: part.exists() and part.stat().st_size > 0)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate()
    assert (process.returncode, out) == (130, "")
    assert err.splitlines()[-1] == "Interrupted."
    assert not finished(cache)
    kept = part.stat().st_size
    assert part.read_bytes() == CONTENT[:kept]

    server.answers = [Answer()]
    assert download.fetch(server.url(), sha256=SHA256).read_bytes() == CONTENT
    assert server.requests[1]["Range"] == f"bytes={kept}-"
    assert not part.exists()


# -- Errors -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403, 404, 410, 204])
def test_refusals_are_final(server: Server, cache: Path, status: int):
    server.answers = [Answer(status=status, content=b"")]
    with pytest.raises(UserError, match=f"the server answered HTTP {status}") as caught:
        download.fetch(server.url())
    assert server.url() in str(caught.value)
    assert str(cache / f"{md5(server.url())}_net.pkl") in str(caught.value)
    assert len(server.requests) == 1
    assert not finished(cache)


@pytest.mark.parametrize("status", [408, 429, 500, 503])
def test_troubled_servers_are_asked_again(server: Server, cache: Path, status: int):
    server.answers = [Answer(status=status), Answer(status=status), Answer()]
    assert download.fetch(server.url()).read_bytes() == CONTENT

    server.answers = [Answer(status=status)]
    del server.requests[:]
    with pytest.raises(UserError, match=f"HTTP {status}"):
        download.fetch(server.url("other.pkl"))
    assert len(server.requests) == download.MAX_FRUITLESS_TRIES
    assert len(finished(cache)) == 1


def test_pauses_between_tries_double(server: Server, monkeypatch: pytest.MonkeyPatch):
    pauses: list[float] = []
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    monkeypatch.setattr(download, "BACKOFF_SECONDS", 1.0)
    server.answers = [Answer(status=500)]
    with pytest.raises(UserError):
        download.fetch(server.url())
    assert pauses == [0, 2, 4]


def test_web_page_is_refused(server: Server, cache: Path):
    server.answers = [Answer(content=b"<!doctype html>", headers={"Content-Type": "text/HTML; charset=utf-8"})]
    with pytest.raises(UserError, match="a web page instead of a file"):
        download.fetch(server.url())
    assert not finished(cache)


def test_compressed_file_is_refused(server: Server, cache: Path):
    server.answers = [Answer(headers={"Content-Encoding": "gzip"})]
    with pytest.raises(UserError, match="compressing"):
        download.fetch(server.url())
    assert server.requests[0]["Accept-Encoding"] == "identity"
    assert not finished(cache)


def test_promised_bytes_that_never_come(server: Server, cache: Path):
    server.answers = [Answer(claimed_length=len(CONTENT) + 1, ranges=False)]
    with pytest.raises(UserError, match=r"broke off|bytes arrived"):
        download.fetch(server.url())
    assert not finished(cache)


def test_known_size_is_compared_before_the_download(server: Server, cache: Path):
    server.answers = [Answer()]
    with pytest.raises(UserError, match=f"offers {len(CONTENT)} bytes instead of the 7 expected"):
        download.fetch(server.url(), size=7)
    assert [path.suffix for path in cache.iterdir()] in ([], [".lock"])


def test_known_size_is_compared_where_the_server_tells_none(server: Server, cache: Path):
    server.answers = [Answer(no_length=True)]
    with pytest.raises(UserError, match=f"{len(CONTENT)} bytes instead of 7"):
        download.fetch(server.url(), size=7)
    assert not finished(cache) + list(cache.glob("*.part"))
    assert download.fetch(server.url(), size=len(CONTENT)).read_bytes() == CONTENT


def test_wrong_digest_removes_the_file(server: Server, cache: Path):
    server.answers = [Answer(content=CONTENT[:-1] + b"?"), Answer()]
    with pytest.raises(UserError, match="sha256 [0-9a-f]{64} instead of " + SHA256):
        download.fetch(server.url(), size=len(CONTENT), sha256=SHA256)
    assert not finished(cache) + list(cache.glob("*.part"))
    assert download.fetch(server.url(), sha256=SHA256).read_bytes() == CONTENT


@pytest.mark.parametrize("damaged", [b"", b"damaged", CONTENT[:-1] + b"?"], ids=["empty", "short", "changed"])
@pytest.mark.parametrize("name", ["net.pkl", "of_another_tool"])
def test_a_bad_file_in_the_cache_is_named_and_replaced(
    server: Server, cache: Path, caplog: pytest.LogCaptureFixture, damaged: bytes, name: str
):
    server.answers = [Answer()]
    cache.mkdir(parents=True)
    bad = cache / f"{md5(server.url())}_{name}"
    bad.write_bytes(damaged)
    path = download.fetch(server.url(), sha256=SHA256)
    assert path.read_bytes() == CONTENT and finished(cache) == [path]
    assert str(bad) in caplog.text


def test_a_bad_file_in_the_cache_is_named_where_it_cannot_be_replaced(server: Server, cache: Path):
    server.answers = [Answer(status=404)]
    cache.mkdir(parents=True)
    bad = cache / f"{md5(server.url())}_net.pkl"
    bad.write_bytes(b"damaged")
    with pytest.raises(UserError, match="HTTP 404") as caught:
        download.fetch(server.url(), sha256=SHA256)
    assert f"{bad} in the cache has the sha256" in str(caught.value) and bad.read_bytes() == b"damaged"


def test_a_file_is_looked_into_before_it_gets_its_name(server: Server, cache: Path):
    looked_at = []

    def check(path: Path, name: str) -> str | None:
        looked_at.append((path.suffix, name, path.read_bytes() == CONTENT))
        return "is nothing; download it again" if len(looked_at) == 1 else None

    server.answers = [Answer()]
    with pytest.raises(UserError, match=re.escape(server.url()) + ".* is nothing: run again"):
        download.fetch(server.url("a%20b.pkl").replace("a%20b", "net"), check=check)
    assert not finished(cache) + list(cache.glob("*.part"))
    download.fetch(server.url("a%20b.pkl"), check=check)
    download.fetch(server.url("a%20b.pkl"), check=check)
    assert looked_at == [(".part", "net.pkl", True), (".part", "a_b.pkl", True), (".pkl", "a_b.pkl", True)]


@pytest.mark.parametrize("kind", ["application/json", "application/json; charset=utf-8", "application/problem+json"])
def test_message_is_refused(server: Server, cache: Path, kind: str):
    server.answers = [Answer(content=b'{"status": "busy"}', headers={"Content-Type": kind})]
    with pytest.raises(UserError, match="a message instead of a file"):
        download.fetch(server.url())
    assert not finished(cache)


# -- Pauses -------------------------------------------------------------------------------------------------------


def http_date(seconds_from_now: float) -> str:
    return email.utils.formatdate(time.time() + seconds_from_now, usegmt=True)


@pytest.mark.parametrize(
    ("header", "pause"),
    [("7", 7), (" 7 ", 7), ("0", 0), (lambda: http_date(30), 29), (lambda: http_date(-30), 0), ("soon", 0), ("-3", 0)],
)
@pytest.mark.parametrize("status", [429, 503])
def test_retry_after_is_heeded(
    server: Server, monkeypatch: pytest.MonkeyPatch, status: int, header: str | Callable[[], str], pause: float
):
    pauses: list[float] = []
    monkeypatch.setattr(download.time, "sleep", pauses.append)
    value = header if isinstance(header, str) else header()
    server.answers = [Answer(status=status, headers={"Retry-After": value}), Answer()]
    assert download.fetch(server.url()).read_bytes() == CONTENT
    assert len(pauses) == 1 and pause <= pauses[0] <= pause + 2


def test_a_server_that_asks_for_an_hour_is_given_up_at_once(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(download.time, "sleep", lambda seconds: pytest.fail(f"slept {seconds} s"))
    server.answers = [Answer(status=429, headers={"Retry-After": "3600"})]
    with pytest.raises(UserError, match="3600 s"):
        download.fetch(server.url())
    assert len(server.requests) == 1


def test_a_name_that_does_not_resolve_is_looked_up_once(monkeypatch: pytest.MonkeyPatch):
    lookups = []

    def getaddrinfo(host: str, *rest: object, **options: object) -> list[object]:
        lookups.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    monkeypatch.setattr(download.time, "sleep", lambda seconds: pytest.fail(f"slept {seconds} s"))
    with pytest.raises(download.DownloadError, match=r"nowhere\.example does not resolve") as caught:
        download.fetch("https://nowhere.example/net.pkl")
    assert lookups == ["nowhere.example"]
    assert caught.value.place == download.place_by_hand("https://nowhere.example/net.pkl")


# -- Secrets ------------------------------------------------------------------------------------------------------

SECRETS = ("us3r", "s3cret", "t0ken", "s1gnature")


def with_secrets(url: str) -> str:
    return url.replace("http://", "http://us3r:s3cret@") + "?token=t0ken&expires=&Signature=s1gnature#t0ken"


def outcomes() -> Iterator[tuple[str, list[Answer]]]:
    """Everything that happens to a download and is said."""
    yield "success", [Answer()]
    yield "break", [Answer(cut_after=HALF), Answer()]
    yield "refused", [Answer(status=403)]
    yield "troubled", [Answer(status=500)]
    yield "wrong", [Answer(content=b"x")]
    yield "web page", [Answer(headers={"Content-Type": "text/html"})]
    yield "redirect", [Answer(status=302, headers={"Location": "ftp://us3r:s3cret@127.0.0.1/x?token=t0ken"})]
    yield "endless", [Answer(status=302, headers={"Location": "/x.pkl?token=t0ken&Signature=s1gnature"})]
    yield "elsewhere", [Answer(status=302, headers={"Location": "http://us3r:s3cret@.a/x?token=t0ken"})]


@pytest.mark.parametrize(("case", "answers"), list(outcomes()))
def test_secrets_reach_the_server_and_nobody_else(
    server: Server, cache: Path, caplog: pytest.LogCaptureFixture, case: str, answers: list[Answer]
):
    caplog.set_level("INFO", "refine")
    server.answers = answers
    url = with_secrets(server.url())
    said = []
    try:
        download.fetch(url, sha256=SHA256)
        assert case in ("success", "break")
    except UserError as error:
        said += traceback.format_exception(error)
        assert "127.0.0.1" in str(error)
    assert server.requests[0]["Authorization"] == "Basic " + base64.b64encode(b"us3r:s3cret").decode()
    said += [*caplog.messages, *(str(path) for path in cache.rglob("*"))]
    said += [path.read_text("latin-1") for path in cache.rglob("*.version")]
    assert said and not [line for line in said if any(secret in line for secret in SECRETS)]


def test_secrets_of_addresses_that_nobody_can_fetch():
    for url in ("ftp://us3r:s3cret@host/x?token=t0ken", "https://us3r:s3cret@/x?t0ken", "http://us3r:s3cret@[::1/x"):
        with pytest.raises(UserError) as caught:
            download.fetch(url)
        assert not any(secret in str(caught.value) for secret in SECRETS)


def test_tilde_in_the_cache_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.setenv("DNNLIB_CACHE_DIR", "~/c")
    assert download.cache_directory() == tmp_path / "c" / "downloads"


# -- Other errors -------------------------------------------------------------------------------------------------


def test_offline(cache: Path):
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # bound but not listening: connections are refused
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/net.pkl"
        with pytest.raises(UserError, match=r"no connection to 127\.0\.0\.1") as caught:
            download.fetch(url)
    place = cache / f"{md5(url)}_net.pkl"
    assert url in str(caught.value)
    assert str(caught.value).endswith(f"save the file by hand as {place}.")
    place.write_bytes(b"by hand")
    assert download.fetch(url) == place


def test_a_dead_proxy_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("NO_PROXY", "")
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(UserError, match="the proxy did not answer"):
        download.fetch("http://example.invalid/net.pkl")


def test_a_server_that_speaks_no_tls(server: Server):
    server.answers = [Answer()]
    with pytest.raises(UserError, match=r"certificate could not be verified"):
        download.fetch(server.url().replace("http:", "https:"))


def test_a_silent_server(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(download, "CONNECT_AND_READ_TIMEOUT_SECONDS", (10, 0.05))
    with socket.create_server(("127.0.0.1", 0)) as silent, pytest.raises(UserError, match="did not answer in time"):
        download.fetch(f"http://127.0.0.1:{silent.getsockname()[1]}/net.pkl")
    server.answers = [Answer(pause_after=0)]
    with pytest.raises(UserError, match="broke off"):
        download.fetch(server.url())


def test_cache_directory_that_cannot_be_made(tmp_path: Path):
    (tmp_path / "cache").write_text("a file is in the way")
    with pytest.raises(UserError, match="set DNNLIB_CACHE_DIR") as caught:
        download.fetch("http://127.0.0.1:1/net.pkl")
    assert "http://127.0.0.1:1/net.pkl by hand" in str(caught.value)


def test_read_only_cache_directory(cache: Path):
    cache.mkdir(parents=True)
    cache.chmod(0o500)
    if os.access(cache, os.W_OK):
        pytest.skip("needs a user who may not write everywhere")
    with pytest.raises(UserError, match="set DNNLIB_CACHE_DIR"):
        download.fetch("http://127.0.0.1:1/net.pkl")


def test_full_disk_keeps_the_part(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch):
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    server.answers = [Answer()]
    with monkeypatch.context() as patch:
        patch.setattr(download.os, "fsync", full)
        with pytest.raises(UserError, match=r"No space left on device.*a folder with room"):
            download.fetch(server.url())
    assert not finished(cache)
    assert list(cache.glob("*.part"))


# -- Several processes, and what the user sees ---------------------------------------------------------------------


@pytest.mark.slow
def test_of_two_processes_one_downloads_and_the_other_waits(server: Server, cache: Path):
    server.answers = [Answer(pause_after=HALF)]
    first = start("-m refine zoo --fetch", server.url())
    wait_until(lambda: len(server.requests) == 1)
    second = start("-m refine zoo --fetch", server.url())
    read_stderr_until(second, "Waiting for another process")
    server.go_on.set()
    outputs = [process.communicate()[0] for process in (first, second)]
    assert (first.returncode, second.returncode) == (0, 0)
    assert outputs == [f"{cache / (md5(server.url()) + '_net.pkl')}\n"] * 2
    assert len(server.requests) == 1
    assert finished(cache)[0].read_bytes() == CONTENT


def test_messages_where_stderr_is_no_terminal(server: Server, cache: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "refine")
    server.answers = [Answer()]
    path = download.fetch(server.url())
    assert caplog.messages == [f"Downloading {server.url()}, 0.5 MB", f"Downloaded {path}"]


def test_messages_of_a_break(server: Server, caplog: pytest.LogCaptureFixture):
    caplog.set_level("INFO", "refine")
    server.answers = [Answer(cut_after=HALF), Answer()]
    download.fetch(server.url())
    assert "trying again" in caplog.messages[1]
    assert caplog.messages[2] == f"Continuing {server.url()}, 0.5 MB"


def test_progress_bar_with_remaining_time_on_a_terminal(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    caplog.set_level("INFO", "refine")
    server.answers = [Answer(cut_after=HALF), Answer()]
    download.fetch(server.url())
    assert re.search(r"net\.pkl: +100%.*500k/500k \[\d\d:\d\d<\d\d:\d\d", terminal.getvalue())
    assert [message[:20] for message in caplog.messages] == ["Download failed (no "]


def test_no_stderr_at_all(server: Server, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "stderr", None)
    server.answers = [Answer()]
    assert download.fetch(server.url()).read_bytes() == CONTENT
