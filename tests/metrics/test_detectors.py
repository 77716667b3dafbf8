"""Detectors: whom to trust, and what to say of those that do not do."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from refine import pickles, zoo
from refine.errors import UserError
from refine.files import download
from refine.metrics.detectors import OFFICIAL, Detector, DetectorChoices, load_detector

URL = "https://detectors.example.org/somebodys.pt"
FindPath = Callable[[str], Path]


@pytest.fixture
def tiny(fixture_path: FindPath) -> Path:
    return fixture_path("metrics/tiny_inception_s.pt")


@pytest.fixture
def downloaded(tiny: Path) -> Path:
    """The tiny detector, as if it had been downloaded from `URL`."""
    path = download.place_by_hand(URL)
    path.parent.mkdir(parents=True)
    shutil.copy(tiny, path)
    return path


def test_a_file_of_ones_own_needs_no_trust(tiny: Path) -> None:
    detector = load_detector(str(tiny))
    assert detector.sha256 == pickles.file_sha256(tiny) and not detector.official
    assert detector.provenance() == {
        "name": "tiny_inception_s.pt",
        "sha256": detector.sha256,
        "note": "not a known official detector",
    }


def test_one_from_the_internet_needs_trust(downloaded: Path) -> None:
    with pytest.raises(UserError, match="trust_detector") as caught:
        load_detector(URL)
    assert URL in str(caught.value) and pickles.file_sha256(downloaded) in str(caught.value)
    detector = load_detector(URL, trust=True)
    assert detector.path == downloaded and detector.name == "somebodys.pt"


def test_an_official_one_is_known_by_its_digest(downloaded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    official = next(entry for entry in zoo.ENTRIES if entry.name == OFFICIAL["inception"])
    assert official.sha256 == "f58cb9b6ec323ed63459aa4fb441fe750cfe39fafad6da5cb504a16f19e958f4"
    known = dataclasses.replace(official, sha256=pickles.file_sha256(downloaded), size=None)
    monkeypatch.setattr(zoo, "ENTRIES", (dataclasses.replace(known, url=URL),))
    detector = load_detector(OFFICIAL["inception"])
    assert detector.official and detector.provenance() == {"name": OFFICIAL["inception"], "sha256": known.sha256}


def test_names_of_the_zoo_and_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    assert {zoo.find(name).kind for name in OFFICIAL.values()} == {"detector"}  # type: ignore[union-attr]

    def chosen(**given: str) -> tuple[str, str]:
        choices = DetectorChoices.made(given)
        return choices["inception"], choices["vgg"]

    assert chosen() == (OFFICIAL["inception"], OFFICIAL["vgg"])
    assert chosen(inception="own.pt") == ("own.pt", OFFICIAL["vgg"])
    monkeypatch.setenv("REFINE_DETECTOR", "env.pt")
    assert chosen() == ("env.pt", OFFICIAL["vgg"]) and chosen(inception="own.pt", vgg="b.pt") == ("own.pt", "b.pt")


def test_outputs(inception: Detector, vgg: Detector) -> None:
    images = torch.randint(0, 256, (3, 3, 20, 20), dtype=torch.uint8)
    assert inception.features(images).shape == (3, 48)
    probabilities = inception.probabilities(images)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(3))
    assert vgg.features(images).shape == (3, 40) and vgg.lpips(images.float()).ndim == 2


class Bad(torch.nn.Module):
    def forward(self, images: torch.Tensor, return_features: bool = False) -> torch.Tensor:
        return images.float()


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_what_is_no_detector(tmp_path: Path, tiny: Path, fixture_path: FindPath, inception: Detector) -> None:
    truncated, empty, text = tmp_path / "truncated.pt", tmp_path / "empty.pt", tmp_path / "text.pt"
    truncated.write_bytes(tiny.read_bytes()[:5000])
    empty.write_bytes(b"")
    text.write_text("<html>no</html>")
    state = tmp_path / "state.pt"
    torch.save({"weight": torch.zeros(3)}, state)
    for path in (truncated, empty, text, state):
        with pytest.raises(UserError, match="TorchScript module") as caught:
            load_detector(str(path))
        assert str(path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500
    with pytest.raises(UserError, match="is a pickle"):
        load_detector(str(fixture_path("sg2ada/a_uncond32.pkl")))
    with pytest.raises(UserError, match=r"no file 'missing\.pt'"):
        load_detector("missing.pt")
    images = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(UserError, match="return_lpips=True") as caught:
        inception.lpips(images.float())
    assert "tiny_inception_s.pt" in str(caught.value) and "\n" not in str(caught.value)
    torch.jit.script(Bad()).save(str(tmp_path / "bad.pt"))
    with pytest.raises(UserError, match=r"returns \[2, 3, 8, 8\] for 2 images"):
        load_detector(str(tmp_path / "bad.pt")).features(images)
