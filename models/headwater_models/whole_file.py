"""Files that are there whole or not at all, whenever the process is killed."""

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_whole(file: Path) -> Iterator[Path]:
    """The place to write a file to, beside its own; it takes the file's place once it is written."""
    partial = file.with_name(f"{file.name}.partial")
    yield partial
    partial.replace(file)
