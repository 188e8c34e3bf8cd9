"""The search graph of an index in the process: when it is built, and how it is swapped in.

Without a graph every search is a scan: slower, never wrong. The engine would hold Python's lock for the whole build, half
a minute for 92,000 items. So the shard is copied, a child process builds the graph on the copy (`hnsw`), what was put
meanwhile is put there too, and the copy takes the place of the shard.
"""

import asyncio
import contextlib
import os
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import msgspec
import structlog

from headwater.index import hnsw
from headwater.index.edge_shard import Shard, require_room
from headwater.tasks import ended

log = structlog.get_logger(__name__)

# Items caught up with at once: some 10 ms of the event loop.
_CATCH_UP_SLICE = 256
_CATCH_UP_LAST = 128


class GraphPolicy(msgspec.Struct, frozen=True):
    """When a new search graph is worth half a minute of a core: a scan costs 40 us per thousand items and query."""

    min_items: int = 10_000  # items outside the graph, below which a scan of them is cheap
    growth: float = 0.25  # and this share of the items within it
    quiet_s: float = 5.0  # once nothing was put for this long,
    patience_s: float = 120.0  # or the last graph was begun this long ago
    timeout_s: float = 3600.0

    def is_due(self, outside: int, within: int, quiet_s: float, since_last_s: float) -> bool:
        """Whether to build, given the items outside and within the graph and the time since the last put and build."""
        wanted = outside >= max(self.min_items, self.growth * within)
        return wanted and (quiet_s >= self.quiet_s or since_last_s >= self.patience_s)


class Indexed(Protocol):
    """What the graph is built over: the index and its shard, which is replaced by the new one."""

    shard: Shard
    writing: asyncio.Lock  # held while the shard is written

    @property
    def live_items(self) -> int:
        """Items that are not deleted."""

    def copy_to(self, shard: Shard, keys: Iterable[int]) -> None:
        """Bring the present versions of these items into a shard, or remove them where they are gone."""


class SearchGraph:
    """Builds the graph of ``index`` when the policy says so. Make it within a running event loop, and close it."""

    def __init__(self, index: Indexed, folder: Path, dim: int, policy: GraphPolicy) -> None:
        self._index, self._folder, self._dim, self._policy = index, folder, dim, policy
        self.covers = 0
        """Items that the graph was last built over; 0 while every search is a scan."""
        self.building: int | None = None
        """The process id of a build, while it runs."""
        self._outside = 0  # items put since
        self._changed: set[int] | None = None  # keys put since the copy of a graph under construction
        self._one_at_a_time = asyncio.Lock()
        self._builds = 0
        self._last_put_s = self._last_build_s = asyncio.get_running_loop().time()
        self._closing = False
        self._tender = asyncio.create_task(self._tend(), name="edge-index-graph")

    def note_put(self, keys: Iterable[int], live: int) -> None:
        """The items of these keys have been written to the shard; ``live`` of them were not deletes."""
        if self._changed is not None:
            self._changed.update(keys)
        self._outside += live
        self._last_put_s = asyncio.get_running_loop().time()

    async def build(self) -> None:
        """Build a graph over the present items in a child process, and swap it in with what was put meanwhile.

        Raises:
            NoRoom: the disk has too little room for the copy.
            RuntimeError: the build failed, or the index is closing. The shard stays as it was.
        """
        async with self._one_at_a_time:
            self._builds += 1
            path = self._folder / f"shard-{self._builds}"
            self._last_build_s = asyncio.get_running_loop().time()
            # The copy, in which no hole stays a hole, and as much again for the graph and what is put meanwhile.
            require_room(self._folder, 2 * _size(self._index.shard.path))
            outside = self._outside
            try:
                async with self._index.writing:
                    self._index.shard.flush()
                    self._changed = set()
                    covered, self._outside = self._index.live_items, 0
                    number_fields = set(self._index.shard.number_fields)
                    await asyncio.to_thread(shutil.copytree, self._index.shard.path, path)
                await self._run_build(path)
                fresh = Shard.load(path, number_fields)
                await self._catch_up(fresh)
            except BaseException:
                self._outside += outside
                shutil.rmtree(path, ignore_errors=True)
                raise
            finally:
                self._changed = None
            # Since the last slice of the catching up, nothing else has run.
            old, self._index.shard, self.covers = self._index.shard, fresh, covered
            old.close()
            await asyncio.to_thread(shutil.rmtree, old.path, ignore_errors=True)

    async def close(self) -> None:
        """End a build at once, with its process. The shard is not written by it any more."""
        self._closing = True
        await ended([self._tender])
        if self.building is not None:
            os.kill(self.building, signal.SIGKILL)
        async with self._one_at_a_time:
            pass

    async def _tend(self) -> None:
        not_before_s = 0.0
        while True:
            await asyncio.sleep(min(1.0, self._policy.quiet_s))
            now_s = asyncio.get_running_loop().time()
            quiet_s, since_last_s = now_s - self._last_put_s, now_s - self._last_build_s
            is_due = self._policy.is_due(self._outside, self.covers, quiet_s, since_last_s)
            if now_s < not_before_s or not is_due:
                continue
            try:
                await self.build()
            except Exception as problem:  # noqa: BLE001 - the engine's errors have no type of their own
                log.warning("search_graph_not_built", error=str(problem))
                not_before_s = now_s + self._policy.patience_s

    async def _run_build(self, path: Path) -> None:
        child = await asyncio.create_subprocess_exec(
            *hnsw.command(path, self._dim),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is for the parent, which ends the child itself
        )
        self.building = child.pid
        try:
            if self._closing:
                raise RuntimeError("the index is closing")
            async with asyncio.timeout(self._policy.timeout_s):
                _, problem = await child.communicate()
        finally:
            self.building = None
            if child.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
                await child.wait()
        if child.returncode != 0:
            said = problem.decode(errors="replace").strip().splitlines()
            raise RuntimeError(
                f"the build ended with {child.returncode}: {said[-1] if said else 'no message'}"
            )

    async def _catch_up(self, fresh: Shard) -> None:
        """Apply what was put since the copy. Twice as fast as items can be put, so it ends."""
        changed = self._changed
        assert changed is not None
        while len(changed) > _CATCH_UP_LAST:
            self._index.copy_to(fresh, [changed.pop() for _ in range(min(_CATCH_UP_SLICE, len(changed)))])
            await asyncio.sleep(0)
        for field in fresh.number_fields - self._index.shard.number_fields:
            fresh.drop_numbers(field)
        for field in self._index.shard.number_fields - fresh.number_fields:
            fresh.index_numbers(field)
        self._index.copy_to(fresh, changed)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
