"""Small data sets."""

import numpy as np

from dataset import DatasetInfo


def noise(data_dir):
    """150 and 40 images of noise around a level for each of 4 classes; nothing is read from data_dir."""
    rng = np.random.RandomState(0)
    labels = np.arange(190) % 4
    images = (rng.randint(0, 240, (190, 32, 32, 3)) + 5 * labels[:, None, None, None]).astype(np.uint8)
    return (images[:150], labels[:150]), (images[150:], labels[150:])


TINY = DatasetInfo("tiny", num_classes=4, mean=(0.5,) * 3, std=(0.25,) * 3, flip=True, load=noise)


def few(data_dir):
    """The first 40 and 16 of these."""
    (images, labels), (test_images, test_labels) = noise(data_dir)
    return (images[:40], labels[:40]), (test_images[:16], test_labels[:16])


# Of which augmentation makes nine views.
FEW = DatasetInfo("few", num_classes=4, mean=(0.5,) * 3, std=(0.25,) * 3, flip=False, padding=1, load=few)
