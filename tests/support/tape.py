"""What stands in for CUDA graphs on a CPU: a tape of the operations, with the tensors that they read and wrote.

As a graph does, a tape repeats the operations on the very memory that they used, with the numbers that they were given,
and does nothing else that Python did: what a step does on the host happens at the recording alone. As at a capture,
nothing seems to have happened when the recording is over. What would wait for a device is refused.
"""

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map

# A value, or a shape that depends on values, that is read by Python.
HOST_READS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique", "bincount", "repeat_interleave")


class HostRead(Exception):
    """What a capture would refuse."""


def name_of(function):
    return function.name().removeprefix("aten::").split(".")[0]


def refuse_host_reads(function, given):
    name = name_of(function)
    masks = [tensor for tensor in tensors(given) if tensor.dtype == torch.bool and tensor.dim()]
    if name in HOST_READS or (name in ("index", "index_put", "index_put_") and masks):
        raise HostRead(name)


class Recording(TorchDispatchMode):
    """The operations within the context, which are done; `undo` then takes back what they did to other tensors."""

    def __init__(self):
        super().__init__()
        self.operations, self.before, self.made = [], {}, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        refuse_host_reads(function, (args, kwargs))
        if function.namespace == "profiler":
            return function(*args, **kwargs)
        for tensor in tensors((args, kwargs)):
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in self.made and storage.data_ptr() not in self.before:
                self.before[storage.data_ptr()] = storage, storage.clone()
        found = function(*args, **kwargs)
        given = {tensor.untyped_storage().data_ptr() for tensor in tensors((args, kwargs))}
        fresh = [tensor for tensor in tensors(found) if tensor.untyped_storage().data_ptr() not in given]
        self.made |= {tensor.untyped_storage().data_ptr() for tensor in fresh}
        self.operations.append((function, *detached((args, kwargs)), detached(found), bool(fresh)))
        return found

    def undo(self):
        for storage, content in self.before.values():
            storage.copy_(content)


def tensors(tree):
    return [leaf for leaf in tree_flatten(tree)[0] if isinstance(leaf, Tensor)]


def detached(tree):
    """The same memory, without what autograd has attached to it."""
    with torch._C._DisableTorchDispatch():
        return tree_map(lambda leaf: leaf.detach() if isinstance(leaf, Tensor) else leaf, tree)


class Tape:
    """A `Capture`. captures: how often it has recorded. operations: of the last recording."""

    def __init__(self):
        self.captures, self.operations = 0, []

    def __call__(self, function):
        self.captures += 1
        random = torch.get_rng_state()
        with Recording() as recording:
            function()
        recording.undo()
        torch.set_rng_state(random)
        operations = self.operations = recording.operations

        @torch.no_grad()
        def replay():
            for operation, args, kwargs, outputs, fresh in operations:
                found = operation(*args, **kwargs)
                if fresh:
                    for kept, new in zip(tensors(outputs), tensors(found), strict=True):
                        if kept.data_ptr() != new.data_ptr():
                            kept.copy_(new)

        return replay
