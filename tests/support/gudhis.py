"""Diagrams and images as GUDHI makes them, and the recipe of the authors' released code: the truth for ours."""

import gudhi
import numpy as np
from gudhi.representations import PersistenceImage
from scipy.spatial.distance import cdist


def gudhi_bars(cloud, dim):
    tree = gudhi.RipsComplex(points=cloud.astype(np.float64)).create_simplex_tree(max_dimension=dim + 1)
    tree.compute_persistence()
    bars = tree.persistence_intervals_in_dimension(dim).reshape(-1, 2)
    return bars[np.isfinite(bars[:, 1])]


def gudhi_image(cloud, spec):
    imager = PersistenceImage(
        bandwidth=spec["sigma"],
        weight=lambda point: 10 * np.tanh(point[1]) + 10 * np.log(100 * point[0] + 1),
        resolution=spec.get("resolution", [20, 20]),
        im_range=spec["image_range"],
    )
    return imager.fit_transform([gudhi_bars(cloud, spec["dim"])])[0] / spec["maximum"]


def released_recipe(clouds, dim):
    """(sigma, image range), as the authors' code finds them: all diagrams, then the first 200 points."""
    bars = np.concatenate([gudhi_bars(cloud, dim) for cloud in clouds])
    points = np.column_stack([bars[:, 0], bars[:, 1] - bars[:, 0]])
    distances = cdist(points[:200], points[:200]).flatten()
    sigma = np.quantile(distances[distances > 1e-5], 0.2)
    return sigma, [points[:, 0].min(), points[:, 0].max(), points[:, 1].min(), points[:, 1].max()]
