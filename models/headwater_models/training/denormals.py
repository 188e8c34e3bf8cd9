"""Numbers too small for single precision, which cost a hundred times as much as others."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def flushed_denormals() -> Iterator[None]:
    """Take them for zero meanwhile: Adam's averages of rows that no batch touches decay into them.

    It holds for all of the process, also for what does not expect it, so it has to end.
    """
    torch.set_flush_denormal(True)
    try:
        yield
    finally:
        torch.set_flush_denormal(False)
