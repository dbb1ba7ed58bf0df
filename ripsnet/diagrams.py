"""Persistence diagrams of the Vietoris-Rips filtration of point clouds, for Euclidean distances and no edge limit.

Dimension 0 needs no simplicial complex: every point is born at 0, and the finite death times are the edge lengths of a
minimum spanning tree (Kruskal's algorithm is the reduction of the boundary matrix). The trees of many clouds grow at
once, in tensor operations on the clouds' device. Dimension 1 is GUDHI's, which is imported on first use.
"""

import math

import numpy as np
import torch
from torch import Tensor

from .blocks import map_blocks

# Distances held at a time: on a CPU about what a core's cache holds, elsewhere enough to make a launch worth its time.
CPU_BLOCK = 1 << 18
ACCELERATOR_BLOCK = 1 << 26
# N n^3 up to which the (min, max) closure replaces Prim's algorithm there: two clouds of 256 points, for example.
ACCELERATOR_CLOSURE = 1 << 26


def _import_gudhi():
    try:
        import gudhi
        import gudhi.sklearn
    except ImportError as error:
        raise ImportError(
            f"homology dimension 1 needs GUDHI and scikit-learn ({error}): pip install gudhi scikit-learn"
        ) from error
    return gudhi


def at_least_float32(clouds: Tensor) -> Tensor:
    """float32 and float64 as they are; half precision, as clouds are stored, becomes float32."""
    return clouds if clouds.dtype == torch.float64 else clouds.float()


def _checked(clouds: Tensor) -> Tensor:
    if clouds.dim() != 3 or clouds.shape[1] == 0:
        raise ValueError(f"expected point clouds of shape (N, n, d) with n >= 1; found {tuple(clouds.shape)}")
    return at_least_float32(clouds.detach())


def _block_size(clouds: Tensor) -> int:
    """Clouds a block; wide ones count more, because their coordinates are copied."""
    _, n, d = clouds.shape
    limit = CPU_BLOCK if clouds.device.type == "cpu" else ACCELERATOR_BLOCK
    return limit // (n * max(n, d // 32))


def _distances(clouds: Tensor) -> Tensor:
    """Euclidean distances (N, n, d) -> (N, n, n), as exact as the dtype allows however close two points are.

    They come from differences of coordinates. For float32 clouds on a CPU, matrix products in float64 are several times
    faster, and what cancels there are digits that float32 does not have: with R the largest distance of a point from
    the centre of its cloud and u the unit roundoff of float64, |x|^2 + |y|^2 - 2 x.y is off by at most 4 (d + 5) u R^2
    (Higham, "Accuracy and Stability of Numerical Algorithms", section 3.1). Clouds where this exceeds float32 rounding
    of the smallest squared distance, such as those with duplicate points, take the differences. To find them is to wait
    for values, which would stall an accelerator, and differences are fast there.
    """
    if clouds.dtype == torch.float64 or clouds.device.type != "cpu":
        return _direct_distances(clouds)
    centred = clouds.double()
    centred -= centred.mean(dim=1, keepdim=True)
    squares = centred @ centred.mT
    norms = squares.diagonal(dim1=1, dim2=2).clone()
    squares.mul_(-2).add_(norms.unsqueeze(1)).add_(norms.unsqueeze(2))
    diagonal = squares.diagonal(dim1=1, dim2=2)
    error = 2 * (clouds.shape[2] + 5) * torch.finfo(torch.float64).eps * norms.amax(dim=1)
    diagonal.fill_(torch.inf)
    smallest = squares.amin(dim=(1, 2))
    diagonal.zero_()
    distances = squares.float().sqrt_()
    cancelled = error > torch.finfo(torch.float32).eps / 2 * smallest
    if cancelled.any():
        distances[cancelled] = _direct_distances(clouds[cancelled])
    return distances


def _direct_distances(clouds: Tensor) -> Tensor:
    return torch.cdist(clouds, clouds, compute_mode="donot_use_mm_for_euclid_dist")


def _prim(distances: Tensor) -> tuple[Tensor, Tensor]:
    """Prim's algorithm on a batch: (N, n, n) -> the order in which points join (N, n), edge lengths (N, n-1).

    Seven operations a round, whatever N; shapes are static, and the host never waits for a value.
    """
    count, n, _ = distances.shape
    rows = distances.reshape(count * n, n)
    first_row = torch.arange(count, device=distances.device) * n
    order = torch.zeros(n, count, dtype=torch.long, device=distances.device)
    lengths = distances.new_empty(n - 1, count)
    to_tree = distances[:, 0].clone()  # of every point, the distance to the tree
    joined = torch.zeros_like(to_tree)  # inf for the points of the tree, which start with point 0
    joined[:, 0] = torch.inf
    candidates, row, chosen = torch.empty_like(to_tree), torch.empty_like(to_tree), torch.empty_like(first_row)
    for k in range(1, n):
        torch.add(to_tree, joined, out=candidates)
        torch.argmin(candidates, dim=1, out=order[k])
        torch.add(first_row, order[k], out=chosen)
        torch.index_select(candidates.view(-1), 0, chosen, out=lengths[k - 1])
        joined.view(-1).index_fill_(0, chosen, torch.inf)
        torch.index_select(rows, 0, chosen, out=row)
        torch.minimum(to_tree, row, out=to_tree)
    return order.T, lengths.T


def _prim_edges(distances: Tensor) -> Tensor:
    """(N, n, n) -> (N, n-1, 2). Each point joins the tree by the edge to the nearest of the points before it."""
    order, _ = _prim(distances)
    count, n = order.shape
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(n, device=order.device).expand(count, n))
    later = rank.unsqueeze(1) >= rank.unsqueeze(2)
    predecessor = distances.masked_fill(later, torch.inf).argmin(dim=2)
    joining = order[:, 1:]
    return torch.stack([predecessor.gather(1, joining), joining], dim=-1)


def _minimax_edges(distances: Tensor) -> Tensor:
    """(N, n, n) -> (N, n-1, 2) in about 25 operations, where Prim's algorithm takes 7 n; each of them costs N n^3.

    An edge is in the minimum spanning tree if and only if no other path between its ends has shorter edges only. The
    longest edge of the best path between all pairs is the closure of the matrix under the (min, max) product, reached
    by squaring. Ranks stand in for the lengths, so that ties are broken alike everywhere.
    """
    count, n, _ = distances.shape
    device = distances.device
    i, j = torch.triu_indices(n, n, offset=1, device=device)
    by_length = distances[:, i, j].argsort(dim=1, stable=True)
    numbers = torch.arange(len(i), dtype=torch.int32, device=device).expand(count, -1)
    rank = torch.empty_like(numbers, memory_format=torch.contiguous_format).scatter_(1, by_length, numbers)
    closure = torch.full((count, n, n), -1, dtype=torch.int32, device=device)
    closure[:, i, j] = rank
    closure[:, j, i] = rank
    for _ in range(math.ceil(math.log2(max(1, n - 1)))):
        closure = torch.maximum(closure.unsqueeze(2), closure.unsqueeze(1)).amin(dim=-1)
    outside = len(i)  # a rank above all
    tree = torch.where(closure[:, i, j] == rank, rank, outside)
    ranks = tree.topk(n - 1, dim=1, largest=False, sorted=True).values
    pairs = by_length.gather(1, ranks.long())
    return torch.stack([i[pairs], j[pairs]], dim=-1)


@torch.no_grad()
def minimum_spanning_trees(clouds: Tensor) -> Tensor:
    """Edges of a minimum spanning tree of every point cloud.

    On an accelerator, where launches and not arithmetic bound the time of a few small clouds, the trees come from a
    (min, max) closure of the distances, otherwise from Prim's algorithm. Where several edges have the same length, the
    two may choose different trees; the sorted lengths are those of every minimum spanning tree.

    Args:
        clouds: (N, n, d) finite floating-point clouds, n >= 1, on any device.

    Returns:
        (N, n-1, 2) indices of points, int64; the order of the edges has no meaning.

    Raises:
        ValueError: for tensors of another shape.
    """
    clouds = _checked(clouds)
    count, n, _ = clouds.shape
    few = clouds.device.type != "cpu" and count * n**3 <= ACCELERATOR_CLOSURE
    edges = _minimax_edges if few else _prim_edges
    return map_blocks(lambda block: edges(_distances(block)), clouds, _block_size(clouds))


@torch.no_grad()
def dim0_deaths(clouds: Tensor) -> Tensor:
    """Persistence diagrams of dimension 0: the finite death times, in ascending order.

    Every birth is 0, and the one infinite bar of a cloud is left out. Duplicate points give bars of length zero, which
    stay in the array, so that its shape is static.

    Args:
        clouds: (N, n, d) finite floating-point clouds, n >= 1, on any device; half precision becomes float32.

    Returns:
        (N, n-1) float32 or float64, on the clouds' device, without gradient.

    Raises:
        ValueError: for tensors of another shape.
    """
    clouds = _checked(clouds)
    return map_blocks(lambda block: _prim(_distances(block))[1].sort(dim=1).values, clouds, _block_size(clouds))


def edge_lengths(clouds: Tensor, edges: Tensor) -> Tensor:
    """Lengths of given edges of point clouds, differentiable in the points.

    The gradient of the length of an edge between equal points is zero, one of its subgradients.

    Args:
        clouds: (N, n, d).
        edges: (N, m, 2) indices of points.

    Returns:
        (N, m).
    """
    cloud = torch.arange(len(clouds), device=clouds.device).unsqueeze(1)
    start, end = edges.unbind(-1)
    return torch.linalg.vector_norm(clouds[cloud, start] - clouds[cloud, end], dim=-1)


def _array(cloud: Tensor | np.ndarray) -> np.ndarray:
    """A point cloud as a float64 NumPy array, which is what GUDHI computes with."""
    return torch.as_tensor(cloud).detach().double().cpu().numpy()


def _finite_bars(diagram: np.ndarray) -> np.ndarray:
    """Leave out infinite bars and bars of length zero."""
    return diagram[np.isfinite(diagram[:, 1]) & (diagram[:, 1] > diagram[:, 0])]


def dim1_diagrams(clouds: Tensor | np.ndarray, n_jobs: int = -1) -> list[np.ndarray]:
    """Persistence diagrams of dimension 1, by GUDHI's fork of Ripser (`gudhi.sklearn.RipsPersistence`).

    GUDHI releases the interpreter lock while it computes, so threads share the clouds in large pieces. The bars equal
    those of GUDHI's SimplexTree, in another order.

    Args:
        clouds: (N, n, d) tensor or array, n >= 1; computed in float64 on the CPU.
        n_jobs: threads, as joblib counts them: -1 for all cores.

    Returns:
        A list of N float64 arrays (k, 2) of birth and death times, infinite bars and bars of length zero left out.

    Raises:
        ImportError: without GUDHI or scikit-learn.
    """
    gudhi = _import_gudhi()
    import joblib

    clouds = _array(clouds)
    threads = joblib.effective_n_jobs(n_jobs)
    size = max(1, min(64, math.ceil(len(clouds) / threads)))
    rips = gudhi.sklearn.RipsPersistence(homology_dimensions=1)
    parts = joblib.Parallel(n_jobs=threads, prefer="threads")(
        joblib.delayed(rips.fit_transform)(clouds[start : start + size]) for start in range(0, len(clouds), size)
    )
    return [_finite_bars(diagram) for part in parts for diagram in part]


def diagrams_of(clouds: Tensor, dim: int) -> Tensor | list[np.ndarray]:
    """`dim0_deaths` or `dim1_diagrams` of clouds (N, n, d), by homology dimension."""
    return dim0_deaths(clouds) if dim == 0 else dim1_diagrams(clouds)


def dim1_critical_edges(cloud: Tensor | np.ndarray) -> tuple[Tensor, Tensor]:
    """The edges that create and destroy the bars of dimension 1: their lengths are the birth and death times.

    Poulenard, Skraba, Ovsjanikov, "Topological Function Optimization for Continuous Shape Matching", 2018: a birth or
    death time is the filtration value of a simplex, in a Rips filtration the length of the simplex's longest edge. A
    death time that belongs to one edge only names that edge, and likewise a birth time. Where lengths are tied, GUDHI's
    `flag_persistence_generators` finds the edges, at about ten times the cost.

    Args:
        cloud: (n, d) tensor or array; computed in float64 on the CPU.

    Returns:
        Two int64 tensors (k, 2) on the CPU: the ends of the edges of the births, and of the deaths, bar by bar; bars of
        length zero left out.

    Raises:
        ImportError: without GUDHI or scikit-learn.
    """
    gudhi = _import_gudhi()
    distances = _distances(torch.from_numpy(_array(cloud)).unsqueeze(0))[0].numpy()
    rips = gudhi.sklearn.RipsPersistence(homology_dimensions=1, input_type="full distance matrix")
    bars = _finite_bars(rips.fit_transform([distances])[0])
    i, j = np.triu_indices(len(distances), k=1)
    by_length = distances[i, j].argsort()
    lengths = distances[i, j][by_length]
    position = np.searchsorted(lengths, bars)
    if (np.searchsorted(lengths, bars, side="right") - position == 1).all():
        pairs = by_length[position]
        births, deaths = np.moveaxis(np.stack([i[pairs], j[pairs]], axis=-1), 1, 0)
    else:
        births, deaths = _generators(gudhi, distances)
    return torch.from_numpy(births), torch.from_numpy(deaths)


def _generators(gudhi, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    # Past the smallest radius at which one point reaches all others, the complex is a cone and its homology settled.
    radius = distances.max(axis=1).min()
    complex = gudhi.RipsComplex(distance_matrix=distances, max_edge_length=radius)
    tree = complex.create_simplex_tree(max_dimension=2)
    tree.compute_persistence()
    _, generators, _, _ = tree.flag_persistence_generators()
    births, deaths = np.split(np.reshape(generators[0] if generators else [], (-1, 4)).astype(np.int64), 2, axis=1)
    lasting = distances[births[:, 0], births[:, 1]] < distances[deaths[:, 0], deaths[:, 1]]
    return births[lasting], deaths[lasting]


def simplex_tree_diagram(cloud: Tensor | np.ndarray, dim: int) -> np.ndarray:
    """Persistence diagram of one cloud by TopKD's released recipe: GUDHI's RipsComplex and SimplexTree.

    The reference for the functions above, and the order of bars that the released sigma assumes.

    Args:
        cloud: (n, d) tensor or array.
        dim: homology dimension, 0 or 1.

    Returns:
        (k, 2) float64 array of birth and death times; infinite bars left out, and bars of length zero, as the
        SimplexTree does.

    Raises:
        ImportError: without GUDHI.
    """
    gudhi = _import_gudhi()
    tree = gudhi.RipsComplex(points=_array(cloud)).create_simplex_tree(max_dimension=dim + 1)
    tree.compute_persistence()
    return _finite_bars(tree.persistence_intervals_in_dimension(dim).reshape(-1, 2))
