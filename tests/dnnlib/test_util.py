"""`EasyDict`, objects found by their names, files, times, output."""

from __future__ import annotations

import collections
import copy
import ctypes
import hashlib
import http.server
import os.path
import pickle
import pickletools
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest

import dnnlib
from dnnlib import util


def test_easy_dict_is_a_dict_with_attributes() -> None:
    d = dnnlib.EasyDict({"a": 1}, b=2)
    d.c = 3
    d["d"] = 4
    assert (d.a, d["b"], d["c"], d.d) == (1, 2, 3, 4)
    assert d == {"a": 1, "b": 2, "c": 3, "d": 4} and isinstance(d, dict)
    del d.a
    assert "a" not in d and not hasattr(d, "a") and getattr(d, "a", 5) == 5
    with pytest.raises(AttributeError, match="no item 'a'"):
        _ = d.a
    with pytest.raises(AttributeError, match="no item 'a'"):
        del d.a
    with pytest.raises(KeyError):
        d["a"]


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_easy_dict_pickles_under_its_name_with_its_items_only(protocol: int) -> None:
    d = dnnlib.EasyDict(a=dnnlib.EasyDict(b=1))
    pickled = pickle.dumps(d, protocol=protocol)
    for again in (pickle.loads(pickled), copy.deepcopy(d)):
        assert again == d and type(again) is type(again.a) is util.EasyDict
    opcodes = [opcode.name for opcode, _, _ in pickletools.genops(pickled)]
    assert opcodes.count("NEWOBJ") == 2 and "BUILD" not in opcodes
    assert {argument for _, argument, _ in pickletools.genops(pickled) if isinstance(argument, str)} <= {
        *("a", "b", "dnnlib.util", "EasyDict", "dnnlib.util EasyDict")
    }


def test_objects_are_found_by_name() -> None:
    assert util.get_obj_by_name("collections.OrderedDict.fromkeys") == collections.OrderedDict.fromkeys
    assert util.get_obj_by_name("os.path.join") is os.path.join
    assert util.get_obj_by_name("dnnlib.util") is util
    assert util.call_func_by_name("a", "b", func_name="os.path.join") == os.path.join("a", "b")
    assert util.construct_class_by_name([1], class_name="collections.deque", maxlen=3) == collections.deque([1])


@pytest.mark.parametrize(
    "name", ["no_such_module.x", "no_such_module", "os.no.such", "dnnlib.util.no", "", "os.", ".."]
)
def test_name_of_nothing(name: str) -> None:
    with pytest.raises(ImportError, match=repr(name).replace(".", r"\.")):
        util.get_obj_by_name(name)


def test_error_inside_a_module_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "breaks_on_import.py").write_text("import no_such_module_either")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_module_either"):
        util.get_obj_by_name("breaks_on_import.f")


@pytest.mark.parametrize(
    ("seconds", "long", "brief"),
    [
        (0, "0s", "0s"),
        (59.4, "59s", "59s"),
        (59.6, "1m 00s", "1m 00s"),
        (5901, "1h 38m 21s", "1h 38m"),
        (3600, "1h 00m 00s", "1h 00m"),
        (86399.7, "1d 00h 00m", "1d 00h"),
        (200000, "2d 07h 33m", "2d 07h"),
    ],
)
def test_times(seconds: float, long: str, brief: str) -> None:
    assert (util.format_time(seconds), util.format_time_brief(seconds)) == (long, brief)


def test_cache_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(util, "_cache_dir", None)
    monkeypatch.delenv("DNNLIB_CACHE_DIR", raising=False)
    monkeypatch.setenv("HOME", "/home/me")
    join = os.path.join
    assert dnnlib.make_cache_dir_path("downloads", "x") == join("/home/me", ".cache", "dnnlib", "downloads", "x")
    monkeypatch.setenv("DNNLIB_CACHE_DIR", "elsewhere")
    assert dnnlib.make_cache_dir_path() == join("elsewhere", "") or dnnlib.make_cache_dir_path() == "elsewhere"
    util.set_cache_dir("chosen")
    assert dnnlib.make_cache_dir_path("a") == join("chosen", "a")


def test_logger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    log = tmp_path / "log.txt"
    with util.Logger(file_name=str(log), file_mode="w", should_flush=True) as logger:
        print("first", 1)
        print("to stderr", file=sys.stderr)
        assert log.read_text() == "first 1\nto stderr\n"  # stored at once
        logger.write(b"bytes \xc3\xbc\n")
        logger.write("")
    assert (sys.stdout, sys.stderr) == before
    print("after")
    assert log.read_text(encoding="utf-8") == "first 1\nto stderr\nbytes ü\n"
    assert capsys.readouterr().out == "first 1\nto stderr\nbytes ü\nafter\n"
    with util.Logger(file_name=str(log), file_mode="a"):
        print("again")
    assert log.read_text(encoding="utf-8").endswith("bytes ü\nagain\n")
    with pytest.raises(ZeroDivisionError), util.Logger():
        print(1 / 0)
    assert (sys.stdout, sys.stderr) == before


def test_loggers_one_inside_the_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Also if the outer one is closed first, and twice: nothing is written to a closed file."""
    before = sys.stdout
    outer = util.Logger(str(tmp_path / "outer.txt"))
    print("one")
    inner = util.Logger(str(tmp_path / "inner.txt"), should_flush=False)
    print("two")
    outer.close()
    outer.close()
    outer.write("three\n")
    inner.write("four\n")
    inner.close()
    sys.stdout = before
    assert (tmp_path / "outer.txt").read_text() == "one\ntwo\n"
    assert (tmp_path / "inner.txt").read_text() == "two\nfour\n"
    assert capsys.readouterr().out == "one\ntwo\nthree\nfour\n"


def test_logger_that_cannot_open_its_file_redirects_nothing(tmp_path: Path) -> None:
    before = (sys.stdout, sys.stderr)
    with pytest.raises(FileNotFoundError):
        util.Logger(str(tmp_path / "nowhere" / "log.txt"))
    assert (sys.stdout, sys.stderr) == before


def test_ask_yes_no(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter(["perhaps", "", "YES", "n"])
    asked = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or next(answers))
    assert util.ask_yes_no("Go on?") is True and util.ask_yes_no("Go on?") is False
    assert asked == ["Go on? [y/n] "] * 4


def test_products_and_types() -> None:
    assert util.tuple_product((2, 3, 4)) == 24 and util.tuple_product(()) == 1
    expected = (np.dtype("uint8"), ctypes.c_ubyte)
    for spelling in ("uint8", np.uint8, np.dtype("uint8"), ctypes.c_ubyte):
        assert util.get_dtype_and_ctype(spelling) == expected
    assert util.get_dtype_and_ctype("float32") == (np.dtype("float32"), ctypes.c_float)
    for wrong in ("complex64", "text", None, object):
        with pytest.raises(ValueError, match="names no number type"):
            util.get_dtype_and_ctype(wrong)


def top_level() -> int:
    return 7


def test_functions_by_name() -> None:
    assert util.is_top_level_function(os.path.join) and util.is_top_level_function(top_level)
    renamed = lambda: None  # noqa: E731
    for other in (renamed, len, Path.exists, Path, 3, lambda: top_level):
        assert not util.is_top_level_function(other)
        with pytest.raises(ValueError, match="no function at the top level"):
            util.get_top_level_function_name(other)
    name = util.get_top_level_function_name(util.format_time)
    assert name == "dnnlib.util.format_time" and util.get_obj_by_name(name) is util.format_time
    assert util.get_module_from_obj_name("dnnlib.util.EasyDict") == (util, "EasyDict")
    assert util.get_obj_from_module(util, "EasyDict.keys") is util.EasyDict.keys
    assert util.get_obj_from_module(util, "") is util
    assert util.get_module_dir_by_obj_name("dnnlib.util.EasyDict") == os.path.dirname(util.__file__)
    with pytest.raises(ValueError, match="name of the function to call is missing"):
        util.call_func_by_name(1)


def test_name_of_a_function_of_the_script(tmp_path: Path) -> None:
    script = tmp_path / "my_script.py"
    script.write_text("import dnnlib\ndef work(): pass\nprint(dnnlib.util.get_top_level_function_name(work))\n")
    root = str(Path(__file__).parents[2])
    result = subprocess.run(
        [sys.executable, str(script)],
        env=os.environ | {"PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert result.stdout == "my_script.work\n"


def test_is_pickleable() -> None:
    assert util.is_pickleable([1, "a"]) and not util.is_pickleable(lambda: None)


def test_folders_are_listed_and_copied(tmp_path: Path) -> None:
    for name in ("a.py", "b.pyc", "sub/c.py", "sub/__pycache__/d.py", "sub/deep/e.txt"):
        path = tmp_path / "from" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(name)
    listed = util.list_dir_recursively_with_ignore(str(tmp_path / "from"), ignores=["*.pyc", "__pycache__"])
    expected = ["a.py", os.path.join("sub", "c.py"), os.path.join("sub", "deep", "e.txt")]
    assert [relative for _, relative in listed] == expected
    assert all(os.path.isabs(path) and Path(path).read_text() == Path(rel).as_posix() for path, rel in listed)
    based = util.list_dir_recursively_with_ignore(str(tmp_path / "from"), add_base_to_relative=True)
    assert len(based) == 5 and all(relative.startswith("from" + os.sep) for _, relative in based)
    util.copy_files_and_create_dirs([(path, str(tmp_path / "to" / relative)) for path, relative in listed])
    assert (tmp_path / "to" / "sub" / "deep" / "e.txt").read_text() == "sub/deep/e.txt"
    with pytest.raises(NotADirectoryError, match="nowhere"):
        util.list_dir_recursively_with_ignore(str(tmp_path / "nowhere"))


def test_is_url() -> None:
    for url in ("http://a", "https://a.b/c?d=e"):
        assert util.is_url(url)
    for other in ("a/b.pkl", "C:\\x", "http:/a", "ftp://a/b", "http://[", "", None, 3):
        assert not util.is_url(other) and not util.is_url(other, allow_file_urls=True)
    assert util.is_url("file:///a", allow_file_urls=True) and not util.is_url("file:///a")


class Server(http.server.BaseHTTPRequestHandler):
    """Answers by what `answers` says: status, headers, content; the last answer is kept."""

    answers: ClassVar[list[tuple[int, dict[str, str], bytes]]] = []
    requests: ClassVar[list[str]] = []

    def do_GET(self) -> None:
        self.requests.append(self.path)
        status, headers, content = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    Server.answers, Server.requests = [], []
    with http.server.HTTPServer(("127.0.0.1", 0), Server) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{httpd.server_port}"
        httpd.shutdown()


def test_open_url_downloads_once(server: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Server.answers = [(503, {}, b""), (200, {}, b"network")]
    url = f"{server}/some%20dir/net%3Awork.pkl"
    cache = str(tmp_path / "cache")
    with util.open_url(url, cache_dir=cache) as file:
        assert file.read() == b"network"
    assert len(Server.requests) == 2 and "Downloading" in capsys.readouterr().out
    with util.open_url(url, cache_dir=cache) as file:
        assert file.read() == b"network"
    path = util.open_url(url, cache_dir=cache, return_filename=True)
    key = hashlib.md5(url.encode()).hexdigest()
    assert os.listdir(cache) == [f"{key}_net_work.pkl"] and path == os.path.join(cache, f"{key}_net_work.pkl")
    assert len(Server.requests) == 2
    with util.open_url(url, cache_dir=cache, cache=False, verbose=False) as file:
        assert file.read() == b"network"
    assert len(Server.requests) == 3 and capsys.readouterr().out == ""
    Server.answers = [(200, {"Content-Disposition": 'attachment; filename="b/../c.pkl"'}, b"x")]
    named = util.open_url(f"{server}/get?id=1", cache_dir=cache, return_filename=True)
    assert os.path.basename(named).endswith("_b_.._c.pkl") and os.path.dirname(named) == cache


@pytest.mark.parametrize(
    ("answer", "tries", "sentence"),
    [
        ((404, {}, b""), 1, "404"),
        ((500, {}, b""), 3, "500"),
        ((200, {"Content-Type": "text/html"}, b"<html>"), 3, "web page"),
    ],
)
def test_download_that_fails_leaves_nothing(
    server: str, tmp_path: Path, answer: tuple[int, dict[str, str], bytes], tries: int, sentence: str
) -> None:
    Server.answers = [answer]
    with pytest.raises(OSError, match=rf"cannot download {server}/a\.pkl: .*{sentence}"):
        util.open_url(f"{server}/a.pkl", cache_dir=str(tmp_path / "cache"), num_attempts=3)
    assert len(Server.requests) == tries and not (tmp_path / "cache").exists()


def test_open_url_takes_paths(tmp_path: Path) -> None:
    path = tmp_path / "a b.pkl"
    path.write_bytes(b"here")
    for spelling in (str(path), path.as_uri()):
        with util.open_url(spelling) as file:
            assert file.read() == b"here"
        assert Path(util.open_url(spelling, return_filename=True)) == path
    with pytest.raises(ValueError, match="neither a path nor"):
        util.open_url("ftp://a/b")
    with pytest.raises(ValueError, match="needs the cache"):
        util.open_url("http://a/b", return_filename=True, cache=False)
