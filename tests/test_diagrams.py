"""Persistence diagrams against GUDHI's SimplexTree, SciPy's spanning tree, and diagrams worked by hand."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from scipy.spatial.distance import cdist, pdist, squareform

from ripsnet import diagrams as implementation
from ripsnet import (
    dim0_deaths,
    dim1_critical_edges,
    dim1_diagrams,
    edge_lengths,
    minimum_spanning_trees,
    simplex_tree_diagram,
)

SHAPES = ["random", "relu", "clustered", "distant", "duplicated", "collinear", "grid"]


def make_cloud(shape, n, d, seed):
    """One float64 cloud (n, d)."""
    rng = np.random.default_rng(seed)
    cloud = rng.normal(size=(n, d))
    if shape == "relu":
        return np.maximum(cloud, 0)
    if shape == "clustered":
        return 5 * rng.normal(size=(4, d))[rng.integers(4, size=n)] + 0.1 * cloud
    if shape == "distant":
        return 1e3 * rng.normal(size=(3, d))[rng.integers(3, size=n)] + 1e-6 * cloud
    if shape == "duplicated":
        return cloud[rng.integers(max(1, n // 2), size=n)]
    if shape == "collinear":
        return rng.normal(size=(n, 1)) * rng.normal(size=d)
    if shape == "grid":  # full of equal lengths
        return rng.integers(4, size=(n, d)).astype(float)
    return cloud


def clouds_of(max_n, max_d, min_n=2):
    """Strategy for float64 clouds of every shape; sizes from the extremes as well as between."""
    return st.builds(
        make_cloud,
        st.sampled_from(SHAPES),
        st.one_of(st.integers(min_n, min(max_n, 9)), st.integers(min_n, max_n)),
        st.one_of(st.sampled_from([1, 2, 3, max_d]), st.integers(1, max_d)),
        st.integers(0, 2**32 - 1),
    )


def examples(count):
    return settings(max_examples=count, deadline=None, derandomize=True)


def batch(cloud, dtype=torch.float64):
    return torch.from_numpy(cloud).to(dtype).unsqueeze(0)


def assert_same_bars(found, expected):
    """Equal as multisets, up to rounding and to bars as short as rounding errors."""
    found, expected = (bars[bars[:, 1] - bars[:, 0] > 1e-9 * bars[:, 1]] for bars in (found, expected))
    assert len(found) == len(expected)
    if len(found):
        rows, columns = linear_sum_assignment(cdist(found, expected))
        np.testing.assert_allclose(found[rows], expected[columns], rtol=1e-6)


def check_deaths(cloud):
    deaths = dim0_deaths(batch(cloud))[0].numpy()
    assert deaths.shape == (len(cloud) - 1,)
    assert (np.diff(deaths) >= 0).all()
    np.testing.assert_allclose(deaths[deaths > 0], simplex_tree_diagram(cloud, 0)[:, 1], rtol=1e-6)


def check_float32_deaths(cloud):
    rounded = batch(cloud, torch.float32)
    deaths = dim0_deaths(rounded)
    assert deaths.dtype == torch.float32
    torch.testing.assert_close(deaths.double(), dim0_deaths(rounded.double()), rtol=1e-5, atol=0)


def check_dim1(cloud):
    expected = simplex_tree_diagram(cloud, 1)
    (bars,) = dim1_diagrams(cloud[None], n_jobs=1)
    assert bars.dtype == np.float64 and bars.shape[1] == 2
    assert (np.isfinite(bars).all()) and (bars[:, 0] < bars[:, 1]).all()
    assert_same_bars(bars, expected)
    lengths = [edge_lengths(batch(cloud), edges.unsqueeze(0))[0].numpy() for edges in dim1_critical_edges(cloud)]
    assert_same_bars(np.stack(lengths, axis=1), expected)


@examples(40)
@given(clouds_of(128, 256))
def test_deaths_equal_gudhi(cloud):
    check_deaths(cloud)
    check_float32_deaths(cloud)


@pytest.mark.parametrize("shape", SHAPES)
def test_deaths_of_large_and_wide_clouds_equal_gudhi(shape):
    for n, d in [(2, 1), (128, 1), (128, 64), (64, 2048)]:
        cloud = make_cloud(shape, n, d, seed=1)
        check_deaths(cloud)
        check_float32_deaths(cloud)


@pytest.mark.slow
@examples(400)
@given(clouds_of(128, 2048))
def test_deaths_equal_gudhi_all_widths(cloud):
    check_deaths(cloud)
    check_float32_deaths(cloud)


@examples(40)
@given(clouds_of(20, 16))
def test_dim1_equals_gudhi(cloud):
    check_dim1(cloud)


@pytest.mark.slow
@examples(80)
@given(clouds_of(128, 2048))
def test_dim1_equals_gudhi_all_sizes(cloud):
    check_dim1(cloud)


@examples(40)
@given(clouds_of(40, 64))
def test_float32_distances_do_not_cancel(cloud):
    """Each is off by at most a few float32 roundings of itself, also between neighbours far from the origin."""
    for offset in (0, 1e3):
        rounded = batch(cloud + offset, torch.float32)
        distances = implementation._distances(rounded)
        np.testing.assert_allclose(distances[0], squareform(pdist(rounded[0].double().numpy())), rtol=2e-6)


@examples(40)
@given(clouds_of(64, 32))
def test_both_algorithms_find_minimum_spanning_trees(cloud):
    distances = implementation._distances(batch(cloud))
    lengths = dim0_deaths(batch(cloud))[0]
    for algorithm in (implementation._prim_edges, implementation._minimax_edges):
        edges = algorithm(distances)
        assert edges.shape == (1, len(cloud) - 1, 2) and edges.dtype == torch.long
        torch.testing.assert_close(edge_lengths(batch(cloud), edges)[0].sort().values, lengths, rtol=1e-12, atol=0)
        graph = np.zeros((len(cloud), len(cloud)))
        graph[tuple(edges[0].T.numpy())] = 1
        assert connected_components(graph, directed=False)[0] == 1


@pytest.mark.parametrize("shape", ["random", "relu", "clustered", "distant"])
def test_lengths_equal_scipy(shape):
    clouds = np.stack([make_cloud(shape, 48, 20, seed) for seed in range(8)])
    edges = minimum_spanning_trees(torch.from_numpy(clouds))
    lengths = edge_lengths(torch.from_numpy(clouds), edges).sort(dim=1).values
    for cloud, ours in zip(clouds, lengths, strict=True):
        tree = minimum_spanning_tree(squareform(pdist(cloud)))
        np.testing.assert_allclose(ours, np.sort(tree.data), rtol=1e-12)


@pytest.mark.parametrize("threads", [1, 2])
def test_a_batch_larger_than_a_block_equals_its_clouds(monkeypatch, threads):
    clouds = torch.from_numpy(np.stack([make_cloud("relu", 16, 8, seed) for seed in range(37)]))
    deaths, edges = dim0_deaths(clouds), minimum_spanning_trees(clouds)
    monkeypatch.setattr(implementation, "CPU_BLOCK", 5 * 16 * 16)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(dim0_deaths(clouds), deaths)
        assert torch.equal(minimum_spanning_trees(clouds), edges)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


def test_three_collinear_points():
    cloud = torch.tensor([[[0.0], [1.0], [3.0]]])
    assert dim0_deaths(cloud).tolist() == [[1.0, 2.0]]
    assert sorted(sorted(edge) for edge in minimum_spanning_trees(cloud)[0].tolist()) == [[0, 1], [1, 2]]
    assert dim1_diagrams(cloud)[0].shape == (0, 2)


def test_unit_square():
    """Four sides of length 1 close a loop, which the diagonals fill."""
    square = torch.tensor([[[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]])
    assert dim0_deaths(square).tolist() == [[1.0, 1.0, 1.0]]
    np.testing.assert_allclose(dim1_diagrams(square)[0], [[1, math.sqrt(2)]], rtol=1e-15)
    births, deaths = dim1_critical_edges(square[0])
    assert births.shape == deaths.shape == (1, 2) and births.dtype == deaths.dtype == torch.long
    assert (births[0, 0] - births[0, 1]).abs() in (1, 3)
    assert (deaths[0, 0] - deaths[0, 1]).abs() == 2
    np.testing.assert_allclose(simplex_tree_diagram(square[0], 1), [[1, math.sqrt(2)]], rtol=1e-15)


def test_rectangle_of_sides_3_and_4():
    rectangle = torch.tensor([[[0.0, 0.0], [3.0, 0.0], [3.0, 4.0], [0.0, 4.0]]])
    assert dim0_deaths(rectangle).tolist() == [[3.0, 3.0, 4.0]]
    np.testing.assert_allclose(dim1_diagrams(rectangle)[0], [[4, 5]], rtol=1e-15)


def test_zero_bars_are_kept_in_dimension_0():
    cloud = make_cloud("random", 62, 64, seed=0)
    cloud = np.concatenate([cloud, cloud[:2]])
    for dtype in (torch.float32, torch.float64):
        deaths = dim0_deaths(batch(cloud, dtype))[0]
        assert deaths[:2].tolist() == [0, 0] and (deaths[2:] > 0).all()
    assert len(simplex_tree_diagram(cloud, 0)) == 61
    assert dim0_deaths(torch.ones(3, 5, 2)).tolist() == [[0.0] * 4] * 3


def test_invariance_under_permutations_and_isometries():
    rng = np.random.default_rng(3)
    cloud = make_cloud("clustered", 40, 6, seed=3)
    rotation, _ = np.linalg.qr(rng.normal(size=(6, 6)))
    moved = cloud[rng.permutation(40)] @ rotation + rng.normal(size=6)
    torch.testing.assert_close(dim0_deaths(batch(moved)), dim0_deaths(batch(cloud)), rtol=1e-9, atol=1e-12)
    assert_same_bars(dim1_diagrams(moved[None])[0], dim1_diagrams(cloud[None])[0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(dtype):
    clouds = torch.randn(3, 10, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    deaths = dim0_deaths(clouds)
    assert deaths.dtype == torch.float32
    assert torch.equal(deaths, dim0_deaths(clouds.float()))


def test_results_carry_no_gradient():
    clouds = torch.randn(2, 5, 3, requires_grad=True)
    assert not dim0_deaths(clouds).requires_grad
    assert not minimum_spanning_trees(clouds).requires_grad


def test_edge_lengths_are_differentiable_also_between_equal_points():
    clouds = torch.tensor([[[0.0, 0.0], [3.0, 4.0], [3.0, 4.0]]], dtype=torch.float64, requires_grad=True)
    lengths = edge_lengths(clouds, torch.tensor([[[0, 1], [1, 2]]]))
    assert lengths.tolist() == [[5.0, 0.0]]
    lengths.sum().backward()
    expected = torch.tensor([[[-0.6, -0.8], [0.6, 0.8], [0.0, 0.0]]], dtype=torch.float64)
    torch.testing.assert_close(clouds.grad, expected)


def test_critical_edges_are_gudhis():
    """Without ties they are unique, so GUDHI's generators of the whole complex are the same pairs."""
    gudhi = pytest.importorskip("gudhi")
    for seed in range(5):
        cloud = make_cloud("relu", 24, 8, seed)
        tree = gudhi.RipsComplex(points=cloud).create_simplex_tree(max_dimension=2)
        tree.compute_persistence()
        generators = tree.flag_persistence_generators()[1][0]
        ours = np.concatenate([edges.numpy() for edges in dim1_critical_edges(cloud)], axis=1)
        assert len(ours) > 0
        canonical = [
            sorted((tuple(sorted(row[:2])), tuple(sorted(row[2:]))) for row in rows.tolist())
            for rows in (ours, generators)
        ]
        assert canonical[0] == canonical[1]


def test_a_tied_cloud_takes_gudhis_generators(monkeypatch):
    calls = []
    generators = implementation._generators
    monkeypatch.setattr(implementation, "_generators", lambda *args: calls.append(1) or generators(*args))
    dim1_critical_edges(make_cloud("relu", 24, 8, seed=0))
    assert not calls
    dim1_critical_edges(make_cloud("grid", 24, 2, seed=0))
    assert calls


@pytest.mark.parametrize("n_jobs", [1, 2, -1])
def test_dim1_diagrams_of_many_clouds(n_jobs):
    clouds = np.stack([make_cloud("relu", 12, 4, seed) for seed in range(9)])
    diagrams = dim1_diagrams(torch.from_numpy(clouds), n_jobs=n_jobs)
    assert len(diagrams) == 9
    for cloud, bars in zip(clouds, diagrams, strict=True):
        assert_same_bars(bars, simplex_tree_diagram(cloud, 1))
    assert dim1_diagrams(np.empty((0, 12, 4)), n_jobs=n_jobs) == []


def test_clouds_too_small_for_bars():
    point = torch.zeros(2, 1, 3)
    assert dim0_deaths(point).shape == (2, 0)
    assert minimum_spanning_trees(point).shape == (2, 0, 2)
    assert implementation._minimax_edges(implementation._distances(point)).shape == (2, 0, 2)
    for n in (1, 2, 3):
        cloud = torch.randn(n, 3)
        assert dim1_diagrams(cloud.unsqueeze(0))[0].shape == (0, 2)
        assert [edges.shape for edges in dim1_critical_edges(cloud)] == [(0, 2), (0, 2)]
        assert simplex_tree_diagram(cloud, 1).shape == (0, 2)
        assert len(simplex_tree_diagram(cloud, 0)) == n - 1


@pytest.mark.parametrize("shape", [(4, 3), (2, 0, 3), (1, 2, 3, 4)])
def test_other_shapes_are_refused(shape):
    for function in (dim0_deaths, minimum_spanning_trees):
        with pytest.raises(ValueError, match="shape"):
            function(torch.zeros(shape))


@pytest.mark.slow
def test_dimension_0_does_without_gudhi():
    program = """
import sys, torch
from ripsnet import ExactTopology, ImageSpec, RipsNet, RipsNetTopology, WassersteinTopology, dim0_deaths, dim0_images
spec = ImageSpec(dim=0, sigma=1.0, sigma_rule="released", image_range=(0, 0, 0, 5), maximum=1.0)
clouds = torch.randn(3, 8, 16)
dim0_images(dim0_deaths(clouds), spec)
for loss in (ExactTopology([spec]), RipsNetTopology([RipsNet(16)]), WassersteinTopology()):
    loss(clouds[0].requires_grad_(), clouds[1]).backward()
assert not [name for name in sys.modules if name.startswith("gudhi")]
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parent.parent)


def test_missing_gudhi_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "gudhi", None)
    cloud = torch.zeros(4, 2)
    for call in (
        lambda: dim1_diagrams(cloud.unsqueeze(0)),
        lambda: dim1_critical_edges(cloud),
        lambda: simplex_tree_diagram(cloud, 0),
    ):
        with pytest.raises(ImportError, match="pip install gudhi scikit-learn"):
            call()
