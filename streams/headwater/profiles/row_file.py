"""Rows in a mapped file, for users who outgrow memory: the kernel keeps touched rows in memory and writes others out.

The file has no name, so it is gone with the process, however that ends. The profiles topic holds the truth.
"""

import mmap
import os
import tempfile
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class DiskFull(Exception):
    """A file cannot grow. The message gives the size and the remedy."""


class RowFile:
    """Rows of one dtype. The first :meth:`grown` makes the file."""

    def __init__(self, folder: Path, row: np.dtype[Any]) -> None:
        self._folder, self._row = folder, row
        self._file: Any = None

    def grown(self, rows: int) -> NDArray[Any]:
        """The file with ``rows`` rows, as one structured array (rows,). New rows are zeroed.

        An array that was handed out before shows the same bytes. Disk space is reserved here, because writing into a
        mapped page without it kills the process.

        Raises:
            DiskFull: the disk, a quota or a limit of this process leaves no room, or no file can be made there.
        """
        size = rows * self._row.itemsize
        try:
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)  # noqa: SIM115 - closed below
                weakref.finalize(self, self._file.close)
            os.posix_fallocate(self._file.fileno(), 0, size)
            mapped = mmap.mmap(self._file.fileno(), size)
        except OSError as error:
            raise DiskFull(
                f"{self._folder}: no room for {size / 1e6:,.1f} MB, the states of {rows:,} users of one partition "
                f"({error.strerror}): make room, or keep them in memory (HEADWATER_STATE_ON_DISK=false)"
            ) from error
        mapped.madvise(mmap.MADV_RANDOM)  # a user's neighbours are no more likely to be touched next
        return np.frombuffer(mapped, dtype=self._row)

    def prefetch(self, rows: Iterable[int]) -> None:
        """Start reading back rows that were written out, all at once. Touching them would wait for each in turn."""
        file, size = self._file.fileno(), self._row.itemsize
        for row in rows:
            os.posix_fadvise(file, row * size, size, os.POSIX_FADV_WILLNEED)
