"""The demo: the whole system on a year of real grocery purchases, with an embedded broker and index.

Catalog and purchases go through their topics, like those of any shop. Times are shifted so that the last purchase is
now. The baskets of the last two days are bought again, one by one, with the answers before and after each.
"""

import asyncio
import signal
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any, Final

import msgspec
import polars as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from headwater import run_file
from headwater.client import Client
from headwater.commands import live_page, worker_process
from headwater.index.open import IN_PROCESS
from headwater.kafka import topics
from headwater.kafka.embedded_broker import EmbeddedBroker
from headwater.messages import Click, Item, Response
from headwater.settings import GROCERIES_BUNDLE, Settings
from headwater_models.data import complete_journey

_LIVE_MS: Final = 2 * 86_400_000
# Purchases of one household less than this apart are one basket.
_BASKET_GAP_MS: Final = 120_000
_HOUSEHOLDS: Final = 6
# More baskets that are measured and not shown, so that the percentiles rest on more than a few.
_MEASURED: Final = 60
_LIMIT: Final = 5
# Some diversity: products that differ only in their maker make a list dull to read.
_DIVERSITY: Final = 0.3
_LIVE_PAUSE_S: Final = 1.0


class Basket(msgspec.Struct, frozen=True):
    """The items that one household bought at once."""

    user_id: str
    item_ids: list[str]


class Shown(msgspec.Struct, frozen=True):
    """One basket, with the titles recommended before and after it."""

    household: str
    bought: list[str]
    before: list[str]
    after: list[str]
    because: dict[str, list[str]]
    reflects: dict[str, Any]
    reflected: bool
    ms: float


class Summary(msgspec.Struct, frozen=True):
    """What ``--json`` prints."""

    catalog_items: int
    events: int
    asks: int
    answered: int
    after_click: int  # asks right after a purchase
    reflected: int  # those among them whose answer proves that it reflects the purchase
    ms_click_to_answer: dict[str, float]
    seconds: dict[str, float]
    bundle: str
    households: list[Shown]

    @property
    def is_complete(self) -> bool:
        """Whether every ask was answered, and every answer after a purchase reflects it."""
        return self.asks == self.answered and self.after_click == self.reflected > 0


async def run(
    settings: Settings, *, once: bool, as_json: bool, events: int | None, opens: bool = False
) -> int:
    """Run the demo and return the exit code. ``events``: how many of the last purchases to publish, None for all.

    ``opens``: show the live page in a browser, where there is a display.

    Raises:
        OwnWorkerError, BrokerError, DataMissing: with a sentence that says what to do.
    """
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    console = Console(stderr=True)
    try:
        return await _run(settings, console, once=once, as_json=as_json, events=events, opens=opens)
    except asyncio.CancelledError:
        console.print("stopped")
        return 130 if once else 0


async def _run(
    settings: Settings, console: Console, *, once: bool, as_json: bool, events: int | None, opens: bool
) -> int:
    started = time.monotonic()
    seconds: dict[str, float] = {}
    folder = run_file.demo_dir(settings)
    settings.model_copy(update={"data_dir": folder}).make_data_dir()
    with EmbeddedBroker(folder) as broker:
        admin_port = settings.admin_port or worker_process.free_port(settings.admin_host)
        own = (
            settings.with_open_page()
            .with_admin_token()
            .model_copy(
                update={
                    "bundle": settings.bundle or GROCERIES_BUNDLE,
                    "data_dir": folder,
                    "kafka_bootstrap_servers": broker.bootstrap_servers,
                    "admin_port": admin_port,
                    **IN_PROCESS,
                }
            )
        )
        await topics.create(own)
        async with worker_process.running(own) as web:
            live_page.tell(web, opens=opens)
            with Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=console,
            ) as progress:
                catalog, history, live, shift_ms = await asyncio.to_thread(_data, events)
                seconds["data"] = time.monotonic() - started
                health = await worker_process.ready(web)
                await _publish(own, progress, catalog, history, shift_ms, web, seconds)
            admin = f"http://{own.admin_host}:{admin_port}"
            with run_file.announced(
                own, embedded_broker=True, web=web, admin=admin, bundle_id=health["bundle"]
            ):
                async with Client(own) as client:
                    titles = dict(zip(catalog["item_id"], catalog["title"], strict=True))
                    shown, measured = await _replay(client, console, titles, live, web)
                    seconds["first_answer"] = measured.first_answer_s - started
                    seconds["total"] = time.monotonic() - started
                    summary = _summary(len(catalog), len(history), shown, measured, seconds, health["bundle"])
                    if as_json:
                        sys.stdout.write(msgspec.json.encode(summary).decode() + "\n")
                        sys.stdout.flush()
                    _report(console, summary)
                    if not once:
                        await _go_on(client, console, titles, live[_HOUSEHOLDS + _MEASURED :], web)
    return 0 if summary.is_complete else 1


# The data


def _data(events: int | None) -> tuple[pl.DataFrame, pl.DataFrame, list[Basket], int]:
    """Catalog, history, the baskets of the last two days, and how far times are shifted."""
    catalog = complete_journey.catalog()
    everything = complete_journey.events()
    last_ms = int(everything["at_ms"].max() or 0)  # type: ignore[arg-type]  # a column of integers has one
    cut = last_ms - _LIVE_MS
    history = everything.filter(pl.col("at_ms") <= cut)
    if events is not None:
        history = history.tail(events)
    known = set(catalog["item_id"])
    live = [
        Basket(basket.user_id, [item_id for item_id in basket.item_ids if item_id in known])
        for basket in _baskets(everything.filter(pl.col("at_ms") > cut))
    ]
    seasoned = set(history.group_by("user_id").len().filter(pl.col("len") >= 20)["user_id"])
    live = [basket for basket in live if 3 <= len(basket.item_ids) <= 12 and basket.user_id in seasoned]
    return catalog, history, live, time.time_ns() // 1_000_000 - last_ms


def _baskets(events: pl.DataFrame) -> Iterator[Basket]:
    """The baskets, in the order of their first purchase."""
    ends: dict[str, int] = {}
    baskets: dict[str, list[str]] = {}
    order: list[tuple[str, list[str]]] = []
    for user_id, item_id, at_ms in events.select("user_id", "item_id", "at_ms").iter_rows():
        if user_id not in ends or at_ms - ends[user_id] > _BASKET_GAP_MS:
            baskets[user_id] = []
            order.append((user_id, baskets[user_id]))
        baskets[user_id].append(item_id)
        ends[user_id] = at_ms
    return (Basket(user_id, item_ids) for user_id, item_ids in order)


# Catalog and history, through the topics


async def _publish(
    settings: Settings,
    progress: Progress,
    catalog: pl.DataFrame,
    history: pl.DataFrame,
    shift_ms: int,
    web: str,
    seconds: dict[str, float],
) -> None:
    def bar(what: str, total: int) -> worker_process.Done:
        task = progress.add_task(what, total=total)
        return lambda count: progress.update(task, completed=count)

    started, count = time.monotonic(), len(catalog)
    items = (Item(**row) for row in catalog.iter_rows(named=True))
    published, searchable = bar("catalog published", count), bar("catalog searchable", count)
    await worker_process.publish_items(settings, web, items, count, searchable, published)
    seconds["catalog"] = time.monotonic() - started

    started, count = time.monotonic(), len(history)
    clicks = (
        Click(f"cj-{number}", user_id, at_ms + shift_ms, item_id, "purchase")
        for number, (user_id, item_id, at_ms) in enumerate(
            history.select("user_id", "item_id", "at_ms").iter_rows()
        )
    )
    published, processed = bar("purchases published", count), bar("purchases applied", count)
    await worker_process.publish_clicks(settings, web, clicks, count, processed, published)
    seconds["history"] = time.monotonic() - started


# Live baskets


class _Measured:
    """Counts and times over all asks."""

    def __init__(self) -> None:
        self.asks = self.answered = self.after_click = self.reflected = 0
        self.ms: list[float] = []
        self.first_answer_s = 0.0


async def _replay(
    client: Client, console: Console, titles: dict[str, str], live: Sequence[Basket], web: str
) -> tuple[list[Shown], _Measured]:
    measured = _Measured()
    shown: list[Shown] = []
    households: set[str] = set()
    for basket in live[: _HOUSEHOLDS + _MEASURED]:
        is_shown = len(shown) < _HOUSEHOLDS and basket.user_id not in households
        found = await _bought(client, basket, titles, measured)
        if found is None:
            await worker_process.require(web)
        elif is_shown:
            shown.append(found)
            households.add(basket.user_id)
            _show(console, found)
    return shown, measured


async def _bought(
    client: Client, basket: Basket, titles: dict[str, str], measured: _Measured
) -> Shown | None:
    """Ask, buy the basket, ask again. None if an ask got no answer."""
    before = await _ask(client, basket.user_id, measured)
    event_id = ""
    started = time.perf_counter()
    for item_id in basket.item_ids:
        started = time.perf_counter()
        event_id = f"live-{basket.user_id}-{item_id}-{time.time_ns()}"
        await client.click(basket.user_id, item_id, "purchase", event_id=event_id)
    measured.after_click += 1
    after = await _ask(client, basket.user_id, measured)
    ms = (time.perf_counter() - started) * 1000.0
    if before is None or after is None or after.reflects is None:
        return None
    last = client.last_click(basket.user_id)
    reflects = after.reflects
    reflected = (
        last is not None
        and reflects.partition == last.partition
        and reflects.offset >= last.offset
        and reflects.last_event_id == event_id
    )
    measured.reflected += reflected
    measured.ms.append(ms)
    return Shown(
        household=basket.user_id,
        bought=[titles[item_id] for item_id in basket.item_ids],
        before=[titles.get(item.item_id, item.item_id) for item in before.items],
        after=[titles.get(item.item_id, item.item_id) for item in after.items],
        because={
            titles.get(item.item_id, item.item_id): [
                f"{titles.get(reason.item_id, reason.item_id)} ({reason.share:.0%})"
                for reason in item.because
            ]
            for item in after.items
        },
        reflects=msgspec.to_builtins(reflects),
        reflected=reflected,
        ms=round(ms, 2),
    )


async def _ask(client: Client, user_id: str, measured: _Measured) -> Response | None:
    measured.asks += 1
    try:
        answer = await client.recall(user_id, limit=_LIMIT, diversity=_DIVERSITY, explain=True)
    except Exception as error:  # noqa: BLE001 - whatever fails is counted as an ask without an answer
        sys.stderr.write(f"household {user_id}: no answer ({type(error).__name__}: {error})\n")
        return None
    measured.answered += 1
    if not measured.first_answer_s:
        measured.first_answer_s = time.monotonic()
    return answer


async def _go_on(
    client: Client, console: Console, titles: dict[str, str], live: Sequence[Basket], web: str
) -> None:
    """Show one basket a second until the demo is stopped. It stays up after the last one."""
    console.print("\n[bold]live[/bold]: a basket a second; Ctrl-C stops everything. In a second terminal:")
    console.print(
        "  headwater ask HOUSEHOLD    headwater click HOUSEHOLD PRODUCT    headwater user HOUSEHOLD\n"
    )
    measured = _Measured()
    for basket in live:
        found = await _bought(client, basket, titles, measured)
        if found is None:
            await worker_process.require(web)
        else:
            bought, answer = "; ".join(found.bought[:2]), "; ".join(found.after[:3])
            console.print(f"[cyan]{found.household:>5}[/cyan] {found.ms:6.1f} ms  {bought} -> {answer}")
        await asyncio.sleep(_LIVE_PAUSE_S)
    console.print("every basket of the data has been bought; the system goes on running")
    await asyncio.Event().wait()


# Output for people


def _show(console: Console, shown: Shown) -> None:
    table = Table(title=f"household {shown.household}", title_justify="left", width=min(console.width, 130))
    for column in ("recommended before", "recommended after", "because of"):
        table.add_column(column, ratio=1)
    for index in range(max(len(shown.before), len(shown.after))):
        before = shown.before[index] if index < len(shown.before) else ""
        after = shown.after[index] if index < len(shown.after) else ""
        table.add_row(before, after, ", ".join(shown.because.get(after, [])))
    console.print()
    console.print(f"[bold]just bought[/bold]: {'; '.join(shown.bought)}")
    console.print(table)
    reflects = shown.reflects
    proof = "includes the last purchase" if shown.reflected else "DOES NOT include the last purchase"
    console.print(
        f"the answer {proof}: clicks partition {reflects['partition']} up to offset {reflects['offset']}, "
        f"{reflects['events']} events, {reflects['pending']} pending; [bold]{shown.ms:.1f} ms[/bold] from purchase to answer"
    )


def _summary(
    items: int,
    events: int,
    shown: list[Shown],
    measured: _Measured,
    seconds: dict[str, float],
    bundle: str,
) -> Summary:
    ms = sorted(measured.ms) or [0.0]
    return Summary(
        catalog_items=items,
        events=events,
        asks=measured.asks,
        answered=measured.answered,
        after_click=measured.after_click,
        reflected=measured.reflected,
        ms_click_to_answer={
            "p50": round(statistics.median(ms), 2),
            "p99": round(ms[min(len(ms) - 1, int(0.99 * len(ms)))], 2),
            "count": len(measured.ms),
        },
        seconds={name: round(value, 2) for name, value in seconds.items()},
        bundle=bundle,
        households=shown,
    )


def _report(console: Console, summary: Summary) -> None:
    ms = summary.ms_click_to_answer
    console.print(
        f"\n[bold]{summary.catalog_items:,} products and {summary.events:,} purchases[/bold] in "
        f"{summary.seconds['catalog']:.1f} s and {summary.seconds['history']:.1f} s; first answer "
        f"{summary.seconds['first_answer']:.1f} s after the start; {summary.answered} of {summary.asks} asks answered, "
        f"{summary.reflected} of {summary.after_click} prove that they know the purchase just made; purchase to changed answer p50 {ms['p50']:.1f} ms, "
        f"p99 {ms['p99']:.1f} ms"
    )
