"""Fixtures that several test files share."""

import pytest

from dataset import dataset_dict
from support.images import TINY


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """An empty current folder, and the data set `tiny`: 150 training and 40 test images of 4 classes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(dataset_dict, "tiny", TINY)
