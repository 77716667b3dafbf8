"""The names that `import refine` offers."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import torch

import refine


def test_names_are_there_and_say_what_they_do():
    assert set(dir(refine)) == {*refine.__all__, "__version__"}
    for name in refine.__all__:
        documented = inspect.getdoc(getattr(refine, name))
        assert documented and len(documented.splitlines()) > 1, name
    for function in (
        refine.run,
        refine.load_generator,
        refine.load_teacher,
        refine.generate,
        refine.evaluate,
        refine.save,
    ):
        text = inspect.getdoc(function)
        assert "Args:" in text and "Raises:" in text, function
    with pytest.raises(AttributeError):
        refine.unheard_of  # noqa: B018


def test_generate_draws_what_the_scripts_draw(fixture_path):
    """NumPy's legacy numbers by seed, the same images one by one and together."""
    loaded = refine.load_generator(str(fixture_path("sg2ada/b_cond16.pkl")))
    images = refine.generate(loaded, [3, 1], class_index=2, truncation_psi=0.7)
    assert images.shape == (2, 3, 16, 16) and images.dtype == torch.float32
    z = torch.from_numpy(np.random.RandomState(1).randn(1, loaded.network.z_dim)).float()
    expected = loaded.network(z, torch.eye(5)[[2]], truncation_psi=0.7, noise_mode="const")
    torch.testing.assert_close(images[1:], expected)
    torch.testing.assert_close(refine.generate(loaded.network, [1], class_index=2, truncation_psi=0.7), expected)
    with pytest.raises(refine.UserError, match="5 classes"):
        refine.generate(loaded, [1])


def test_save_writes_the_present_weights(fixture_path, tmp_path):
    loaded = refine.load_generator(str(fixture_path("sg2ada/b_cond16.pkl")))
    with torch.no_grad():
        loaded.network.synthesis.b8.conv0.weight.mul_(2)
    refine.save(loaded, tmp_path / "new.pkl")
    again = refine.load_generator(str(tmp_path / "new.pkl"))
    for name, value in loaded.network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name]), name
