"""The folder beside a bundle in which a long training keeps what is done, so that a killed one goes on where it was."""

import contextlib
import hashlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from headwater_models.arrays import F32
from headwater_models.bundles.text_encoder import TextEncoder
from headwater_models.progress import Report
from headwater_models.training.sequence_loop import FitError
from headwater_models.whole_file import written_whole

_SETTLED: Final = "training.json"
# So many texts are read between two writes: some minutes of a language model, an instant of token vectors.
_TEXTS_AT_ONCE: Final = 8192


class Workplace:
    """What a training has done so far. Each part is written whole or not at all.

    Attributes:
        folder: `out` with `.training` appended. It is gone when the bundle is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder: Final = folder

    def checkpoint(self, name: str) -> Path:
        """Where the checkpoint of a part of the training lies."""
        return self.folder / f"{name}.checkpoint"

    def scratch(self, name: str) -> Path:
        """A place for a folder, without anything of a killed training."""
        return self.folder / name

    def vectors(self, texts: TextEncoder, of: list[str], report: Report) -> F32:
        """f32[N, dim] of N items' texts: read part by part, each of which is kept."""
        distinct = list(dict.fromkeys(of))
        found = []
        for start in range(0, len(distinct), _TEXTS_AT_ONCE):
            part = distinct[start : start + _TEXTS_AT_ONCE]
            file = self.folder / f"texts-{start // _TEXTS_AT_ONCE}.npy"
            if not file.exists():
                done = _later(report, start, len(distinct))
                with written_whole(file) as partial, partial.open("wb") as opened:
                    np.save(opened, texts.vectors(part, done))
            found.append(np.load(file))
        rows = {text: row for row, text in enumerate(distinct)}
        together: F32 = np.concatenate(found)
        return together[np.fromiter((rows[text] for text in of), dtype=np.int64, count=len(of))]


@contextlib.contextmanager
def workplace(out: Path, of: Mapping[str, str], *, resume: bool) -> Iterator[Workplace]:
    """The workplace of a training into `out`: begun anew, or with `resume` as the last one left it.

    It stays if the training is stopped, or fails after its first checkpoint. `of`: what the training is of, by name; all of it has to be as
    it was. Raises FitError: it is not.
    """
    folder = out.resolve().with_name(f"{out.resolve().name}.training")
    found = _settled(folder) if resume else None
    if found is None:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        with written_whole(folder / _SETTLED) as partial:
            partial.write_bytes(msgspec.json.encode(of))
    elif found != of:
        differ = sorted(name for name in {*found, *of} if found.get(name) != of.get(name))
        raise FitError(
            f"{folder} is of another training ({', '.join(differ)} differ): resume it with its files and options, or leave "
            "--resume out to begin anew"
        )
    else:  # parts are files; a folder, also one of an export that was killed, is made again
        for half in filter(Path.is_dir, list(folder.iterdir())):
            shutil.rmtree(half, ignore_errors=True)
    try:
        yield Workplace(folder)
    except Exception:
        if not any(folder.glob("*.checkpoint")):
            shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def digest(*parts: bytes | str) -> str:
    """SHA-256 of parts, each apart from the next."""
    total = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        total.update(len(raw).to_bytes(8, "little") + raw)
    return total.hexdigest()


def _settled(folder: Path) -> dict[str, str] | None:
    """What the training in this folder is of; None where there is none."""
    try:
        return msgspec.json.decode((folder / _SETTLED).read_bytes(), type=dict[str, str])
    except (OSError, msgspec.DecodeError):
        return None


def _later(report: Report, before: int, total: int) -> Report:
    """A report of a part as one of the whole."""
    return lambda what, done, _: report(what, before + done, total)
