"""Training in tests, on machines that do other work."""

import sys

import pytest


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> None:
    """Torch computes in one thread: on busy cores several wait for each other most of the time."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
