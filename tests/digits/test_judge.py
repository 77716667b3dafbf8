"""The judgement of a run on the digits pair."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from refine import RunConfig, run
from refine.digits.figures import teacher_sampler
from refine.digits.judge import digits_measure, main
from refine.errors import UserError
from refine.networks.loading import load_teacher


class Teacher(torch.nn.Module):
    """The teacher in the place of a generator, few steps: what a perfect refinement would come to."""

    z_dim = 1

    def __init__(self):
        super().__init__()
        self.sampler = teacher_sampler(load_teacher("edm-digits").network)

    def forward(self, z, c):
        return self.sampler(c)


def test_a_run_is_judged_and_reported(tmp_path):
    sizes = {"batch": 4, "kimg": 0.004, "warmup_kimg": 0.004, "tick_kimg": 0.004, "preflight": False}
    folder = run(RunConfig(gan="digits", teacher="edm-digits", outdir=str(tmp_path), **sizes)).parent
    result = CliRunner().invoke(main, [str(tmp_path / "latest"), "--samples=100"])
    assert result.exit_code == 0, result.output
    assert "network-snapshot-000000_004.pkl fid " in result.output
    _, row = map(json.loads, (folder / "metric-digits100_test.jsonl").read_text().splitlines())
    assert sum(row["provenance"]["class_shares"]) == pytest.approx(1)
    assert "not Inception" in row["provenance"]["detector"]
    before, picture = (Image.open(folder / name) for name in ("fakes_init.png", "before-after.png"))
    assert picture.size == (2 * 3 * before.width + 8, 3 * before.height)
    assert (np.asarray(picture)[::3, : 3 * before.width : 3] == np.asarray(before)).all()
    assert "What the images are taken for" in (folder / "report.html").read_text()


def test_the_teacher_is_judged_better_than_the_generator():
    from refine import load_gan

    measure = digits_measure("selection", 100)
    bad, good = (
        measure(n, "network-snapshot-000000.pkl")[0]["results"] for n in (load_gan("digits").network, Teacher())
    )
    assert good["fid_digits100_selection"] < 0.3 * bad["fid_digits100_selection"]
    assert good["agreement_digits100_selection"] > 0.9 > 0.5 > bad["agreement_digits100_selection"]


def test_measuring_leaves_the_random_numbers_alone():
    from refine import load_gan

    measure, G = digits_measure("selection", 100), load_gan("digits").network
    torch.manual_seed(5)
    expected = torch.randn(3)
    torch.manual_seed(5)
    first = measure(G, "network-snapshot-000000.pkl")[0]["results"]
    assert torch.equal(torch.randn(3), expected)
    assert measure(G, "network-snapshot-000000.pkl")[0]["results"] == first


def test_what_cannot_be_judged(tmp_path, fixture_path):
    from refine.digits.judge import judge

    with pytest.raises(UserError, match="holds no network-snapshot"):
        judge(tmp_path)
    (tmp_path / "network-snapshot-000000.pkl").write_bytes(fixture_path("sg2ada/b_cond16.pkl").read_bytes())
    with pytest.raises(UserError, match="digits pair"):
        judge(tmp_path)
