from __future__ import annotations

import functools
import hashlib
import http.server
import io
import json
import logging
import os
import pickle
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from click.testing import CliRunner, Result

from refine import load_generator, load_teacher, zoo, zoo_entries
from refine.commands import zoo as command
from refine.errors import UserError
from refine.files import download
from refine.files.addresses import without_secrets
from refine.networks.adm_settings import parse_settings
from refine.zoo import find, resolve
from refine.zoo_entries import ENTRIES, ZooEntry

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


WEIGHTS = pickle.dumps({"weights": 1}, protocol=4)


def put_into_cache(cache: Path, url: str, content: bytes = WEIGHTS) -> Path:
    cache.mkdir(parents=True, exist_ok=True)
    path = cache / f"{hashlib.md5(url.encode()).hexdigest()}_file"
    path.write_bytes(content)
    return path


# -- The table ----------------------------------------------------------------------------------------------------


REMOTE = [entry for entry in ENTRIES if entry.url]
BUILT_IN = [entry for entry in ENTRIES if entry.path]


BY_HAND = [entry for entry in ENTRIES if not (entry.url or entry.path)]


def test_an_entry_has_a_url_or_a_path_or_a_page():
    assert len(REMOTE) + len(BUILT_IN) + len(BY_HAND) == len(ENTRIES) and BY_HAND
    assert all(str(entry.page).startswith("https://") for entry in BY_HAND)


@pytest.mark.parametrize("entry", BY_HAND, ids=lambda entry: entry.name)
def test_a_file_without_a_download_gets_its_place(entry: ZooEntry, cache: Path):
    with pytest.raises(UserError, match=str(entry.page)) as caught:
        resolve(entry.name)
    place = cache / f"{entry.name}.pt"
    assert str(place) in str(caught.value) and "\n" not in str(caught.value)
    cache.mkdir(parents=True)
    place.write_bytes(WEIGHTS)
    assert resolve(entry.name) == zoo.ResolvedFile(place, entry.name, None, entry)
    (row,) = [row for row in json.loads(call("--json").stdout) if row["name"] == entry.name]
    assert row["cached"] == row["place_by_hand"] == str(place)


@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if entry.family == "adm"], ids=lambda entry: entry.name)
def test_settings_of_a_state_dict_are_complete(entry: ZooEntry):
    settings = parse_settings(entry.settings)
    assert settings.image_size == entry.resolution and (settings.num_heads or settings.num_head_channels)
    assert settings.preconditioning == "edm" or (settings.attention_order and settings.noise_schedule)
    assert entry.untried and entry.refines == "untried" and entry.page
    assert not entry.url or zoo.find_file(Path(entry.url)) is entry
    assert zoo.find_file(download.place_by_hand(entry.url) if entry.url else Path(f"{entry.name}.pt")) is entry


@pytest.mark.parametrize("entry", BUILT_IN, ids=lambda entry: entry.name)
def test_built_in_entry_is_there(entry: ZooEntry):
    assert entry.path and entry.path.is_file()
    assert resolve(entry.name).path == entry.path
    assert entry.license and "NC" not in entry.license


@pytest.mark.parametrize("entry", REMOTE, ids=lambda entry: entry.name)
def test_entry_is_well_formed(entry: ZooEntry):
    assert entry.url
    parts = urlsplit(entry.url)
    assert parts.scheme == "https"
    assert parts.hostname and "." in parts.hostname
    assert not parts.query + parts.fragment
    assert "//" not in parts.path
    assert parts.path.endswith((".pkl", ".npz", ".pt", ".pth"))
    assert entry.kind in {"generator", "denoiser", "fid-reference", "detector"}
    detectors = {"inception", "vgg", "dinov2", "clip"}
    assert entry.family in {"stylegan2", "stylegan3", "stylegan-xl", "edm", "adm", "edm2", *detectors}
    assert entry.resolution is None or entry.resolution in {32, 64, 128, 256, 512, 1024}
    assert entry.resolution or entry.kind == "detector"
    assert entry.sha256 is None or len(bytes.fromhex(entry.sha256)) == 32


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_size_in_the_name_is_the_resolution(entry: ZooEntry):
    for size in (32, 64, 128, 256, 512, 1024):
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
    assert {alias for aliases in zoo_entries._ALIASES.values() for alias in aliases} == {
        alias for entry in ENTRIES for alias in entry.aliases
    }


@pytest.mark.parametrize(
    ("name", "url", "family", "license"),
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
def test_well_known_files(name: str, url: str, family: str, license: str | None):
    entry = find(name)
    assert entry
    assert (entry.url, entry.family) == (url, family)
    assert (entry.license is None) if license is None else license in str(entry.license)


def unreachable(url: str, expected: object) -> Path:
    raise download.DownloadError(url, "no network in tests")


def test_the_detector_is_checked_against_its_digest(cache: Path, monkeypatch: pytest.MonkeyPatch):
    entry = find("inception-2015-12-05.pt")
    assert entry and entry.url and entry.sha256 and entry.size
    assert entry.sha256.startswith("f58cb9b6ec323ed6")
    path = put_into_cache(cache, entry.url, b"too short")
    monkeypatch.setattr(download, "_download", unreachable)
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
    assert resolve("ffhq").path.read_bytes() == WEIGHTS


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
        ("q9x", "no name is similar"),
        ("", "no file ''"),
        ("edm-cifar10.pkl", "edm-cifar10-32x32-cond-vp, edm-cifar10-32x32-cond-ve, edm-cifar10-32x32-unc"),
        ("stylegan2-celebahq", "stylegan2-celebahq-256x256 "),
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
    return CliRunner().invoke(command.main, arguments)


def test_list(cache: Path):
    put_into_cache(cache, FFHQ_URL, b"x" * 1_500_000)
    lines = call().stdout.splitlines()
    heads = [line for line in lines if line.startswith("NAME")]
    assert {tuple(head.split()) for head in heads} == {command.HEADER} and len(heads) == len(zoo_entries.KINDS)
    row = {line.split()[0]: line for line in lines if line}
    assert all(entry.name in row for entry in ENTRIES)
    assert row["ffhq"].split()[1:7] == ["yes", "stylegan2", "1024", "1.5", "MB", "yes"]
    assert row["metfaces"].split()[1:6] == ["yes", "stylegan2", "1024", "-", "no"]
    assert row["metfaces"].endswith("NVIDIA Source Code License (non-commercial)")
    assert row["edm-ffhq-64x64-uncond-vp"].split()[1:4] == ["=", "edm-ffhq", "yes"]
    assert row["stylegan3-t-ffhq-1024x1024"].split()[1:4] == ["yes", "stylegan3", "1024"]
    assert row["adm-imagenet-64x64-cond"].split()[1:6] == ["=", "64x64_diffusion", "untried", "adm", "64"]
    assert any(line.startswith("untried: ") for line in lines)
    assert row["edm2-img64-s-1073741-0.075"].split()[1] == "untried"
    assert row["inception-2015-12-05.pt"].split()[1:] == ["-", "inception", "-", "95.6", "MB", "no", "-"]


ADM_SETTINGS = "image_size=16,num_head_channels=64,attention_order=new,noise_schedule=cosine"


def test_networks_of_every_family_are_opened(fixture_path: Callable[[str], Path]):
    """A golden network of each family opens as it is."""
    golden: dict[str, tuple[Callable[..., object], str]] = {
        "stylegan2": (load_generator, "sg2ada/d_gray16.pkl"),
        "stylegan3": (load_generator, "sg3/s2_stylegan3t_uncond32.pkl"),
        "stylegan-xl": (load_generator, "sgxl/s1_sgxl_stem_cond16.pkl"),
        "edm": (load_teacher, "edm/s6_iddpm_adm_uncond16.pkl"),
        "edm2": (load_teacher, "edm2/s1_edm2_cond16.pkl"),
        "adm": (functools.partial(load_teacher, settings=ADM_SETTINGS), "adm/s2_adm_cond16_new.pt"),
    }
    assert {entry.family for entry in ENTRIES if entry.kind in ("generator", "denoiser")} == golden.keys()
    for load, name in golden.values():
        load(str(fixture_path(name)))


@pytest.mark.parametrize("kind", zoo_entries.KINDS)
def test_list_of_one_kind(kind: str):
    names = [entry.name for entry in ENTRIES if entry.kind == kind]
    assert [row["name"] for row in json.loads(call(f"--kind={kind}", "--json").stdout)] == names
    shown = call(f"--kind={kind}").stdout
    assert all(name in shown for name in names)
    assert not any(f"\n{entry.name} " in shown for entry in ENTRIES if entry.kind != kind)


def test_list_of_names_with_a_word(cache: Path):
    found = json.loads(call("--json", "CIFAR10-cond", "--kind=denoiser").stdout)  # an alias
    assert [row["name"] for row in found] == ["edm-cifar10-32x32-cond-vp", "edm-cifar10-cond-vp-ddo"]
    nothing = call("nosuchname")
    assert nothing.exit_code == 2 and "nosuchname" in nothing.stderr


def test_unknown_kind():
    result = call("--kind=network")
    assert result.exit_code == 2 and "generator" in result.stderr


@pytest.mark.parametrize("width", [60, 80, 100, 120, 150, 200])
def test_list_fits_the_terminal(width: int):
    """No line is longer than the terminal is wide, but for names that are; nothing is cut off."""
    shown = command.table(ENTRIES, width)
    spelled = {" = ".join((entry.name, *entry.aliases)) for entry in ENTRIES}
    assert [line for line in shown.splitlines() if len(line) > width and line not in spelled] == []
    assert all(name in shown for name in spelled)
    assert ("LICENSE" in shown) == (width == 200) and ("REFINES" in shown)


def test_list_on_a_terminal(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(command.shutil, "get_terminal_size", lambda: os.terminal_size((80, 24)))
    monkeypatch.setattr("sys.stdout", Terminal())
    command.main.callback(word=None, kind="generator", as_json=False, spec=None)
    assert max(map(len, sys.stdout.getvalue().splitlines())) <= 80


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


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
        "license": "NVIDIA Source Code License (non-commercial)",
        "url": FFHQ_URL,
        "path": None,
        "size": len(WEIGHTS),
        "sha256": None,
        "aliases": [],
        "settings": "",
        "page": None,
        "untried": False,
        "fid": None,
        "place_by_hand": None,
        "refines": "yes",
        "cached": str(path),
    }
    assert by_name["metfaces"]["size"] is None
    assert by_name["metfaces"]["cached"] is None
    assert by_name["inception-2015-12-05.pt"]["size"] == 95_607_719


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
    (tmp_path / "offered" / "ffhq.pkl").write_bytes(WEIGHTS)
    url = f"{folder_url}/ffhq.pkl"
    monkeypatch.setattr(zoo, "ENTRIES", tuple(replace(e, url=url) if e.name == "ffhq" else e for e in ENTRIES))
    result = call("--fetch", "ffhq.pkl")
    assert result.exit_code == 0
    path = Path(result.stdout.removesuffix("\n"))
    assert path.parent == cache
    assert path.read_bytes() == WEIGHTS
    assert result.stderr.splitlines() == [
        f"ffhq.pkl is not a file here: taking ffhq of the zoo, {url}",
        f"Downloading {url}, 0.0 MB",
        f"Downloaded {path}",
    ]
    assert resolve("ffhq").path == path


def test_fetch_a_url(tmp_path: Path, folder_url: str):
    (tmp_path / "offered" / "mine.pkl").write_bytes(WEIGHTS)
    url = f"{folder_url}/mine.pkl"
    resolved = resolve(url)
    assert resolved == zoo.ResolvedFile(resolved.path, url, url, None)
    assert resolved.path.read_bytes() == WEIGHTS


def test_fetch_with_errors_is_one_sentence_and_exit_code_2(folder_url: str):
    for spec in ("no-such-name", f"{folder_url}/missing.pkl", "file:///etc/passwd"):
        result = call("--fetch", spec)
        assert (result.exit_code, result.stdout) == (2, "")
        assert result.stderr.startswith("Error: ")
        assert len(result.stderr.splitlines()) == 1


# -- Downloads are looked into ------------------------------------------------------------------------------------


def zipped(name: str, content: bytes) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(name, content)
    return file.getvalue()


NPZ = zipped("mu.npy", bytes(5000))
BAD = {
    "empty.pkl": b"",
    "json.pkl": b'{"requestStatus": {"statusCode": "SUCCESS"}}',
    "page.pkl": b"\n<!DOCTYPE html><html>Sign in</html>",
    "xml.pkl": b"\xef\xbb\xbf<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
    "lfs.pkl": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n",
    "text.pkl": b"Rate limit exceeded",
    "png.pkl": b"\x89PNG\r\n\x1a\n" + bytes(100),
    "half.npz": NPZ[: len(NPZ) // 2],
    "zeros.npz": NPZ[: len(NPZ) // 2] + bytes(len(NPZ) // 2),
    "page.zip": b"<html></html>",
    "text.pt": b"gone",
}


@pytest.mark.parametrize("name", BAD)
def test_bad_download_is_refused_and_got_anew(name: str, tmp_path: Path, cache: Path, folder_url: str):
    (tmp_path / "offered" / name).write_bytes(BAD[name])
    for _ in range(2):
        with pytest.raises(UserError) as caught:
            resolve(f"{folder_url}/{name}")
        assert f"{folder_url}/{name}" in str(caught.value)
        assert not list(cache.glob("*_" + name))
    good = WEIGHTS if name.endswith(".pkl") else NPZ
    (tmp_path / "offered" / name).write_bytes(good)
    assert resolve(f"{folder_url}/{name}").path.read_bytes() == good


@pytest.mark.parametrize("damage", ["half", "zeros", "text mode", "page"])
def test_damaged_network_in_the_cache_is_replaced(
    damage: str, tmp_path: Path, cache: Path, folder_url: str, fixture_path: Callable[[str], Path]
):
    """As a download of an older version, another tool or a full disk left it."""
    good = fixture_path("sg2ada/d_gray16.pkl").read_bytes()
    half = len(good) // 2
    bad = {
        "half": good[:half],
        "zeros": good[:half] + bytes(len(good) - half),
        "text mode": good.replace(b"\n", b"\r\n"),
        "page": b"<html>" + good,
    }[damage]
    (tmp_path / "offered" / "net.pkl").write_bytes(good)
    path = put_into_cache(cache, f"{folder_url}/net.pkl", bad)
    found = resolve(f"{folder_url}/net.pkl").path
    assert found.read_bytes() == good and not path.exists()


def test_file_that_is_whole_but_hostile_is_not_downloaded_again(cache: Path):
    """Reading it is what refuses it, with the reason."""
    url = "http://127.0.0.1:1/net.pkl"
    path = put_into_cache(cache, url, b"\x80\x04cos\nsystem\n\x8c\x04true\x85R.")
    assert resolve(url).path == path
    with pytest.raises(UserError, match=r"os\.system"):
        load_generator(url)


def test_files_of_a_pair_are_named_together(cache: Path):
    """Both would have to be downloaded."""
    urls = [f"http://127.0.0.1:1/{name}.pkl?token=t0ken" for name in ("gan", "teacher")]
    with pytest.raises(UserError) as caught:
        zoo.resolve_all([urls[0], "digits", urls[1]])
    said = str(caught.value)
    assert "t0ken" not in said
    for url in urls:
        assert without_secrets(url) in said and str(download.place_by_hand(url)) in said
    put_into_cache(cache, urls[0])
    with pytest.raises(download.DownloadError) as caught:
        zoo.resolve_all(urls)
    assert "gan.pkl" not in str(caught.value)
    put_into_cache(cache, urls[1])
    assert [file.spec for file in zoo.resolve_all([*urls, "digits"])] == [*urls, "digits"]
    with pytest.raises(UserError, match="no-such-name"):
        zoo.resolve_all(["http://127.0.0.1:1/x.pkl", "no-such-name"])


def test_spelling_that_may_be_written_down(cache: Path):
    url = "https://user:s3cret@host/net.pkl?token=t0ken"
    assert zoo.lasting(url) == "https://***@host/net.pkl?token=***"
    assert zoo.lasting(url) != zoo.lasting("ffhq") == "ffhq"
    path = put_into_cache(cache, url)
    assert zoo.lasting(url) == str(path) and resolve(zoo.lasting(url)).path == path
    assert zoo.lasting(FFHQ_URL) == FFHQ_URL and zoo.lasting("a?b@c") == "a?b@c"
