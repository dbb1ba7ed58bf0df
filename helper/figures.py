"""Figures of persistence images. Drawn without pyplot, which keeps figures alive and wants a display."""

import math

import numpy as np
from matplotlib.figure import Figure


def image_panel(images: dict[str, np.ndarray], columns: int = 2) -> Figure:
    """Persistence images (rows, columns of pixels) under their names, row by row, on one colour scale from 0."""
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(1 + 2 * columns, 0.6 + 2.2 * rows))
    brightest = max(image.max() for image in images.values())
    for number, (name, image) in enumerate(images.items(), 1):
        ax = figure.add_subplot(rows, columns, number, title=name, xticks=[], yticks=[])
        drawn = ax.imshow(image, origin="lower", cmap="viridis", vmin=0, vmax=brightest)
    figure.colorbar(drawn, ax=figure.axes)
    figure.supxlabel("birth")
    figure.supylabel("persistence")
    return figure
