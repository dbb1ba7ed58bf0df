"""One thread for every process of the tests, which run side by side; and fixtures that several test files share."""

import os

# Before torch and numpy are imported, and for the processes that tests start. Threads that share a core slow each other
# down, and sums that threads divide are rounded differently.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402
from support.images import TINY  # noqa: E402

from dataset import dataset_dict  # noqa: E402

torch.set_num_threads(1)  # where a plugin has imported it earlier


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """`-n auto`: one worker for each core that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """An empty current folder, and the data set `tiny`: 150 training and 40 test images of 4 classes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(dataset_dict, "tiny", TINY)
