"""The page: what it says, that it is whole by itself, and that nothing in a run's folder breaks it."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from browser import browser_page, find_browser
from click.testing import CliRunner
from PIL import Image
from run_folder import finished_run, grid_of, metric_row, write_lines

from refine.commands.report import main
from refine.errors import UserError
from refine.report import pictures, try_write_report, write_report

VOID = {"meta", "img", "input", "br", "link"}


class WellFormed(HTMLParser):
    """Collects tags, attributes and text, and notices what is not closed."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text: list[str] = []

    def handle_starttag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, (tag, self.open)

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text.append(data)


def parse(path: Path) -> WellFormed:
    parser = WellFormed()
    parser.feed(path.read_text(encoding="utf-8"))
    parser.close()
    assert parser.open == []
    return parser


def words(path: Path) -> str:
    return " ".join(" ".join(parse(path).text).split())


def images(path: Path) -> list[Image.Image]:
    sources = [value for tag, name, value in parse(path).attributes if (tag, name) == ("img", "src")]
    return [Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) for source in sources if source]


def test_the_verdict_comes_first(rundir):
    path = write_report([rundir])
    assert path == rundir / "report.html"
    text = words(path)
    verdict = "Better FID 346 → 34.6 (-90 %) teacher 14.1 real images 14.4 no class lost 2m 10s on Some CPU, 2 cores"
    assert verdict in text.replace("\N{NO-BREAK SPACE}", " ")
    assert text.index("Better") < text.index("Images")


def test_what_it_says(rundir):
    text = words(write_report([rundir]))
    assert "digits refined with edm-digits" in text and rundir.name in text
    # The table of metrics: start, best and its kimg, end, change, teacher, real images.
    assert re.search(r"FID ↓ 346 34\.6 \(20\) 34\.6 -90.% 14\.1 14\.4", text)
    assert re.search(r"Class agreement ↑ 0\.4 0\.9 \(20\) 0\.9 \+0\.5", text)
    assert "FID: 345.68 at 0 kimg" in text  # what a point of the chart says
    assert "Score gap" in text and "sigma 0 to 0.1" in text and "sigma 6 and above" in text
    assert "Novel/key" in text and "Drift of the images" in text
    # 20 kimg at 3 s, 5 rows of metrics of 30 s: more than the 130 s in all, so nothing is left over.
    assert "Time of steps 1m 00s (29%)" in text and "Time of metrics 2m 30s (71%)" in text
    assert "digits5k_agreement: detector digits-detector.pt; images 5000" in text and "teacher: 5000 samples" in text
    assert "0 kimg, 0: 50" in text and "20 kimg, 2: 33" in text  # classes, in percent
    assert "No mismatch found." in text and "0.1 0.5 0.1 5 1 0.6 0.3 2" in text  # the preflight, with its ratios
    assert "0.1.0 (abc1234)" in text and "2.13.0" in text and "2027-01-15 08:00 UTC" in text and "ef" * 32 in text
    assert "--seed=7" in text


def test_pictures_before_after_and_real(rundir):
    """Whole, and as a strip over all snapshots with the real ones below."""
    found = images(write_report([rundir]))
    grays = [int(np.median(np.asarray(picture.convert("L")))) for picture in found]
    assert grays == [40, 200, 120, 40, 90, 200, 120]
    assert {picture.size for picture in found[3:]} == {(10 * 64 + 9 * 2, 64)}  # a row of ten images


def test_pictures_without_a_layout_are_shown_too(rundir, bare_picture):
    for name in ("fakes_init.png", "fakes000008.png", "fakes000020.png"):
        bare_picture.save(rundir / name)
    (rundir / "reals.png").unlink()
    assert [picture.size for picture in images(write_report([rundir]))] == [(160, 96)] * 5


def test_a_long_run_has_a_strip_of_bounded_length(rundir):
    for kimg in range(30, 60):
        grid_of(rundir / f"fakes{kimg:06d}.png", kimg)
    found = images(write_report([rundir]))
    grays = [int(np.median(np.asarray(picture.convert("L")))) for picture in found]
    assert len(found) == 3 + 10 + 1
    assert grays[3] == 40 and grays[-2:] == [59, 120]  # the first and the last one, and the real images


def test_large_pictures_are_reduced(rundir):
    noise = np.random.RandomState(0).randint(0, 256, [300, 3000, 3], dtype=np.uint8)
    Image.fromarray(noise).save(rundir / "fakes000020.png")
    path = write_report([rundir])
    assert path.stat().st_size < 3_000_000
    assert max(images(path)[1].size) == 2200


def test_each_picture_is_read_once_until_it_changes(rundir, monkeypatch):
    opened, original = [], Image.open
    monkeypatch.setattr(pictures.Image, "open", lambda file: opened.append(Path(str(file)).name) or original(file))
    first = images(write_report([rundir]))
    opened.clear()
    write_report([rundir])
    assert len(first) == 7 and not opened
    grid_of(rundir / "fakes000020.png", 10)
    path = write_report([rundir])
    assert set(opened) == {"fakes000020.png"}
    grays = [int(np.median(np.asarray(picture.convert("L")))) for picture in images(path)]
    assert grays == [40, 10, 120, 40, 90, 10, 120]


@pytest.mark.parametrize(("noisy_rows", "kind"), [(0, "PNG"), (40, "PNG"), (2000, "WEBP")])
def test_only_small_pictures_are_compressed_without_loss(noisy_rows, kind):
    pixels = np.zeros([2000, 2000, 3], dtype=np.uint8)
    pixels[:noisy_rows] = np.random.RandomState(0).randint(0, 256, [noisy_rows, 2000, 3])
    found = pictures._encoded(Image.fromarray(pixels), 1)
    assert (found.width, found.height) == (2000, 2000) and f"image/{kind.lower()}" in found.uri[:20]


def test_a_damaged_picture_is_left_out(rundir):
    (rundir / "fakes000020.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing more")
    assert len(images(write_report([rundir]))) == 2 + 3


def test_nothing_comes_from_elsewhere(rundir):
    path = write_report([rundir, rundir], rundir / "both.html")
    parser = parse(path)
    for tag, name, value in parser.attributes:
        if name == "href":
            assert (rundir / unquote(value)).exists(), value
        elif name in ("src", "data", "action", "poster", "srcset"):
            assert re.match(r"data:image/(png|webp|jpeg);base64,", value) or not value, (tag, name, value[:50])
        assert tag not in ("link", "iframe", "object", "base")
    text = path.read_text()
    assert "://" not in text and "url(" not in text and "@import" not in text and "fetch(" not in text


def test_links_lead_to_the_files_from_wherever_the_page_is(rundir, tmp_path):
    out = tmp_path / "elsewhere" / "deeper" / "report.html"
    out.parent.mkdir(parents=True)
    links = [value for _, name, value in parse(write_report([rundir], out)).attributes if name == "href"]
    assert len(links) >= 4
    assert all((out.parent / unquote(link)).resolve().exists() for link in links)


def test_it_imports_no_torch(rundir):
    code = "import sys\nfrom refine.report import write_report\nwrite_report([sys.argv[1]])\n"
    code += "assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, rundir], check=True, timeout=120)
    assert (rundir / "report.html").is_file()


def test_same_folder_same_page(rundir):
    first = write_report([rundir]).read_bytes()
    assert write_report([rundir]).read_bytes() == first


EVIL = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'


def test_names_from_files_are_no_html(rundir):
    options = json.loads((rundir / "training_options.json").read_text()) | {"gan": EVIL, EVIL: EVIL}
    (rundir / "training_options.json").write_text(json.dumps(options))
    rows = [metric_row("evil", kimg, **{EVIL: kimg + 1.0}) | {"provenance": {"note": EVIL}} for kimg in (0, 20)]
    write_lines(rundir / "metric-evil.jsonl", rows)
    with open(rundir / "stats.jsonl", "a") as file:
        file.write(json.dumps({"Progress/kimg": 20.0, EVIL: 1.0, f"Score/gap/sigma_{EVIL}_2": 2}) + "\n")
    (rundir / "log.txt").write_text(f"Warning: {EVIL}\n")
    (rundir / "yardsticks.json").write_text(json.dumps([{"name": EVIL, "note": EVIL, "results": {"fid5k_full": 1}}]))
    write_lines(rundir / "sessions.jsonl", [{"timestamp": 1.0, "cpu": EVIL, "sha256": {EVIL: EVIL}}])
    (rundir / "preflight.json").write_text(json.dumps({"verdict": EVIL, "warnings": [EVIL]}))
    parser = parse(write_report([rundir, rundir]))
    assert not any(name.startswith("on") for _, name, _ in parser.attributes)
    assert write_report([rundir]).read_text().count("<script") == 1


def test_secrets_in_addresses_stay_out(rundir):
    secret = "https://me:hunter2@host/a.pkl?token=s3cr3t"
    options = json.loads((rundir / "training_options.json").read_text()) | {"gan": secret, "data": secret}
    (rundir / "training_options.json").write_text(json.dumps(options))
    (rundir / "log.txt").write_text(f"Warning: {secret} is slow.\n")
    text = write_report([rundir, rundir]).read_text()
    assert "hunter2" not in text and "s3cr3t" not in text and "a.pkl" in text


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "text", [1], True, {"a": 1}, [], {}, -1e300])
@pytest.mark.parametrize(
    "name",
    ["stats.jsonl", "metric-odd.jsonl", "sessions.jsonl", "preflight.json", "yardsticks.json", "training_options.json"],
)
def test_odd_values_are_passed_over(rundir, name, value):
    keys = {
        "stats.jsonl": ("Progress/kimg", "Score/gap", "Odd/one", "timestamp", "Timing/sec_per_kimg", "W/std"),
        "metric-odd.jsonl": ("results", "snapshot_pkl", "provenance", "total_time", "timestamp", "intervals"),
        "sessions.jsonl": ("timestamp", "cpu", "cores", "gpu", "num_processes", "sha256", "commit"),
        "preflight.json": ("sigmas", "generator_loss", "warnings", "verdict"),
        "yardsticks.json": ("name", "results", "note"),
        "training_options.json": ("kimg", "gan", "preset", "batch", "class_map"),
    }[name]
    good = metric_row("odd", 0, odd=1.0) if "metric" in name else {"Progress/kimg": 20.0, "timestamp": 1.0}
    lines = [value, *({**good, key: value} for key in keys)]
    if name.endswith("l"):
        with open(rundir / name, "a") as file:
            file.write("".join(json.dumps(line) + "\n" for line in lines))
        parse(write_report([rundir]))
        return
    for line in (value, dict.fromkeys(keys, value)):
        (rundir / name).write_text(json.dumps([line] if name == "yardsticks.json" else line))
        parse(write_report([rundir]))


def test_damaged_files_are_counted(rundir):
    with open(rundir / "stats.jsonl", "a") as file:
        file.write('{"Progress/kimg": 2\n')
    (rundir / "preflight.json").write_text("{")
    assert "2 lines or files could not be read and are left out." in words(write_report([rundir]))


def test_an_empty_run_is_no_error(tmp_path):
    (tmp_path / "training_options.json").write_text("{}")
    assert "No metric was measured" in words(write_report([tmp_path]))


def test_what_is_no_run(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=re.escape(str(path))):
            write_report([path])
    result = CliRunner().invoke(main, [str(tmp_path)])
    assert result.exit_code == 2 and str(tmp_path) in result.output


def test_a_report_never_ends_a_run(rundir, caplog, monkeypatch):
    assert try_write_report(rundir) == rundir / "report.html"
    assert not caplog.records
    assert try_write_report(rundir / "missing") is None
    monkeypatch.setattr("refine.report.page", lambda *args: 1 / 0)
    assert try_write_report(rundir) is None
    first, second = (record.getMessage() for record in caplog.records)
    assert str(rundir / "missing") in first and "ZeroDivisionError" in second


def test_side_by_side(rundir, tmp_path):
    other = finished_run(tmp_path / "00004-other")
    options = json.loads((other / "training_options.json").read_text()) | {"seed": 8}
    (other / "training_options.json").write_text(json.dumps(options))
    write_lines(other / "metric-fid5k_full.jsonl", [metric_row("fid5k_full", 0, fid5k_full=345.678)])
    result = CliRunner().invoke(main, [str(rundir), str(other), f"--out={tmp_path / 'both.html'}"])
    assert result.exit_code == 0 and result.output.strip() == str(tmp_path / "both.html")
    text = words(tmp_path / "both.html")
    assert "2 runs side by side" in text
    assert f"A {rundir.name} B 00004-other" in text
    assert "verdict Better Not measured" in text and "FID 346 → 34.6 346" in text
    assert "Options that differ seed 7 8" in text


def test_many_runs_have_letters():
    from refine.report.page import letter

    assert [letter(i) for i in (0, 25, 26, 53)] == ["A", "Z", "A1", "B2"]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_in_a_browser(rundir, tmp_path, scheme):
    """It fits a phone and a desk, pictures enlarge and flip, nothing is complained about or asked for."""
    browser = find_browser()
    if browser is None:
        pytest.skip("there is no Chromium here (apt-get install chromium): the page was not opened in a browser")
    single = write_report([rundir])
    several = write_report([rundir] * 5, tmp_path / "several.html")
    with browser_page(browser, tmp_path / "profile") as page:
        page.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        for path in (single, several):
            for width, height in ((400, 844), (1280, 900)):
                page.open(path, width, height)
                assert page.evaluate("document.documentElement.scrollWidth") <= width
                assert page.evaluate("[...document.images].every(i => i.complete)")
                hidden = "[...document.querySelectorAll('body > :not(details) svg')]"
                assert page.evaluate(
                    f"{hidden}.every(s => s.closest('details') || s.getBoundingClientRect().height > 50)"
                )
                tables = (
                    "[...document.querySelectorAll('.scroll')].filter(t => t.scrollWidth > t.clientWidth + 1).length"
                )
                assert page.evaluate(tables) == 0  # nothing is cut off
                assert page.complaints() == []
                assert [url for url in page.requests() if not url.startswith("data:")] == [path.resolve().as_uri()]
        page.open(single, 400, 844)
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(13, 17, 23)")
        shown = "document.querySelector('dialog .stage img').alt"
        assert page.evaluate("document.querySelector('dialog').open") is False
        page.evaluate("document.querySelector('.pictures button').click()")
        assert page.evaluate("document.querySelector('dialog').open") is True
        seen = [page.evaluate(shown)]
        for _ in range(3):
            for kind in ("keyDown", "keyUp"):
                page.call("Input.dispatchKeyEvent", type=kind, key="ArrowRight", code="ArrowRight")
            seen.append(page.evaluate(shown))
        assert seen == ["before", "after 20 kimg", "real images", "before"]
        pixels = np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L"))
        assert (pixels == 40).sum() > 10_000  # the first picture fills the window
        page.evaluate("document.querySelector('dialog .close').click()")
        assert page.evaluate("document.querySelector('dialog').open") is False
        page.evaluate("document.querySelector('button.copy').click()")
        assert page.evaluate("document.querySelector('button.copy').textContent") in ("Copied", "Selected", "Copy")
        assert page.complaints() == []
