"""Inputs of a step: each kind of number has its own stream, and labels cycle."""

from __future__ import annotations

import torch

from refine.diffusion.noise_levels import Karras, LogNormal
from refine.networks.sampling import labels_in_turn
from refine.training.inputs import InputShape, draw, micro_batches

SHAPE = InputShape(batch=6, z_shape=(5,), c_dim=3, img_channels=2, img_resolution=4, augment_p=0.5)


def test_leaving_one_kind_out_changes_no_other():
    whole = draw(SHAPE, LogNormal(), Karras(), 7, "generator", 3)
    assert whole.noise.shape == whole.fake_noise.shape == (6, 2, 4, 4) and whole.c.sum(1).tolist() == [1] * 6
    without_fake = draw(SHAPE, LogNormal(), None, 7, "generator", 3)
    without_generator = draw(SHAPE, None, Karras(), 7, "generator", 3)
    for name in ("z", "c", "sigma", "noise"):
        assert torch.equal(getattr(whole, name), getattr(without_fake, name)), name
    for name in ("z", "c", "fake_sigma", "fake_noise", "augmentation"):
        assert torch.equal(getattr(whole, name), getattr(without_generator, name)), name
    assert not any(getattr(without_fake, name).numel() for name in ("fake_sigma", "fake_noise", "augmentation"))
    assert not any(getattr(without_generator, name).numel() for name in ("sigma", "noise"))


def test_other_seeds_streams_and_steps_draw_other_numbers():
    places = [(7, "generator", 3), (8, "generator", 3), (7, "fake0", 3), (7, "generator", 4)]
    draws = [draw(SHAPE, LogNormal(), LogNormal(), *place) for place in places]
    for name in ("z", "sigma", "noise", "fake_sigma", "fake_noise"):
        assert all(not torch.equal(getattr(draws[0], name), getattr(other, name)) for other in draws[1:]), name
    assert not torch.equal(draws[0].noise, draws[0].fake_noise)


def test_parts_make_up_the_whole():
    whole = draw(SHAPE, LogNormal(), LogNormal(), 0, "generator", 0)
    parts = [whole.part(part) for part in micro_batches(6, 4)]
    assert [len(part.z) for part in parts] == [4, 2]
    assert torch.equal(torch.cat([part.noise for part in parts]), whole.noise)


def test_labels_in_turn():
    assert labels_in_turn(5, 3).argmax(1).tolist() == [0, 1, 2, 0, 1]
    assert labels_in_turn(8, 3, columns=4).argmax(1).tolist() == [0, 1, 2, 0, 0, 1, 2, 0]
    assert labels_in_turn(4, 0).shape == (4, 0) and labels_in_turn(4, 3).sum(1).tolist() == [1, 1, 1, 1]
