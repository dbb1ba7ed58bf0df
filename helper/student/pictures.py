"""Pictures of a student's state for TensorBoard."""

import math
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def image_panel(images: dict[str, np.ndarray]) -> "Figure":
    """Persistence images (rows, columns of pixels) under their names, line by line, on one colour scale from 0: a quick
    look during training."""
    from matplotlib.figure import Figure  # only here, because importing matplotlib takes time

    columns = 2
    lines = math.ceil(len(images) / columns)
    figure = Figure(figsize=(1 + 2 * columns, 0.6 + 2.2 * lines))
    brightest = max(image.max() for image in images.values())
    for number, (name, image) in enumerate(images.items(), 1):
        ax = figure.add_subplot(lines, columns, number, title=name, xticks=[], yticks=[])
        drawn = ax.imshow(image, origin="lower", cmap="viridis", vmin=0, vmax=brightest)
    figure.colorbar(drawn, ax=figure.axes)
    figure.supxlabel("birth")
    figure.supylabel("persistence")
    return figure
