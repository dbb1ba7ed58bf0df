"""Persistence diagrams, persistence images, and the RipsNet that approximates them.

Importing this package, and everything in homology dimension 0, does without GUDHI.
"""

from .diagrams import (
    diagrams_of,
    dim0_deaths,
    dim1_critical_edges,
    dim1_diagrams,
    edge_lengths,
    minimum_spanning_trees,
    simplex_tree_diagram,
)
from .images import (
    SIGMA_POINTS,
    ImageSpec,
    birth_persistence,
    diagram_image,
    diagram_quality,
    dim0_images,
    dim1_images,
    r2_on_device,
    r2_score,
    released_sigma,
    subsample_sigma,
)
from .network import RipsNet
from .topology import ExactTopology, RipsNetTopology, WassersteinTopology

__all__ = [
    "ExactTopology",
    "ImageSpec",
    "RipsNet",
    "RipsNetTopology",
    "SIGMA_POINTS",
    "WassersteinTopology",
    "birth_persistence",
    "diagram_image",
    "diagram_quality",
    "diagrams_of",
    "dim0_deaths",
    "dim0_images",
    "dim1_critical_edges",
    "dim1_diagrams",
    "dim1_images",
    "edge_lengths",
    "minimum_spanning_trees",
    "r2_on_device",
    "r2_score",
    "released_sigma",
    "simplex_tree_diagram",
    "subsample_sigma",
]
