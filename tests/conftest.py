"""One thread for every process of the tests, which run side by side; and fixtures that several test files share."""

import os

# Before torch and numpy are imported, and for the processes that tests start. Threads that share a core slow each other
# down, and sums that threads divide are rounded differently.
for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"

import pytest  # noqa: E402
import torch  # noqa: E402
from support.images import TINY  # noqa: E402
from support.running import POINTS, TEACHER, call, make_clouds, work_in  # noqa: E402

import train_ripsnet  # noqa: E402
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


@pytest.fixture(scope="session")
def stages(tmp_path_factory):
    """The folder in which stages 2 and 3 ran on noise, for both dimensions; not to be changed."""
    folder = tmp_path_factory.mktemp("stages")
    with pytest.MonkeyPatch.context() as patch:
        work_in(folder, patch)
        make_clouds("--dim", "01")
        fit = ("--path_t", TEACHER, "--dataset", "noise", "--device", "cpu", "--batch_size", POINTS)
        call(train_ripsnet, *fit, "--dim", "01", "--epochs", 3, "--lr", 0.01)
    return folder
