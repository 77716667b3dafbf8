from __future__ import annotations

import io
import json
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from browser import browser_page, find_browser
from click.testing import CliRunner
from PIL import Image

from refine.commands.report import main
from refine.errors import UserError
from refine.report import write_report
from refine.report.charts import line_chart
from refine.report.read import command, read_run, warnings

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
        self.text.append(data)


def parse(path: Path) -> WellFormed:
    parser = WellFormed()
    parser.feed(path.read_text(encoding="utf-8"))
    parser.close()
    assert parser.open == []
    return parser


def words(path: Path) -> str:
    return " ".join(parse(path).text)


def picture(value: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full([96, 160], value, dtype=np.uint8)).save(file, "PNG")
    return file.getvalue()


def metric_row(name, kimg, **results):
    pkl = f"network-snapshot-{kimg:06d}.pkl"
    return {
        "results": results,
        "metric": name,
        "total_time": 30.0,
        "num_gpus": 1,
        "snapshot_pkl": pkl,
        "timestamp": 1.0,
    }


def write_lines(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def rundir(tmp_path):
    """A finished run of 20 kimg with a falling FID."""
    folder = tmp_path / "00003-digits-edm-digits-ikl-batch32"
    folder.mkdir()
    options = {"gan": "digits", "teacher": "edm-digits", "kimg": 20.0, "batch": 32, "seed": 7, "share_forward": True}
    options |= {"glr": 2e-3, "sigma": "lognormal:0->0.3", "desc": None, "class_map": [0, 1], "objective": "ikl"}
    (folder / "training_options.json").write_text(json.dumps(options))
    rows = []
    for tick in range(1, 6):
        row = {"Progress/tick": tick, "Progress/kimg": 4.0 * tick, "Progress/num_nonfinite": 0}
        row |= {"Timing/total_sec": 30.0 + 20 * tick, "Timing/sec_per_tick": 12.0, "Timing/sec_per_kimg": 3.0}
        row |= {"Score/gap": 0.1 / tick, "Score/gap/sigma_0_0.1": 0.01 / tick, "Score/gap/sigma_6_inf": 0.3 / tick}
        row |= {"Loss/fake": 55.5, "Loss/fake/sigma_0.1_0.4": 44.5, "Drift/image": 0.25 * tick, "Novel/key": 3.5}
        rows.append(row)
    write_lines(folder / "stats.jsonl", rows)
    fids = {0: 345.678, 8: 120.0, 20: 34.5678}
    write_lines(
        folder / "metric-fid5k_full.jsonl", [metric_row("fid5k_full", k, fid5k_full=v) for k, v in fids.items()]
    )
    shares = {0: [0.5, 0.3, 0.2], 20: [0.34, 0.33, 0.33]}
    where = {"detector": {"name": "digits-detector.pt", "sha256": "ab"}, "num_images": 5000}
    rows = {kimg: {"provenance": where | {"class_shares": values}} for kimg, values in shares.items()}
    digits = [metric_row("digits5k", kimg, agreement=0.4 + kimg / 40) | rows[kimg] for kimg in shares]
    write_lines(folder / "metric-digits5k.jsonl", digits)
    for kimg in (0, 20):
        (folder / f"network-snapshot-{kimg:06d}.pkl").touch()
    (folder / "fakes_init.png").write_bytes(picture(40))
    (folder / "fakes000008.png").write_bytes(picture(90))
    (folder / "fakes000020.png").write_bytes(picture(200))
    return folder


def test_what_it_says(rundir):
    path = write_report([rundir])
    assert path == rundir / "report.html"
    text = words(path)
    for number in ("345.7", "34.57", "digits", "edm-digits", "20 kimg", "batch 32", "seed 7"):
        assert number in text, number
    assert "Score gap" in text and "sigma 0 to 0.1" in text and "sigma 6 to inf" in text
    assert "Novel/key" in text and "Drift/image" in text
    assert "fid5k_full: 345.68 at 0 kimg" in text  # what a point of the chart says
    # 5 ticks of 12 s, 5 rows of metrics of 30 s, 130 s in all: nothing is left over.
    assert re.search(r"steps\s+1m 00s\s+29%", text) and re.search(r"metrics\s+2m 30s\s+71%", text)
    assert "digits5k: detector digits-detector.pt, num_images 5000" in text
    assert "0 kimg, 0: 0.5" in text and "20 kimg, 2: 0.33" in text
    assert "left out" not in text and "rose" not in text and "Not finished" not in text


def test_before_and_after_are_the_first_and_the_last_picture(rundir):
    import base64

    sources = [value for tag, name, value in parse(write_report([rundir])).attributes if (tag, name) == ("img", "src")]
    pictures = [base64.b64decode(source.removeprefix("data:image/png;base64,")) for source in sources]
    assert pictures == [picture(200), picture(40)]


def test_nothing_comes_from_elsewhere(rundir):
    path = write_report([rundir, rundir], rundir / "both.html")
    parser = parse(path)
    for tag, name, value in parser.attributes:
        if name in ("src", "href", "data", "action", "poster", "srcset"):
            assert value.startswith("data:image/png;base64,"), (tag, name, value[:50])
        assert tag not in ("link", "iframe", "object", "base")
    text = path.read_text()
    assert "://" not in text and "url(" not in text and "@import" not in text and "fetch(" not in text


def test_it_imports_no_torch(rundir):
    code = "import sys\nfrom refine.report import write_report\nwrite_report([sys.argv[1]])\n"
    code += "assert not {'torch', 'numpy'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code, rundir], check=True, timeout=120)
    assert (rundir / "report.html").is_file()


def test_same_folder_same_page(rundir):
    first = write_report([rundir]).read_bytes()
    assert write_report([rundir]).read_bytes() == first


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ("metric", "fid5k_full rose from 34.57 at 20 kimg to 99 at 24 kimg: take network-snapshot-000020.pkl."),
        ("nonfinite", "3 updates were left out because a gradient was not finite."),
        ("snapshot", "fid5k_full was not measured for the snapshot at 16 kimg."),
        ("short", "Not finished: 16 of 20 kimg are done."),
        ("damaged", "1 lines or files could not be read and are left out."),
        ("none", "No metric was measured: pictures alone do not tell whether a generator got better."),
    ],
)
def test_warnings(rundir, change, sentence):
    assert warnings(read_run(rundir)) == []
    stats = (rundir / "stats.jsonl").read_text().splitlines()
    if change == "metric":
        with open(rundir / "metric-fid5k_full.jsonl", "a") as file:
            file.write(json.dumps(metric_row("fid5k_full", 24, fid5k_full=99.0)) + "\n")
    elif change == "nonfinite":
        write_lines(rundir / "stats.jsonl", [json.loads(line) | {"Progress/num_nonfinite": 3} for line in stats])
    elif change == "snapshot":
        (rundir / "network-snapshot-000016.pkl").touch()
    elif change == "short":
        (rundir / "stats.jsonl").write_text("\n".join(stats[:-1]))
    elif change == "damaged":
        (rundir / "stats.jsonl").write_text("\n".join([*stats, '{"Progress/kimg": 2']))
    else:
        for file in rundir.glob("metric-*"):
            file.unlink()
    assert sentence in warnings(read_run(rundir))
    assert sentence in words(write_report([rundir]))


def test_names_from_files_are_no_html(rundir):
    evil = '<script>alert(1)</script>"><img src=x onerror=alert(1)>'
    options = json.loads((rundir / "training_options.json").read_text()) | {"gan": evil, evil: evil}
    (rundir / "training_options.json").write_text(json.dumps(options))
    write_lines(
        rundir / "metric-evil.jsonl", [metric_row("evil", 0, **{evil: 1.0}), metric_row("evil", 20, **{evil: 2.0})]
    )
    with open(rundir / "stats.jsonl", "a") as file:
        file.write(json.dumps({"Progress/kimg": 20.0, evil: 1.0, f"Score/gap/sigma_{evil}_2": 2}) + "\n")
    parser = parse(write_report([rundir, rundir]))
    assert not any(name.startswith("on") for _, name, _ in parser.attributes)
    assert write_report([rundir]).read_text().count("<script") == 1


@pytest.mark.parametrize("value", [float("nan"), float("inf"), None, "text", [1], True, {"a": 1}])
def test_odd_values_are_passed_over(rundir, value):
    with open(rundir / "stats.jsonl", "a") as file:
        file.write(json.dumps({"Progress/kimg": 20.0, "Score/gap": value, "Odd/one": value}) + "\n")
    write_lines(
        rundir / "metric-odd.jsonl", [metric_row("odd", 0, odd=value), {"results": value, "snapshot_pkl": value}]
    )
    parse(write_report([rundir]))


def test_an_empty_run_is_no_error(tmp_path):
    (tmp_path / "training_options.json").write_text("{}")
    assert "No metric was measured" in words(write_report([tmp_path]))


def test_what_is_no_run(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match="give the folder of a run"):
            write_report([path])
    result = CliRunner().invoke(main, [str(tmp_path)])
    assert result.exit_code == 2 and "give the folder of a run" in result.output


def test_side_by_side(rundir, tmp_path):
    other = tmp_path / "00004-other"
    other.mkdir()
    for file in rundir.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    options = json.loads((other / "training_options.json").read_text()) | {"seed": 8}
    (other / "training_options.json").write_text(json.dumps(options))
    write_lines(other / "metric-fid5k_full.jsonl", [metric_row("fid5k_full", 0, fid5k_full=345.678)])
    result = CliRunner().invoke(main, [str(rundir), str(other), f"--out={tmp_path / 'both.html'}"])
    assert result.exit_code == 0 and result.output.strip() == str(tmp_path / "both.html")
    text = words(tmp_path / "both.html")
    assert "2 runs side by side" in text and "345.7 → 34.57" in text and "345.7 → 345.7" in text
    assert re.search(r"Options that differ\s+option\s+00003-\S+\s+00004-other\s+seed\s+7\s+8\s", text)


def test_chart_places_points_on_their_scale():
    """Equal steps on a linear scale, and equal factors on a logarithmic one, are equally far apart."""
    for values in ([2.0, 3.0, 4.0], [1.0, 10.0, 100.0]):
        svg = line_chart({"a": list(zip([0.0, 1.0, 2.0], values, strict=True))})
        places = [tuple(map(float, pair.split(","))) for pair in re.search(r'points="([^"]+)"', svg)[1].split()]
        assert places[1][0] - places[0][0] == pytest.approx(places[2][0] - places[1][0], abs=0.2)
        assert places[0][1] - places[1][1] == pytest.approx(places[1][1] - places[2][1], abs=0.2)
        assert places[0][1] > places[2][1]


def test_command_repeats_every_option(rundir):
    words = shlex.split(command(read_run(rundir)))
    assert words[:2] == ["python", "refine.py"]
    assert "--sigma=lognormal:0->0.3" in words and "--share-forward=1" in words and "--class-map=0,1" in words
    assert not any(word.startswith("--desc") for word in words)


def test_options_that_may_be_none_are_those_of_the_command_line():
    from refine.commands.run import main as refine_main
    from refine.report.read import _MAY_BE_NONE

    numbers = {parameter.name for parameter in refine_main.params if parameter.type.name.endswith("|none")}
    assert numbers == set(_MAY_BE_NONE)


def test_report_of_a_real_run_and_its_command(fixture_path, tmp_path):
    """The command in the report, given to the command line, does the same again."""
    from refine import RunConfig, run
    from refine.commands.run import main as refine_main

    pair = {"gan": fixture_path("sg2ada/b_cond16.pkl"), "teacher": fixture_path("edm/s4_sid_ddpmpp_cond16.pkl")}
    sizes = {"batch": 8, "kimg": 0.048, "warmup_kimg": 0.016, "tick_kimg": 0.016, "device": "cpu", "glr": 1e-3}
    config = RunConfig(**{n: str(p) for n, p in pair.items()}, outdir=str(tmp_path), ema_rampup=None, **sizes)
    first = read_run(run(config).parent)
    text = words(write_report([first.path]))
    assert "Score gap" in text and "Before and after" in text and "Not finished" not in text
    result = CliRunner().invoke(refine_main, shlex.split(command(first))[2:])
    assert result.exit_code == 0, result.output
    second = read_run(next(path for path in tmp_path.iterdir() if path.name.startswith("00001-")))
    assert second.options | {"preset": None} == first.options  # the command line names a preset that it took nothing of
    assert second.series("Score/gap") == first.series("Score/gap")


@pytest.mark.slow
def test_in_a_browser(rundir, tmp_path):
    """It renders on a phone and on a desk, the slider moves, nothing is complained about or asked for."""
    browser = find_browser()
    if browser is None:
        pytest.skip("there is no Chromium here (apt-get install chromium): the page was not opened in a browser")
    path = write_report([rundir, rundir], tmp_path / "report.html")
    with browser_page(browser, tmp_path / "profile") as page:
        page.open(path, 390, 844)
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        assert page.evaluate("[...document.images].every(i => i.complete && i.naturalWidth == 160)")
        assert page.evaluate("[...document.querySelectorAll('svg')].every(s => s.getBoundingClientRect().height > 50)")
        cut = "getComputedStyle(document.querySelector('.slider img + img')).clipPath"
        before, shot = page.evaluate(cut), page.screenshot()
        page.evaluate("document.querySelector('.slider').scrollIntoView()")
        box = "JSON.stringify(document.querySelector('input[type=range]').getBoundingClientRect())"
        rect = json.loads(page.evaluate(box))
        place = {"x": rect["x"] + rect["width"] * 0.9, "y": rect["y"] + rect["height"] / 2}
        for kind in ("mousePressed", "mouseReleased"):
            page.call("Input.dispatchMouseEvent", type=kind, button="left", clickCount=1, **place)
        after = page.evaluate(cut)
        assert before != after
        assert float(page.evaluate("document.querySelector('input[type=range]').value")) > 80
        colours = np.unique(np.asarray(Image.open(io.BytesIO(page.screenshot())).convert("L")))
        assert {40, 200} <= set(colours.tolist())  # both pictures are visible
        assert len(shot) > 1000
        assert page.complaints() == []
        assert [url for url in page.requests() if not url.startswith("data:")] == [path.resolve().as_uri()]
        page.open(path, 1280, 900)
        assert page.evaluate("document.documentElement.scrollWidth") <= 1280
