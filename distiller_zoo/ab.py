"""AB: Heo et al., "Knowledge Transfer via Distillation of Activation Boundaries Formed by Hidden Neurons", AAAI 2019
(arXiv 1811.03233).
"""

import torch
from torch import Tensor, nn

from .blocks import regressor, stage_shapes
from .method import Batch, Output, Pair

SCALE = 3 / 1000


class AB(nn.Module):
    """A squared hinge that moves the student's neurons to the teacher's side of zero; a first stage alone.

    On pre-activations of every stage; where the shapes differ, the student's go through a connector, a convolution with
    batch norm (ValueError where there is none between the two sizes). A connected value s with the teacher's t adds
    (s + margin)^2 where t <= 0 and s > -margin, and (margin - s)^2 where t > 0 and s <= margin. Summed over the
    elements, divided by the batch size, times 2^(i - L + 1) for stage i of L, counted from 0, and times 3 / 1000, to
    which the published weight belongs. In the first stage nothing else is trained with it; afterwards cross entropy is
    alone. The batch norm behind a wide ResNet's last stage is trained with it, which the code of the published weight
    leaves as it was initialised.
    """

    def __init__(self, pair: Pair, *, margin: float = 1.0):
        super().__init__()
        self.margin = margin
        self.connectors = nn.ModuleList(nn.Identity() if s == t else regressor(s, t) for s, t in stage_shapes(pair))

    def first_stage(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        loss = torch.zeros(())
        stages = zip(self.connectors, student.features[1:-1], teacher.features[1:-1], strict=True)
        for i, (connect, s, t) in enumerate(stages):
            s = connect(s)
            wrong_side = torch.where(t > 0, self.margin - s, s + self.margin).clamp(min=0)
            loss = loss + wrong_side.square().sum() * 2.0 ** (i - len(self.connectors) + 1)
        return SCALE * loss / len(batch.labels)
