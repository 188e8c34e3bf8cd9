"""A worker that tells what it holds: the real command, and beside it a thread that measures heap and containers.

python -m tests.bench.census FILE worker --role all

Each line of FILE is a JSON object. Heap figures come every few seconds, containers once a minute. Containers are found
by a walk over everything that the worker refers to, and named by the way there, such as
`worker.status.interests.profiles.partitions[].erasures._rows`. Of a long container the walk looks into some elements
only, so sums over containers within containers are lower bounds.
"""

import asyncio
import ctypes
import gc
import json
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import BuiltinFunctionType, CodeType, FrameType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from headwater.commands.main import main
from headwater.worker import process
from headwater.worker.worker import Worker

HEAP_S = 5.0
CONTAINERS_S = 60.0
_LOOKED_INTO = 20
_MOST_OBJECTS = 100_000
# The walk holds Python's lock for a millisecond or two at a time, so that the worker goes on beside it.
_SLICE = 200
_PAUSE_S = 0.002
# Smaller ones say nothing about an hour.
_LEAST_LENGTH = 200
_LEAST_BYTES = 64 * 1024
_SKIPPED = (type, ModuleType, CodeType, BuiltinFunctionType, str, bytes, bytearray, int, float, type(None))


class _MallInfo(ctypes.Structure):
    """`struct mallinfo2` of glibc, in bytes."""

    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",  # taken from the system, without mapped blocks
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",  # in mapped blocks
            "usmblks",
            "fsmblks",
            "uordblks",  # in use
            "fordblks",  # free, and not given back
            "keepcost",
        )
    ]


def heap() -> dict[str, Any]:
    """Bytes of glibc's heap (all arenas), blocks of Python's own allocator, and the collector's counts."""
    found: dict[str, Any] = {"python_blocks": sys.getallocatedblocks(), "gc_counts": gc.get_count()}
    found["gc_collections"] = [each["collections"] for each in gc.get_stats()]
    if mallinfo := getattr(ctypes.CDLL(None), "mallinfo2", None):
        mallinfo.restype = _MallInfo
        info = mallinfo()
        found |= {
            f"malloc_{name}": getattr(info, name) for name in ("arena", "hblkhd", "uordblks", "fordblks")
        }
    return found


def containers(**roots: object) -> dict[str, tuple[int, int, int]]:
    """By the way to them from the roots: how many containers, their elements and their own bytes, all together.

    What can be reached from several roots counts for the first.
    """
    found: dict[str, tuple[int, int, int]] = {}
    seen: set[int] = set()
    for name, root in roots.items():
        _walk(name, root, seen, found)
    return {way: each for way, each in found.items() if each[1] >= _LEAST_LENGTH or each[2] >= _LEAST_BYTES}


def _walk(name: str, root: object, seen: set[int], found: dict[str, tuple[int, int, int]]) -> None:
    left: deque[tuple[str, object]] = deque([(name, root)])
    most = len(seen) + _MOST_OBJECTS
    while left and len(seen) < most:
        way, held = left.popleft()
        if id(held) in seen or isinstance(held, _SKIPPED):
            continue
        seen.add(id(held))
        if not len(seen) % _SLICE:
            time.sleep(_PAUSE_S)
        if isinstance(held, np.ndarray):
            size, own = held.size, held.nbytes if held.base is None else 0
        else:
            left.extend(_inside(way, held))
            size = len(held) if isinstance(held, dict | list | tuple | set | frozenset | deque) else 0
            own = sys.getsizeof(held) if size else 0
        if own:
            count, sizes, owns = found.get(way, (0, 0, 0))
            found[way] = count + 1, sizes + size, owns + own


def _inside(way: str, held: Any) -> Iterator[tuple[str, object]]:
    """What a thing refers to, and the way there. Another thread may change it meanwhile: then less is found."""
    try:
        if isinstance(held, dict):
            if "__builtins__" not in held:  # globals of a module
                yield from ((f"{way}[]", each) for each in list(islice(held.values(), _LOOKED_INTO)))
        elif isinstance(held, list | tuple | set | frozenset | deque):
            yield from ((f"{way}[]", each) for each in list(islice(held, _LOOKED_INTO)))
        elif isinstance(held, FunctionType):
            yield from ((f"{way}.closure", cell) for cell in held.__closure__ or ())
        elif isinstance(held, MethodType):
            yield way, held.__self__
        elif isinstance(held, FrameType):
            yield from ((f"{way}.{name}", each) for name, each in list(held.f_locals.items()))
        else:
            named = dict(getattr(held, "__dict__", {}))
            for kind in type(held).__mro__:
                slots = kind.__dict__.get("__slots__", ())
                named |= {
                    slot: getattr(held, slot, None) for slot in ([slots] if isinstance(slots, str) else slots)
                }
            yield from ((f"{way}.{name}", each) for name, each in named.items())
            known = {id(each) for each in named.values()} | {id(getattr(held, "__dict__", None))}
            label = type(held).__name__
            others = (each for each in gc.get_referents(held) if id(each) not in known)
            yield from ((f"{way}.<{label}>", each) for each in islice(others, _LOOKED_INTO))
    except (RuntimeError, AttributeError, ValueError):
        return


def _watch(worker: Worker, loop: asyncio.AbstractEventLoop, path: Path) -> None:
    next_s = time.monotonic()
    with path.open("w") as out:
        while True:
            line: dict[str, Any] = {"at": time.time(), **heap()}
            tasks = asyncio.all_tasks(loop)
            line["tasks"] = len(tasks)
            if time.monotonic() >= next_s:
                next_s += CONTAINERS_S
                started_s = time.perf_counter()
                line["containers"] = containers(worker=worker, tasks=list(tasks))
                line["took_s"] = time.perf_counter() - started_s
            out.write(json.dumps(line) + "\n")
            out.flush()
            time.sleep(HEAP_S)


class _Watched(Worker):
    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        watching = (self, asyncio.get_running_loop(), Path(sys.argv[1]))
        threading.Thread(target=_watch, args=watching, name="census", daemon=True).start()


if __name__ == "__main__":
    process.Worker = _Watched  # type: ignore[misc]
    main(sys.argv[2:])
