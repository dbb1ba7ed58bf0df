"""Figures of persistence images. Drawn without pyplot, which keeps figures alive and wants a display."""

import math

import numpy as np
from matplotlib.figure import Figure


def image_panel(images: dict[str, np.ndarray], columns: int = 2) -> Figure:
    """Persistence images (rows, columns of pixels) under their names, row by row, on one colour scale from 0."""
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(2.2 * columns, 2.2 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).flat
    brightest = max(image.max() for image in images.values())
    for ax, (name, image) in zip(axes, images.items(), strict=False):
        drawn = ax.imshow(image, origin="lower", cmap="viridis", vmin=0, vmax=brightest)
        ax.set(title=name, xticks=[], yticks=[], xlabel="birth", ylabel="persistence")
    figure.colorbar(drawn, ax=list(figure.axes), aspect=12 * rows)
    return figure
