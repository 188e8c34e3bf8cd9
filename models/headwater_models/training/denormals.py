"""Denormal floats, on which arithmetic is a hundred times slower."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Treat denormals as zero inside the block: Adam's averages of rows that no batch touches decay into them.

    The setting holds for the whole process, so it must end with the training.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
