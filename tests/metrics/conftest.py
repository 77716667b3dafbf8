"""The golden detectors, data set and networks; a cache of the test's own."""

from metric_fixtures import conditional, data, denoiser, detectors, generator, inception, own_cache, vgg

__all__ = ["conditional", "data", "denoiser", "detectors", "generator", "inception", "own_cache", "vgg"]
