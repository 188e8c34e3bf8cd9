"""Builds the search graph (HNSW) of an edge shard, in a process of its own.

The engine holds Python's lock while it builds, half a minute for 92,000 items. The serving process would miss its
heartbeats to the broker. So the shard is copied, this file builds the graph on the copy, and the worker swaps it in.
"""

import ctypes
import os
import signal
import sys
from pathlib import Path

import qdrant_edge as engine

NICENESS = 10
_PR_SET_PDEATHSIG = 1


def graph() -> engine.HnswIndexConfig:
    """The graph's settings; `lifted` says how well it finds. m = 16 and ef = 100 (Malkov and Yashunin 2018).

    Searches whose filter leaves less than 1 MB of vectors (4,000 of 64 dimensions) are scanned, which is then faster.
    """
    return engine.HnswIndexConfig(m=16, ef_construct=100, full_scan_threshold=1000, max_indexing_threads=1)


def command(path: Path, dim: int) -> list[str]:
    """The command that runs this file. -P keeps its folder out of the child's module path."""
    return [sys.executable, "-P", __file__, str(path), str(dim), str(os.getpid())]


def build(path: Path, dim: int) -> None:
    """Build the graph of the shard in a folder, with vectors of `dim` numbers. Blocks until it is on disk."""
    vectors = engine.EdgeVectorParams(dim, engine.Distance.Dot)
    # Any number of items gets a graph here: the caller decides when there are enough.
    optimizers = engine.EdgeOptimizersConfig(indexing_threshold=1, default_segment_number=1)
    config = engine.EdgeConfig(vectors=vectors, hnsw_config=graph(), optimizers=optimizers)
    shard = engine.EdgeShard.load(str(path), config)
    shard.optimize()
    shard.flush()
    shard.close()


def main() -> None:
    """Build, with low priority, and end with the parent."""
    path, dim, parent = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    os.nice(NICENESS)
    if sys.platform == "linux":
        # A killed parent takes the build with it. It may be gone already.
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            sys.exit(1)
    build(path, dim)


if __name__ == "__main__":
    main()
