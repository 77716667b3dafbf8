from __future__ import annotations

import functools
import hashlib
import http.server
import json
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner, Result

from refine import zoo
from refine.commands import zoo as zoo_command
from refine.errors import UserError
from refine.files import download
from refine.zoo import ENTRIES, ZooEntry, find, resolve

FFHQ_URL = "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/ffhq.pkl"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache and an empty current folder."""
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.setenv("DNNLIB_CACHE_DIR", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "cache" / "downloads"


def put_into_cache(cache: Path, url: str, content: bytes = b"cached") -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{hashlib.md5(url.encode()).hexdigest()}_file"
    path.write_bytes(content)
    return path


# -- The table ----------------------------------------------------------------------------------------------------


REMOTE = [entry for entry in ENTRIES if entry.url]
BUILT_IN = [entry for entry in ENTRIES if entry.path]


def test_an_entry_has_a_url_or_a_path():
    assert len(REMOTE) + len(BUILT_IN) == len(ENTRIES)


@pytest.mark.parametrize("entry", BUILT_IN, ids=lambda entry: entry.name)
def test_built_in_entry_is_there(entry: ZooEntry):
    assert entry.path and entry.path.is_file()
    assert resolve(entry.name).path == entry.path
    assert entry.licence and "NC" not in entry.licence


@pytest.mark.parametrize("entry", REMOTE, ids=lambda entry: entry.name)
def test_entry_is_well_formed(entry: ZooEntry):
    assert entry.url
    parts = urlsplit(entry.url)
    assert parts.scheme == "https"
    assert parts.hostname and "." in parts.hostname
    assert not parts.query + parts.fragment
    assert "//" not in parts.path
    assert parts.path.endswith((".pkl", ".npz", ".pt"))
    assert entry.kind in {"generator", "denoiser", "fid-reference", "detector"}
    assert entry.family in {"stylegan2", "stylegan3", "stylegan-xl", "edm", "edm2", "inception", "vgg"}
    assert entry.resolution is None or entry.resolution in {32, 64, 256, 512, 1024}
    assert entry.resolution or entry.kind == "detector"
    assert entry.sha256 is None or len(bytes.fromhex(entry.sha256)) == 32


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_size_in_the_name_is_the_resolution(entry: ZooEntry):
    for size in (32, 64, 256, 512, 1024):
        if f"{size}x{size}" in entry.name or f"res{size}-" in entry.name or f"img{size}-" in entry.name:
            assert entry.resolution == size


def test_urls_and_all_spellings_are_unique():
    urls = [entry.url for entry in REMOTE]
    assert len(urls) == len(set(urls))
    spellings = [spelling for entry in ENTRIES for spelling in entry.spellings]
    assert len(spellings) == len(set(spellings))


def test_every_spelling_resolves_to_its_entry(cache: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(download, "fetch", lambda url, **expected: Path(url))
    for entry in REMOTE:
        for spelling in (*entry.spellings, str(entry.url)):
            assert resolve(spelling) == zoo.ResolvedFile(Path(str(entry.url)), spelling, entry.url, entry)


def test_every_alias_in_the_list_belongs_to_an_entry():
    assert {alias for aliases in zoo._ALIASES.values() for alias in aliases} == {
        alias for entry in ENTRIES for alias in entry.aliases
    }


@pytest.mark.parametrize(
    ("name", "url", "family", "licence"),
    [
        ("ffhq.pkl", FFHQ_URL, "stylegan2", "NVIDIA"),
        (
            "cifar10-uncond",
            "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/pretrained/"
            "paper-fig11b-cifar10/cifar10u-cifar-ada-best-fid.pkl",
            "stylegan2",
            "NVIDIA",
        ),
        (
            "stylegan2-ffhq-256x256.pkl",
            "https://api.ngc.nvidia.com/v2/models/nvidia/research/stylegan2/versions/1/files/stylegan2-ffhq-256x256.pkl",
            "stylegan2",
            "NVIDIA",
        ),
        (
            "stylegan3-r-afhqv2-512x512",
            "https://api.ngc.nvidia.com/v2/models/nvidia/research/stylegan3/versions/1/files/"
            "stylegan3-r-afhqv2-512x512.pkl",
            "stylegan3",
            "NVIDIA",
        ),
        (
            "edm-ffhq.pkl",
            "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/edm-ffhq-64x64-uncond-vp.pkl",
            "edm",
            "CC BY-NC-SA 4.0",
        ),
        (
            "baseline-imagenet-64x64-cond-adm",
            "https://nvlabs-fi-cdn.nvidia.com/edm/pretrained/baseline/baseline-imagenet-64x64-cond-adm.pkl",
            "edm",
            "CC BY-NC-SA 4.0",
        ),
        (
            "stylegan-xl-cifar10",
            "https://s3.eu-central-1.amazonaws.com/avg-projects/stylegan_xl/models/cifar10.pkl",
            "stylegan-xl",
            None,
        ),
        ("cifar10-32x32.npz", "https://nvlabs-fi-cdn.nvidia.com/edm/fid-refs/cifar10-32x32.npz", "inception", "CC BY"),
    ],
)
def test_well_known_files(name: str, url: str, family: str, licence: str | None):
    entry = find(name)
    assert entry
    assert (entry.url, entry.family) == (url, family)
    assert (entry.licence is None) if licence is None else licence in str(entry.licence)


def test_the_detector_is_checked_against_its_digest(cache: Path):
    entry = find("inception-2015-12-05.pt")
    assert entry and entry.url and entry.sha256 and entry.size
    assert entry.sha256.startswith("f58cb9b6ec323ed6")
    path = put_into_cache(cache, entry.url, b"too short")
    with pytest.raises(UserError, match="9 bytes instead of 95607719"):
        resolve(entry.name)
    with open(path, "wb") as file:
        file.truncate(entry.size)
    with pytest.raises(UserError, match=f"instead of {entry.sha256}"):
        resolve(str(entry.url))


# -- resolve ------------------------------------------------------------------------------------------------------


def test_a_local_file_wins(cache: Path):
    put_into_cache(cache, FFHQ_URL)
    Path("ffhq.pkl").write_bytes(b"mine")
    assert resolve("ffhq.pkl") == zoo.ResolvedFile(Path("ffhq.pkl"), "ffhq.pkl", None, None)
    assert resolve("ffhq").path.read_bytes() == b"cached"


def test_home_folder_is_understood(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    (tmp_path / "net.pkl").touch()
    assert resolve("~/net.pkl").path == tmp_path / "net.pkl"


def test_a_file_name_resolves_with_one_line_and_a_name_with_none(cache: Path, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "refine")
    put_into_cache(cache, FFHQ_URL)
    resolve("ffhq")
    assert caplog.messages == []
    resolve("ffhq.pkl")
    assert caplog.messages == [f"ffhq.pkl is not a file here: taking ffhq of the zoo, {FFHQ_URL}"]


def test_an_entry_with_a_path_needs_no_download(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "tiny.pkl").write_bytes(b"12345")
    entry = ZooEntry("tiny", "generator", "stylegan2", 16, "Apache-2.0", path=tmp_path / "tiny.pkl")
    monkeypatch.setattr(zoo, "ENTRIES", (*ENTRIES, entry))
    assert resolve("tiny.pkl") == zoo.ResolvedFile(tmp_path / "tiny.pkl", "tiny.pkl", None, entry)
    (row,) = [row for row in json.loads(call("--json").stdout) if row["name"] == "tiny"]
    assert (row["path"], row["cached"], row["size"], row["url"]) == (str(entry.path), str(entry.path), 5, None)


@pytest.mark.parametrize(
    ("spec", "sentence"),
    [
        ("fffhq.pkl", r"no file 'fffhq.pkl', and none in the zoo: the closest names are .*\bffhq\b"),
        ("q9x", "no name is close to it"),
        ("", "no file ''"),
        ("edm-cifar10.pkl", "begin so are edm-cifar10-32x32-cond-vp, edm-cifar10-32x32-cond-ve, edm-cifar10-32x32-unc"),
        ("stylegan2-celebahq", "begin so are stylegan2-celebahq-256x256 "),
        ("models/ffhq.pkl", "no file 'models/ffhq.pkl': give the bare name 'ffhq.pkl' to take ffhq of the zoo"),
        (".", r"'\.' is a folder"),
        ("a\0b", "no file"),
        ("x" * 5000, "no file"),
    ],
)
def test_unknown_names(spec: str, sentence: str):
    with pytest.raises(UserError, match=sentence) as caught:
        resolve(spec)
    assert "python -m refine zoo" in str(caught.value) or "bare name" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("spec", ["file:///etc/passwd", "s3://bucket/net.pkl", "ftp://host/ffhq.pkl"])
def test_other_addresses_are_refused(spec: str):
    with pytest.raises(UserError, match="must begin with http:// or https://"):
        resolve(spec)


# -- python -m refine zoo -----------------------------------------------------------------------------------------


def call(*arguments: str) -> Result:
    return CliRunner().invoke(zoo_command.main, arguments)


def test_list(cache: Path):
    put_into_cache(cache, FFHQ_URL, b"x" * 1_500_000)
    lines = call().stdout.splitlines()
    assert lines[0].split() == ["NAME", "KIND", "PIXELS", "OPENS", "CACHED", "SIZE", "FAMILY", "LICENSE"]
    assert len(lines) == 1 + len(ENTRIES) + 3 and lines[-2].startswith("-: not known here")
    row = {line.split()[0]: line for line in lines if line}
    assert row["ffhq"].split()[1:8] == ["generator", "1024", "yes", "yes", "1.5", "MB", "stylegan2"]
    assert row["metfaces"].split()[1:7] == ["generator", "1024", "yes", "no", "-", "stylegan2"]
    assert row["stylegan3-t-ffhqu-256x256"].split()[3] == "--trust-pickle"
    assert row["metfaces"].endswith("NVIDIA Source Code License (non-commercial)")
    assert row["edm-ffhq-64x64-uncond-vp"].split()[1:3] == ["=", "edm-ffhq"]
    assert row["inception-2015-12-05.pt"].split()[1:] == ["detector", "-", "-", "no", "95.6", "MB", "inception", "-"]


def test_list_as_json(cache: Path):
    path = put_into_cache(cache, FFHQ_URL)
    rows = json.loads(call("--json").stdout)
    assert [row["name"] for row in rows] == [entry.name for entry in ENTRIES]
    by_name = {row["name"]: row for row in rows}
    assert by_name["ffhq"] == {
        "name": "ffhq",
        "kind": "generator",
        "family": "stylegan2",
        "resolution": 1024,
        "licence": "NVIDIA Source Code License (non-commercial)",
        "url": FFHQ_URL,
        "path": None,
        "size": 6,
        "sha256": None,
        "aliases": [],
        "cached": str(path),
        "opens": "yes",
    }
    assert by_name["metfaces"]["size"] is None
    assert by_name["metfaces"]["cached"] is None
    assert by_name["inception-2015-12-05.pt"]["size"] == 95_607_719


def test_list_in_part(cache: Path):
    names = {line.split()[0] for line in call("--kind=denoiser").stdout.splitlines()[1:] if line.startswith("edm-")}
    assert names == {entry.name for entry in ENTRIES if entry.kind == "denoiser" and entry.name.startswith("edm-")}
    assert "ffhq" not in {line.split(" ")[0] for line in call("--kind=denoiser").stdout.splitlines()}
    found = json.loads(call("--json", "CIFAR10-cond", "--kind=denoiser").stdout)  # an alias
    assert [row["name"] for row in found] == ["edm-cifar10-32x32-cond-vp"]
    nothing = call("nosuchname")
    assert nothing.exit_code == 2 and "nosuchname" in nothing.stderr


def test_a_narrow_terminal(cache: Path):
    for width in (20, 60, 80, 100):
        lines = zoo_command._table(list(ENTRIES), width).split("\n\n")[0].splitlines()
        longest = max(len(" = ".join((entry.name, *entry.aliases))) for entry in ENTRIES)
        assert max(map(len, lines)) <= max(width, longest)
        assert "--json" in zoo_command._table(list(ENTRIES), width)


def test_opens_is_what_the_registry_rebuilds(fixture_path):
    """The column says of each family what happens to one of its files."""
    from refine import networks, pickles

    for file, key, family in (
        ("sg2ada/b_cond16.pkl", "G_ema", "stylegan2"),
        ("sg3/s2_stylegan3t_uncond32.pkl", "G_ema", "stylegan3"),
        ("edm/s1_edm_ddpmpp_uncond16.pkl", "ema", "edm"),
    ):
        is_built = networks.identify(pickles.load(fixture_path(file))[key]).build is not None
        assert is_built == (family in zoo_command.REFINED), family


@pytest.fixture
def folder_url(tmp_path: Path) -> Iterator[str]:
    """The address of a server that offers `tmp_path / "offered"`."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            pass

    (tmp_path / "offered").mkdir()
    handler = functools.partial(Quiet, directory=str(tmp_path / "offered"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_fetch_a_name(tmp_path: Path, cache: Path, folder_url: str, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "offered" / "ffhq.pkl").write_bytes(b"weights")
    url = f"{folder_url}/ffhq.pkl"
    monkeypatch.setattr(zoo, "ENTRIES", tuple(replace(e, url=url) if e.name == "ffhq" else e for e in ENTRIES))
    result = call("--fetch", "ffhq.pkl")
    assert result.exit_code == 0
    path = Path(result.stdout.removesuffix("\n"))
    assert path.parent == cache
    assert path.read_bytes() == b"weights"
    assert result.stderr.splitlines() == [
        f"ffhq.pkl is not a file here: taking ffhq of the zoo, {url}",
        f"Downloading {url}, 0.0 MB",
        f"Downloaded {path}",
    ]
    assert resolve("ffhq").path == path


def test_fetch_a_url(tmp_path: Path, folder_url: str):
    (tmp_path / "offered" / "mine.pkl").write_bytes(b"weights")
    url = f"{folder_url}/mine.pkl"
    resolved = resolve(url)
    assert resolved == zoo.ResolvedFile(resolved.path, url, url, None)
    assert resolved.path.read_bytes() == b"weights"


def test_fetch_with_errors_is_one_sentence_and_exit_code_2(folder_url: str):
    for spec in ("no-such-name", f"{folder_url}/missing.pkl", "file:///etc/passwd"):
        result = call("--fetch", spec)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("Error: ")
        assert len(result.stderr.splitlines()) == 1
