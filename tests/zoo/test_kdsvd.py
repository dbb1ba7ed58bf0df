"""KD-SVD, and its gradient, against a full singular value decomposition."""

import itertools

import numpy as np
import pytest
import torch
from scipy.stats import ortho_group
from support.layers import array
from support.zoo import make_case, make_pair, shapes

from distiller_zoo import Output
from distiller_zoo.kdsvd import principal_vector

SMALL = shapes((2, 2, 3, 4), (4, 4, 2, 2))


def by_decomposition(stages):
    """The loss of one image, from the maps (C, n) of its stages, [(student's, teacher's)], already of one size."""
    vectors = []
    for pair in stages:
        first = [torch.linalg.svd(maps, full_matrices=False).Vh[0] for maps in pair]
        vectors.append([v * v.sum().sign() for v in first])
    total = 0.0
    for (v_s, v_t), (w_s, w_t) in itertools.pairwise(vectors):
        for i, j in np.ndindex(len(v_s), len(w_s)):
            s, t = (torch.exp(-((v[i] - w[j]) ** 2) / 8) for v, w in ((v_s, w_s), (v_t, w_t)))
            total = total + (s - t) ** 2
    return total


def setup(sizes_t=(4, 4, 2, 2), count=3):
    return make_case("kdsvd", make_pair(SMALL, shapes((3, 3, 4, 5), sizes_t)), count)


@pytest.mark.parametrize("sizes_t", [(4, 4, 2, 2), (8, 8, 4, 2), (4, 2, 2, 1)])
def test_formula(sizes_t):
    case = setup(sizes_t)
    pairs = list(case.stages())
    images = [[[torch.from_numpy(maps[i]).flatten(1) for maps in pair] for pair in pairs] for i in range(3)]
    expected = sum(by_decomposition(stages) for stages in images).item() / 3
    assert case.value().item() == pytest.approx(expected, rel=1e-9)


def test_gradient_is_that_of_a_full_decomposition():
    """Which exists where singular values are distinct."""
    case = setup()
    features = case.student.features[1:4]
    pairs = list(zip(features, case.teacher.features[1:4], strict=True))
    expected = sum(by_decomposition([(s[i].flatten(1), t[i].flatten(1)) for s, t in pairs]) for i in range(3)) / 3
    gradients = (torch.autograd.grad(each, features) for each in (case.value(), expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-7, atol=1e-12)


def test_gradient_with_dead_channels():
    """Two channels of zeros and one that repeats another: equal singular values, none of them the first."""
    maps = torch.randn(2, 5, 2, 3, dtype=torch.double, generator=torch.Generator().manual_seed(0))
    maps[:, 1:3] = 0
    maps[:, 4] = maps[:, 0]
    assert torch.autograd.gradcheck(principal_vector, maps.requires_grad_())


@pytest.mark.parametrize("rows", [torch.zeros(4, 16), torch.linalg.qr(torch.ones(16, 4).tril())[0].T])
def test_gradient_is_of_ordinary_size_where_no_first_vector_is_defined(rows):
    """Zeros, and four equal singular values that rounding alone tells apart; in float32."""
    maps = rows.reshape(1, 4, 4, 4).clone().requires_grad_()
    principal_vector(maps)[0, :8].sum().backward()
    assert maps.grad.isfinite().all() and maps.grad.abs().max() < 10


def mixed(output):
    """Channels that are orthogonal mixtures of the channels, times 5: the same vectors over the pixels."""
    features = []
    for i, feature in enumerate(output.features[1:-1]):
        matrix = torch.from_numpy(ortho_group.rvs(feature.shape[1], random_state=i))
        features.append(5 * torch.einsum("ij,bjhw->bihw", matrix, feature))
    return output._replace(features=[None, *features, None])


def test_the_channels_mixture_scale_and_sign_do_not_matter():
    case = setup()
    before = case.value().item()
    assert before > 1e-3
    assert case.loss(mixed(case.student), case.teacher, case.batch).item() == pytest.approx(before, rel=1e-9)
    assert case.loss(case.student, mixed(case.teacher), case.batch).item() == pytest.approx(before, rel=1e-9)
    assert case.loss(mixed(case.teacher), case.teacher, case.batch).item() < 1e-24


def test_pixels_by_hand():
    """Each image's maps have rank one: the vectors are (3, 4) / 5 and (1, 0), the teacher's (1, 0) twice."""
    column = torch.tensor([1.0, -2.0])[None, :, None, None]
    tilted, straight = (column * torch.tensor(row)[None, None, None] for row in ([3.0, 4.0], [2.0, 0.0]))
    case = setup(count=1)
    student, teacher = Output([None, tilted, straight, None], None), Output([None, straight, straight, None], None)
    differences = np.array([[0.6 - 1, 0.6], [0.8 - 1, 0.8]]), np.array([[0.0, 1.0], [-1.0, 0.0]])
    s, t = (np.exp(-(each**2) / 8) for each in differences)
    assert case.loss(student, teacher, case.batch).item() == pytest.approx(((s - t) ** 2).sum(), rel=1e-5)
    assert array(principal_vector(-tilted))[0] == pytest.approx([0.6, 0.8])
