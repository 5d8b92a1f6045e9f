import os
from pathlib import Path

import pytest
import torch

from condense.parallel import set_threads
from condense.paths import project_root

# One table of tolerances; a test that needs another says why.
TOLERANCE = {torch.float32: {"rtol": 1e-4, "atol": 1e-5}, torch.float64: {"rtol": 1e-9, "atol": 1e-10}}


def pytest_configure(config):
    set_threads(1)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real captures and weights that do not belong to the project."""
    folder = Path(os.environ.get("CONDENSE_SHARED", project_root().parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no real captures at {folder}: set CONDENSE_SHARED to a folder with captures/ and weights/")
    return folder
