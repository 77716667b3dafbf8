"""Real images to stand beside generated ones: a random image of the same class in each place of a grid."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from refine.files.dataset import ImageDataset


def matching_items(
    labels: np.ndarray | None, num_items: int, classes: Sequence[int | None], seed: int = 0
) -> list[int | None]:
    """A random item of a data set for each wanted class.

    No item is taken twice before all of its class have been taken.

    Args:
        labels: Classes [N] of the items, or label vectors [N, D], whose largest entry is the class; None: There are no
            labels, and any item will do.
        num_items: Number N of items.
        classes: Wanted class of each place; None: Any item will do.
        seed: Seed of the choice.

    Returns:
        An item for each place; None where the data set has no item of that class.
    """
    of_items = labels if labels is None or labels.ndim == 1 else labels.argmax(axis=1)
    order = np.random.RandomState(seed).permutation(num_items)
    queues: dict[int | None, np.ndarray] = {}
    taken: dict[int | None, int] = {}
    chosen: list[int | None] = []
    for wanted in classes:
        number = None if of_items is None else wanted
        if number not in queues:
            queues[number] = order if number is None or of_items is None else order[of_items[order] == number]
        queue, position = queues[number], taken.get(number, 0)
        taken[number] = position + 1
        chosen.append(int(queue[position % len(queue)]) if len(queue) else None)
    return chosen


def matching_images(dataset: ImageDataset, classes: Sequence[int | None], seed: int = 0) -> np.ndarray:
    """Images uint8 [N, C, H, W] of the wanted classes, as `matching_items` chooses them.

    Places without an image are white.

    Args:
        dataset: Images, with labels or without.
        classes: Wanted class of each place; None: Any image.
        seed: Seed of the choice.

    Raises:
        UserError: An image cannot be read.
    """
    labels = dataset.raw_labels if dataset.raw_labels is None else dataset.raw_labels[dataset.raw_indices]
    items = matching_items(labels, len(dataset), classes, seed)
    assert dataset.image_shape is not None
    images = np.full((len(items), *dataset.image_shape), 255, np.uint8)
    for place, item in enumerate(items):
        if item is not None:
            images[place] = dataset.image(item)
    return images
