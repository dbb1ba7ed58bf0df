"""Topology losses between the point clouds that student and teacher make of a mini-batch.

TopKD (Kim, You, Lee, Kim, Jung, "Do Topological Characteristics Help in Knowledge Distillation?", ICML 2024) compares
persistence images that a RipsNet approximates; `RipsNetTopology` is that loss. `ExactTopology` compares the persistence
images themselves, and `WassersteinTopology` the diagrams.

All of them take the student's and the teacher's clouds, (N, n, d) each, or (n, d) for a single one, of any n >= 1, and
return the mean over the clouds, a scalar with a gradient for the student only. They compute in float32 whatever
autocast says; clouds in float64 are compared in float64, except through a RipsNet in float32. A cloud of a single point
has no finite bar: its exact image is zero, and so is the loss between two such clouds.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from .diagrams import at_least_float32, dim1_critical_edges, edge_lengths, minimum_spanning_trees
from .images import ImageSpec, diagram_image, dim0_images
from .network import RipsNet


def _of_both(function: Callable[[Tensor], Tensor], student: Tensor, teacher: Tensor) -> Sequence[Tensor]:
    """function, which takes clouds (N, n, d), of the student's and of the teacher's; at once if they have the same
    shape. ValueError for different numbers of clouds."""
    student, teacher = (cloud.unsqueeze(0) if cloud.ndim == 2 else cloud for cloud in (student, teacher.detach()))
    if len(student) != len(teacher):
        raise ValueError(f"found {len(student)} clouds of the student and {len(teacher)} of the teacher")
    if student.shape == teacher.shape:
        return function(torch.cat([at_least_float32(student), at_least_float32(teacher)])).chunk(2)
    return function(student), function(teacher)


class _ImageTopology(nn.Module):
    """Mean squared difference of the images of clouds; subclasses define `_images`."""

    _images: Callable[[Tensor], Tensor]

    def images(self, clouds: Tensor) -> Tensor:
        """Images of clouds (N, n, d), or what stands for them: (N, 400 * homology dimensions), differentiable."""
        with torch.autocast(clouds.device.type, enabled=False):
            return self._images(at_least_float32(clouds))

    def forward(self, student_clouds: Tensor, teacher_clouds: Tensor) -> Tensor:
        student, teacher = _of_both(self.images, student_clouds, teacher_clouds)
        return (student - teacher).square().mean()


class RipsNetTopology(_ImageTopology):
    """TopKD's loss: mean over the pixels of (R(F_student) - R(F_teacher))^2 with fitted, frozen RipsNets R.

    Args:
        networks: one `RipsNet` for each homology dimension; their images are concatenated. They are frozen in place.
    """

    def __init__(self, networks: Sequence[RipsNet]):
        super().__init__()
        self.networks = nn.ModuleList(networks).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> "RipsNetTopology":
        """The networks stay in eval mode."""
        return super().train(False)

    def _images(self, clouds: Tensor) -> Tensor:
        clouds = clouds.to(next(self.parameters()).dtype)
        return torch.cat([network(clouds) for network in self.networks], dim=-1)


class ExactTopology(_ImageTopology):
    """Mean over the pixels of the squared difference of the exact persistence images, without an approximation.

    The image is differentiable in the points: a bar's ends are lengths of edges, and the choice of these edges, a
    minimum spanning tree in dimension 0 and GUDHI's critical edges in dimension 1, is constant near almost every cloud
    (Carriere, Chazal, Glisse, Ike, Kannan, Umeda, "Optimizing persistent homology based functions", ICML 2021).
    Dimension 0 stays on the clouds' device; dimension 1 runs on the CPU, which waits for the clouds.

    Args:
        specs: one `ImageSpec` for each homology dimension; their images are concatenated.
    """

    def __init__(self, specs: Sequence[ImageSpec]):
        super().__init__()
        self.specs = list(specs)

    @property
    def host_bound(self) -> str:
        """Why a step waits for the host, in words; '' where it does not."""
        above = [str(spec.dim) for spec in self.specs if spec.dim]
        return f"exact topology of dimension {above[0]} is computed on the CPU" if above else ""

    def _images(self, clouds: Tensor) -> Tensor:
        parts = [self._dim0(clouds, spec) if spec.dim == 0 else self._dim1(clouds, spec) for spec in self.specs]
        return torch.cat(parts, dim=-1)

    @staticmethod
    def _dim0(clouds: Tensor, spec: ImageSpec) -> Tensor:
        return dim0_images(edge_lengths(clouds, minimum_spanning_trees(clouds)), spec)

    @staticmethod
    def _dim1(clouds: Tensor, spec: ImageSpec) -> Tensor:
        images = []
        for cloud in clouds:
            edges = [edge.to(cloud.device) for edge in dim1_critical_edges(cloud)]
            births, deaths = (edge_lengths(cloud.unsqueeze(0), edge.unsqueeze(0))[0] for edge in edges)
            images.append(diagram_image(births, deaths - births, spec))
        return torch.stack(images)


class WassersteinTopology(nn.Module):
    """Relative squared 2-Wasserstein distance between the death times of dimension 0.

    The distance is that of optimal transport on the line between the empirical distributions of the n - 1 finite death
    times of either cloud, mean_i (d_i - d'_i)^2 for death times in ascending order; it is divided by the teacher's mean
    squared death time, cloud by cloud, and so does not depend on the unit of the features. It is not the distance
    between persistence diagrams, where a bar may also be matched to the diagonal, but an upper bound of it: (n - 1)
    times the mean is the cost of one of the matchings over which that distance minimises.

    A teacher whose points are all equal has no death time above zero; the distance is then not divided by anything.

    Raises:
        ValueError: from `forward`, for clouds of different numbers of points.
    """

    def forward(self, student_clouds: Tensor, teacher_clouds: Tensor) -> Tensor:
        if student_clouds.shape[-2] != teacher_clouds.shape[-2]:
            raise ValueError(
                f"WassersteinTopology: clouds of {student_clouds.shape[-2]} and {teacher_clouds.shape[-2]} points; "
                "student and teacher must see the same mini-batch"
            )
        student, teacher = _of_both(self._deaths, student_clouds, teacher_clouds)
        unit = teacher.square().sum(dim=1)
        distance = (student - teacher).square().sum(dim=1)
        return (distance / torch.where(unit > 0, unit, max(1, teacher.shape[1]))).mean()

    @staticmethod
    def _deaths(clouds: Tensor) -> Tensor:
        with torch.autocast(clouds.device.type, enabled=False):
            clouds = at_least_float32(clouds)
            return edge_lengths(clouds, minimum_spanning_trees(clouds)).sort(dim=1).values
