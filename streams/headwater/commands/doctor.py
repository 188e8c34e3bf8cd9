"""`headwater doctor`: the list of its checks, and those of broker, topics, bundle, index and worker.

Each check is one function that yields findings. A check that cannot be made is a finding too, and the others go on.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Final

import msgspec

from headwater.commands import bundle_checks, group_checks
from headwater.commands.findings import TIMEOUT_S, Check, Finding, System, run
from headwater.commands.terminal import http_get
from headwater.encoder.runtime import load
from headwater.index.open import look_at
from headwater.kafka import rights, topics
from headwater.kafka.broker_clock import TOLERATED_SKEW_S
from headwater.kafka.rights import Role
from headwater.profiles.sealed import SEALED_REMEDY
from headwater.settings import Settings


async def examine(
    settings: Settings, web: str | None, roles: tuple[Role, ...] = ("interests", "catalog")
) -> list[Finding]:
    """All findings; `web` is the host:port of a worker, or None if none is known.

    ``roles`` are those that the user of these settings is to have the rights for.
    """
    system = System(settings, web, roles)
    broker = await run([BROKER], system)
    reachable = all(finding.ok for finding in broker)
    return broker + await run([check for check in CHECKS if reachable or not check.needs_broker], system)


async def _of_broker(system: System) -> AsyncIterator[Finding]:
    servers = system.settings.bootstrap_servers
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await topics.reach(system.settings)
    except TimeoutError:
        seen = f"{servers} did not answer within {TIMEOUT_S:g} s; is it running, and is this its address?"
        yield Finding("broker", False, seen)
    else:
        yield Finding("broker", True, servers)


async def _of_topics(system: System) -> AsyncIterator[Finding]:
    settings = system.settings
    problems = await topics.check(settings)
    for problem in problems:
        yield Finding("topics" if problem.fatal else "topics (a note)", not problem.fatal, str(problem))
    if not problems:
        yield Finding(
            "topics",
            True,
            f"all there; clicks, requests and profiles have {settings.partitions} partitions each, catalog, offers "
            f"and vectors {settings.catalog_partitions}",
        )


async def _of_rights(system: System) -> AsyncIterator[Finding]:
    async with system.admin() as admin:
        for role in system.roles:
            what = f"rights for {role}"
            async with asyncio.timeout(TIMEOUT_S):
                lacks = await rights.lacks(system.settings, admin, role)
            if lacks is None:
                yield Finding(what, True, "this broker does not tell what a user may do")
            elif lacks:
                user = system.settings.kafka_sasl_username or "this user"
                seen = f"{user} may not {'; '.join(map(str, lacks))}: allow it with `kafka-acls.sh`, or say by --role what it is to do"
                yield Finding(what, False, seen)
            else:
                yield Finding(what, True, "all that it needs")


async def _of_bundle(system: System) -> AsyncIterator[Finding]:
    settings = system.settings
    bundle = await asyncio.to_thread(load, settings.bundle_path, device=settings.device)
    yield Finding("bundle", True, f"{bundle.id} of {settings.bundle_path}, on {', '.join(bundle.providers)}")


async def _of_index(system: System) -> AsyncIterator[Finding]:
    if (look := await asyncio.to_thread(look_at, system.settings)) is not None:
        yield Finding("index", look.ok, look.seen)


async def _of_worker(system: System) -> AsyncIterator[Finding]:
    if (web := system.web) is None:
        seen = (
            "none known on this machine (no run file, no HEADWATER_WEB_PORT), so its health was not asked for"
        )
        yield Finding("worker", True, seen)
        return
    try:
        state = msgspec.json.decode((await asyncio.to_thread(http_get, web, "/healthz"))[1])
    except msgspec.DecodeError as error:
        yield Finding("worker", False, f"http://{web} answered something else than its health ({error})")
        return
    ok = bool(state.get("ok")) and bool(state.get("ready", True))
    known = ", ".join(
        f"{name} {state[name]}"
        for name in ("role", "bundle", "users", "items")
        if state.get(name) is not None
    )
    if (skew_s := state.get("clock_skew_s")) is not None and abs(skew_s) > TOLERATED_SKEW_S:
        seen = (
            f"that of the worker at http://{web} is {abs(skew_s):g} s {'ahead of' if skew_s > 0 else 'behind'} the "
            f"broker's, expected {TOLERATED_SKEW_S:g} s at most; set up NTP on both machines"
        )
        yield Finding("clock", False, seen)
    for place, (first, last) in state.get("lost", {}).items():
        yield Finding(
            "lost",
            False,
            f"{place}: offsets {first} to {last} were deleted before a worker read them, within the last week; raise the "
            "topic's retention.ms, or look why the workers were behind for so long",
        )
    if users := state.get("newer_format_users"):
        seen = (
            f"a newer version wrote the states of {users} users of the worker at http://{web}, which are not served: "
            f"{SEALED_REMEDY}"
        )
        yield Finding("states", False, seen)
    reason = state.get("reason") or ("" if state.get("ready", True) else "it is not ready yet; see its log")
    yield Finding("worker", ok, f"http://{web}: {known}{f'; {reason}' if reason else ''}")


BROKER: Final = Check("broker", _of_broker)
# In the order in which they are printed. They run at once, and none knows of another.
CHECKS: Final = (
    Check("topics", _of_topics),
    Check("rights", _of_rights),
    Check("groups", group_checks.interests),
    Check("groups", group_checks.catalog),
    Check("transactions", group_checks.transactions),
    Check("dead letters", group_checks.dead_letters),
    Check("bundle", _of_bundle, needs_broker=False),
    Check("bundles", bundle_checks.roles),
    Check("texts", bundle_checks.texts),
    Check("index", _of_index, needs_broker=False),
    Check("worker", _of_worker, needs_broker=False),
)
