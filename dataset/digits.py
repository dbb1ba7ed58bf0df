"""The handwritten digits bundled with scikit-learn: a real data set that needs no download, for demonstrations.

1,797 scanned images of 8 x 8 pixels with values 0 to 16 (E. Alpaydin and C. Kaynak, UCI, 1998), enlarged to 32 x 32.
"""

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from .info import DatasetInfo, Split

TEST_SHARE = 0.2
SPLIT_SEED = 0


def _load(data_dir: str) -> tuple[Split, Split]:
    """Read the digits from the installed scikit-learn; data_dir is not needed."""
    images, labels = load_digits(return_X_y=True)
    gray = torch.from_numpy(images).view(-1, 1, 8, 8) * (255 / 16)
    # The weights of a fourfold bilinear enlargement are multiples of 1/8: float64 is exact, on every machine.
    gray = F.interpolate(gray, size=(32, 32), mode="bilinear", align_corners=False)
    images = gray.round().to(torch.uint8).permute(0, 2, 3, 1).repeat(1, 1, 1, 3).numpy()

    # RandomState, unlike numpy's newer generators, promises the same numbers in every release: the split is fixed.
    rng = np.random.RandomState(SPLIT_SEED)
    test = np.zeros(len(labels), dtype=bool)
    for digit in range(10):
        of_digit = rng.permutation(np.flatnonzero(labels == digit))
        test[of_digit[: round(TEST_SHARE * len(of_digit))]] = True
    return (images[~test], labels[~test]), (images[test], labels[test])


# Mean and standard deviation over all pixels of the training split (gray: the same in each channel).
digits = DatasetInfo(
    name="digits",
    num_classes=10,
    mean=(0.3057, 0.3057, 0.3057),
    std=(0.3241, 0.3241, 0.3241),
    flip=False,  # a mirrored digit is no digit
    load=_load,
    images=(1438, 359),
)
