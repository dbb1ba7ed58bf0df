"""A student and a teacher as small as can be, and what a loss of the registry makes of them."""

import functools
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import nn

from distiller_zoo import Batch, Method, Output, Pair, distiller_dict
from models import create_model

from .layers import array, at_smaller_size

CLASSES = 3


def shapes(widths, sizes):
    """Of the features of one image: stem and stages of these widths and sizes, and the pooled vector."""
    return [*((width, size, size) for width, size in zip(widths, sizes, strict=True)), widths[-1:]]


# A stage of equal shapes, one that is larger in the teacher, one that is larger in the student.
SHAPES_S = shapes((3, 4, 5, 6), (8, 8, 4, 4))
SHAPES_T = shapes((3, 4, 7, 5), (8, 8, 8, 2))
LONGER = [*SHAPES_T[:-1], *SHAPES_T[-2:]]  # with one more stage

# Where a method needs other shapes, or has options that make it small.
PAIRS = {
    "fsp": {"shapes_t": shapes((3, 4, 5, 6), (8, 8, 8, 2))},
    "simkd": {"map_s": (5, 2, 2), "map_t": (5, 4, 4)},
    "mgd": {"map_s": (5, 4, 4), "map_t": (7, 4, 4)},
    "crcd": {"shapes_t": shapes((3, 4, 7, 6), (8, 8, 8, 2))},  # for the cosine of its gradients
    "norm": {"shapes_s": shapes((3, 4, 5, 10), (8, 8, 4, 4))},  # two segments of the teacher's width
}
OPTIONS = {
    "cc": {"feat_dim": 7},
    "crd": {"feat_dim": 4, "nce_k": 6},
    "crcd": {"feat_dim": 4, "nce_k": 6, "gradient": "contrast"},
    "semckd": {"reduction": 1},
}


def make_pair(shapes_s=SHAPES_S, shapes_t=SHAPES_T, dtype=torch.float64, **changes):
    """With 12 training images, image i of class i % 3, and batches of 4 at most."""
    torch.manual_seed(0)
    norms = [nn.BatchNorm2d(shape[0]) for shape in shapes_t[1:-1]]
    for norm in norms:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    fields = {
        "map_s": shapes_s[-2],
        "map_t": shapes_t[-2],
        "classifier_s": nn.Linear(changes.get("map_s", shapes_s[-2])[0], CLASSES).to(dtype),
        "classifier_t": nn.Linear(changes.get("map_t", shapes_t[-2])[0], CLASSES).to(dtype),
        "norms_t": [norm.to(dtype) for norm in norms],
        "labels": torch.arange(12) % CLASSES,
        "batch_size": 4,
    }
    return Pair(shapes_s, shapes_t, **fields | changes)


@functools.cache
def teacher_of(arch):
    """A network whose batch norms know a batch: without, the features of deep ones grow beyond all bounds."""
    torch.manual_seed(1)
    model = create_model(arch).train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        model(torch.randn(16, 3, 32, 32))
    return SimpleNamespace(model=model.eval())


@dataclass
class Case:
    """A loss and its arguments; what the method does not read is None."""

    method: Method
    pair: Pair
    loss: nn.Module
    student: Output
    teacher: Output
    batch: Batch

    def value(self):
        """What is minimised for the student: the loss, or its first stage where there is nothing else."""
        term = self.loss.first_stage if self.method.first_only else self.loss
        return term(self.student, self.teacher, self.batch)

    @property
    def inputs(self):
        """The student's tensors that the registry says the method reads."""
        if self.method.on_logits:
            return [output.logits for output in (self.student, self.student.strong) if output is not None]
        return [x for x in (*self.student.features, self.student.last_map) if x is not None]

    @property
    def leaves(self):
        return [*self.inputs, *self.loss.parameters()]

    def stages(self):
        """(student's, teacher's) maps of every stage at the smaller size, as NumPy arrays."""
        for s, t in zip(self.student.features[1:-1], self.teacher.features[1:-1], strict=True):
            yield at_smaller_size(array(s), array(t))


def make_case(key, pair=None, count=4, fill=(None, None), dtype=torch.float64, **options):
    """A batch of `count` images for a method, from a fixed seed.

    fill: the one value of all the student's, and all the teacher's, features and logits; None for noise.
    """
    method = distiller_dict[key]
    pair = pair or make_pair(dtype=dtype, **PAIRS.get(key, {}))
    torch.manual_seed(1)
    loss = method.make_loss(pair, method.options | OPTIONS.get(key, {}) | options).to(dtype)
    for module in loss.modules():
        if isinstance(module, nn.BatchNorm2d):  # not the identity
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)

    def output(feature_shapes, map_shape, value):
        def make(*shape):
            noise = torch.randn(count, *shape, dtype=dtype)
            return noise if value is None else torch.full_like(noise, value)

        features = [make(*shape) for shape in feature_shapes]
        read = [x if kept is not None else None for x, kept in zip(features, method.select(features), strict=True)]
        logits, last_map = make(CLASSES), make(*map_shape) if method.last_map else None
        return Output(read, logits, last_map, Output(read, make(CLASSES)) if method.strong else None)

    student, teacher = output(pair.shapes_s, pair.map_s, fill[0]), output(pair.shapes_t, pair.map_t, fill[1])
    indices = torch.tensor([7, 0, 5, 11])[:count]
    case = Case(method, pair, loss, student, teacher, Batch(indices % CLASSES, indices, torch.tensor(3)))
    for tensor in case.inputs:
        tensor.requires_grad_()
    return case


def only_pooled(vectors):
    """An Output of which only the pooled vector, rows of numbers, is there."""
    return Output([None, torch.as_tensor(vectors, dtype=torch.float64)], None)


def only_map(maps):
    """An Output of which only one stage's maps (B, C, H, W) are there."""
    return Output([None, torch.as_tensor(maps, dtype=torch.float64), None], None)
