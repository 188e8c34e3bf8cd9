"""The pictures of the READMEs, made anew: python -m tests.support.pictures [--address URL] [--only NAME ...] [--out FOLDER].

Without `--address` it runs `headwater demo`, publishes two records that cannot be used, and runs a gateway beside it. With
one it takes the live page there: what needs the demo is left out. Chromium is the system's, as in the page's tests.
"""

import argparse
import asyncio
import base64
import io
import os
import re
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, NamedTuple, cast

import aiohttp
import msgspec
from aiokafka import AIOKafkaProducer
from PIL import Image
from playwright.async_api import Browser, Page, async_playwright, expect

from headwater.kafka.embedded_broker import dying_with_us
from headwater.kafka.topics import Topics
from headwater.run_file import Run
from tests.support.checkout import ROOT
from tests.support.chromium import CHROMIUM, arguments

OUT: Final = ROOT / "streams" / "pictures"
_LONG_MS: Final = 60_000
_READY_S: Final = 600.0
# As long as the lines of the stream need to fill most of their width.
_LINES_S: Final = 100.0
_COLOURS: Final = 256
_WIDE: Final = {"width": 1240, "height": 860}
_NARROW: Final = {"width": 390, "height": 800}
_GAP: Final = 16
# Between two pictures of the click, and how long the last one stays.
_FRAME_MS: Final = 90
_STAYS_MS: Final = 2_500
_FRAMES: Final = 14
_BAD_CLICKS: Final = (
    b'{"event_id":"e-17","user_id":"ann","item_id":"1024","at_ms":1764547200000,"action":"clik"}',
    b'{"event_id":"e-18","user_id":"bob","item_id":',
)


class Place(NamedTuple):
    """Where the pictures are taken; what is None is not there."""

    page: str  # http://host:port
    gateway: str | None = None
    state: Path | None = None  # the folder by which commands find the system


async def main() -> int:
    """0: all pictures are there."""
    options = _options()
    options.out.mkdir(parents=True, exist_ok=True)
    async with AsyncExitStack() as stack:
        if options.address is not None:
            place = Place(options.address.rstrip("/"))
        else:
            place = await stack.enter_async_context(_demo())
        playwright = await stack.enter_async_context(async_playwright())
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=arguments())
        stack.push_async_callback(browser.close)
        await _settled(place.page)
        lines = await _opened(browser, place.page)  # its lines grow while the others are taken
        began_s = asyncio.get_running_loop().time()
        for name, (taken, needs_demo) in PICTURES.items():
            if (options.only and name not in options.only) or (needs_demo and place.state is None):
                continue
            await _write(options.out / f"{name}.png", await taken(browser, place))
        if not options.only or "stream" in options.only:
            await asyncio.sleep(max(_LINES_S - (asyncio.get_running_loop().time() - began_s), 0.0))
            await _write(options.out / "stream.png", await _of(lines, "#stream"))
    total = sum(path.stat().st_size for path in options.out.iterdir())
    print(f"{options.out}: {total / 1e6:.2f} MB")
    return 0


# The pictures


async def _shopper(browser: Browser, place: Place) -> Image.Image:
    page = await _opened(browser, place.page)
    await _be(page, "ada")
    await _click(page, "chocolate")
    await _click(page, "cat food", "purchase")
    await _rest(page)
    return await _of(page, "#shopper", height=1_000)


async def _funnel_dark(browser: Browser, place: Place) -> Image.Image:
    page = await _opened(browser, place.page, scheme="dark")
    await _be(page, "ada")
    await _click(page, "chocolate")
    await page.locator("#funnel details", has_text="Excluded").locator("summary").click()
    await _rest(page)
    return await _of(page, "#funnel")


async def _phone(browser: Browser, place: Place) -> Image.Image:
    page = await _opened(browser, place.page, viewport=_NARROW)
    await _be(page, "bea")
    await _click(page, "chocolate")
    await _rest(page)
    shots = []
    for part in ("#stream", "#answer-card", "#map-card"):
        await page.evaluate(
            "(part) => document.querySelector(part).scrollIntoView({behavior: 'instant'})", part
        )
        await _rest(page)
        shots.append(await _shot(page))
    return _beside(shots, columns=3)


async def _tour(browser: Browser, place: Place) -> Image.Image:
    page = await _opened(browser, place.page)
    await page.evaluate("localStorage.clear()")
    await page.click("#tour-start")
    shots = []
    while await page.locator("#tour").is_visible():
        await expect(page.locator("#tour-next")).to_be_enabled(timeout=_LONG_MS)
        await _rest(page)
        shots.append(await _shot(page))
        await page.click("#tour-next")
    return _beside(
        [shot.resize((shot.width // 2, shot.height // 2), Image.Resampling.LANCZOS) for shot in shots], 2
    )


async def _click_moves(browser: Browser, place: Place) -> list[Image.Image]:
    """What a browser paints from before a click until all has come to rest."""
    page = await _opened(browser, place.page, is_still=False)
    await _be(page, "cal")
    await _click(page, "chocolate")
    await page.fill("#search", "cat food")
    await expect(page.locator("#found .thing").first).to_be_visible(timeout=_LONG_MS)
    await page.evaluate("document.querySelector('.desk').scrollIntoView({behavior: 'instant'})")
    await asyncio.sleep(1.5)
    session = await page.context.new_cdp_session(page)
    frames: list[bytes] = []

    def painted(event: dict[str, Any]) -> None:
        frames.append(base64.b64decode(event["data"]))
        acknowledged = session.send("Page.screencastFrameAck", {"sessionId": event["sessionId"]})
        tasks.append(asyncio.ensure_future(acknowledged))

    tasks: list[asyncio.Future[Any]] = []
    session.on("Page.screencastFrame", painted)
    await session.send("Page.startScreencast", {"format": "png", "everyNthFrame": 1})
    await asyncio.sleep(0.3)
    await page.locator("#found [data-action=click]").first.click()
    await expect(page.locator("#proof .proof")).to_contain_text("Proved", timeout=_LONG_MS)
    await asyncio.sleep(2.0)
    await session.send("Page.stopScreencast")
    await asyncio.gather(*tasks, return_exceptions=True)
    images = [Image.open(io.BytesIO(frame)).convert("RGB") for frame in frames]
    changed = [after for before, after in pairwise(images) if before.tobytes() != after.tobytes()]
    step = max(len(changed) / _FRAMES, 1.0)
    chosen = [changed[int(number * step)] for number in range(int(len(changed) / step))]
    return [images[0], *chosen, images[-1]]


async def _letter(browser: Browser, place: Place) -> Image.Image:
    """A dead letter from its arrival to its redrive."""
    assert place.state is not None
    await _publish_bad_clicks(place.state)
    page = await _opened(browser, place.page)
    group = page.locator("#letters .group", has_text="bad_field")
    for _ in range(50):
        await page.click("#letters-again")
        await expect(page.locator("#letters-again[aria-disabled]")).to_have_count(0, timeout=_LONG_MS)
        if await group.count():
            break
        await asyncio.sleep(0.5)
    await _rest(page)
    shots = [await _of(page, "#trust > .card")]
    await group.get_by_role("button", name="Show").click()
    await group.locator("details.letter summary").first.click()
    await expect(group.locator("pre").first).to_be_visible(timeout=_LONG_MS)
    await _rest(page)
    shots.append(await _of(page, "#trust > .card"))
    await group.get_by_role("button", name="Redrive", exact=False).first.click()
    await expect(page.locator("#confirm-text")).to_contain_text(re.compile("go(es)? back"), timeout=_LONG_MS)
    shots.append(await _shot(page))
    await page.click("#confirm-yes")
    await expect(page.locator("#letters-problem")).to_contain_text("went back", timeout=_LONG_MS)
    await _rest(page)
    shots.append(await _of(page, "#trust > .card"))
    return _beside(shots, columns=1)


async def _docs(browser: Browser, place: Place) -> Image.Image:
    shots = []
    for path in ("/docs/api", "/docs/topics"):
        page = await _new(browser, {"width": 760, "height": 900}, "light", is_still=True)
        await page.goto(f"{place.gateway}{path}")
        await expect(page.locator("details").first).to_be_visible(timeout=_LONG_MS)
        await page.locator("details summary").first.click()
        await _rest(page)
        shots.append(await _shot(page))
    return _beside(shots, columns=2)


Taken = Image.Image | list[Image.Image]
PICTURES: Final[dict[str, tuple[Callable[[Browser, Place], Awaitable[Taken]], bool]]] = {
    "shopper": (_shopper, False),
    "funnel-dark": (_funnel_dark, False),
    "phone": (_phone, False),
    "tour": (_tour, False),
    "click": (_click_moves, False),
    "letter": (_letter, True),
    "docs": (_docs, True),
}


# On the page


async def _new(browser: Browser, viewport: Any, scheme: Any, *, is_still: bool) -> Page:
    context = await browser.new_context(
        viewport=viewport, color_scheme=scheme, reduced_motion="reduce" if is_still else "no-preference"
    )
    context.set_default_timeout(_LONG_MS)
    return await context.new_page()


async def _opened(
    browser: Browser, address: str, viewport: Any = _WIDE, scheme: Any = "light", *, is_still: bool = True
) -> Page:
    page = await _new(browser, viewport, scheme, is_still=is_still)
    await page.add_init_script("localStorage.setItem('headwater-tour', 'seen')")
    await page.goto(address)
    await expect(page.locator("#connection")).to_have_attribute("data-state", "live", timeout=_LONG_MS)
    await expect(page.locator("#map-note")).to_contain_text("items", timeout=_LONG_MS)
    return page


async def _be(page: Page, user_id: str) -> None:
    await page.fill("#who", user_id)
    await page.click("#who-form button[type=submit]")
    await expect(page.locator("#answer .thing").first).to_be_visible(timeout=_LONG_MS)


async def _click(page: Page, words: str, action: str = "click") -> None:
    before = await page.locator("#log-note").inner_text()
    await page.fill("#search", words)
    await expect(page.locator("#found .thing").first).to_contain_text(
        re.compile(words.split()[-1], re.I), timeout=_LONG_MS
    )
    await page.locator(f"#found [data-action={action}]").first.click()
    await expect(page.locator("#log-note")).not_to_have_text(before or "-", timeout=_LONG_MS)
    await expect(page.locator("#proof .proof")).to_contain_text("Proved", timeout=_LONG_MS)


async def _rest(page: Page) -> None:
    """Wait until what moves has come to rest, and no item has the pointer on it."""
    await page.mouse.move(0, 0)
    await asyncio.sleep(1.0)


async def _shot(page: Page) -> Image.Image:
    return Image.open(io.BytesIO(await page.screenshot())).convert("RGB")


async def _of(page: Page, part: str, height: float | None = None) -> Image.Image:
    """A part of the page with a margin, without the head that stays over everything."""
    await page.evaluate("document.querySelector('.top').style.position = 'static'")
    box = await page.locator(part).first.bounding_box()
    assert box is not None
    scrolled = await page.evaluate("scrollY")
    clip = {
        "x": max(box["x"] - _GAP, 0),
        "y": box["y"] + scrolled - _GAP,
        "width": box["width"] + 2 * _GAP,
        "height": min(box["height"], height or box["height"]) + 2 * _GAP,
    }
    shot = await page.screenshot(full_page=True, clip=cast(Any, clip))
    await page.evaluate("document.querySelector('.top').style.position = ''")
    return Image.open(io.BytesIO(shot)).convert("RGB")


def _beside(shots: list[Image.Image], columns: int) -> Image.Image:
    """Pictures as a table, row by row."""
    rows = [shots[start : start + columns] for start in range(0, len(shots), columns)]
    width = max(sum(shot.width for shot in row) + _GAP * (len(row) - 1) for row in rows)
    height = sum(max(shot.height for shot in row) for row in rows) + _GAP * (len(rows) - 1)
    whole = Image.new("RGB", (width, height), "white")
    top = 0
    for row in rows:
        left = 0
        for shot in row:
            whole.paste(shot, (left, top))
            left += shot.width + _GAP
        top += max(shot.height for shot in row) + _GAP
    return whole


async def _write(path: Path, taken: Taken) -> None:
    """As a PNG of few colours, a moving one where there are several. Rare colours are kept: the map has many."""
    images = taken if isinstance(taken, list) else [taken]
    palette = images[-1].quantize(_COLOURS, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    first, *rest = [image.quantize(palette=palette, dither=Image.Dither.NONE) for image in images]
    more: dict[str, Any] = {}
    if rest:
        stays = [_FRAME_MS * 8, *[_FRAME_MS] * (len(rest) - 1), _STAYS_MS]
        more = {"save_all": True, "append_images": rest, "duration": stays, "loop": 0}
    await asyncio.to_thread(first.save, path, optimize=True, **more)
    print(f"{path}: {path.stat().st_size / 1000:,.0f} kB")


# What they are taken of


@asynccontextmanager
async def _demo() -> AsyncIterator[Place]:
    with tempfile.TemporaryDirectory(prefix="headwater-pictures-") as folder:
        # What it leaves to be found by is of nobody else.
        environment = {**os.environ, "HEADWATER_DATA_DIR": folder, "XDG_STATE_HOME": folder}
        async with _running(["demo", "--no-open"], environment, r"live page: (http://\S+)") as page:
            await _announced(Path(folder))
            gateway = _running(["gateway", "--port", "0"], environment, r"gateway: (http://\S+),")
            async with gateway as address:
                yield Place(page.rstrip("/"), address, Path(folder))


async def _announced(state: Path) -> Run:
    """What the demo says of itself to other terminals, once it does."""
    async with asyncio.timeout(_READY_S):
        while not (paths := list(state.rglob("running/*.json"))):
            await asyncio.sleep(0.2)
    return msgspec.json.decode(paths[0].read_bytes(), type=Run)


@asynccontextmanager
async def _running(command: list[str], environment: dict[str, str], says: str) -> AsyncIterator[str]:
    """A command of headwater, and what it says first."""
    process = await asyncio.create_subprocess_exec(
        *dying_with_us([sys.executable, "-m", "headwater.commands.main", *command]),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
        env=environment,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(_READY_S):
            said = b""
            while (found := re.search(says, said.decode(errors="replace"))) is None:
                line = await process.stderr.readline()
                assert line, f"{command[0]} ended before it said where it is: {said.decode()}"
                said += line
        watching = asyncio.ensure_future(_watch(process, command[0], asyncio.current_task()))
        try:
            yield found[1]
        finally:
            watching.cancel()
    finally:
        if process.returncode is None:
            process.terminate()
        await process.wait()


async def _watch(process: asyncio.subprocess.Process, name: str, owner: "asyncio.Task[Any] | None") -> None:
    """Tell what a process said that ends by itself, and give up."""
    assert process.stderr is not None
    words = await process.stderr.read()
    print(f"{name} ended by itself: {words[-2_000:].decode(errors='replace')}", file=sys.stderr)
    if owner is not None:
        owner.cancel()


async def _settled(address: str) -> None:
    """Wait until the catalog does not grow any more and all clicks are applied."""
    calm, before = 0, -1
    async with (
        asyncio.timeout(_READY_S),
        aiohttp.ClientSession() as http,
        http.get(f"{address}/live/events") as response,
    ):
        async for line in response.content:
            if not line.startswith(b'data: {"at_ms"'):
                continue
            figures = msgspec.json.decode(line.removeprefix(b"data: "))
            lag = sum(max(each.get("lag") or 0, 0) for each in figures["partitions"])
            calm = calm + 1 if figures["items"] == before and figures["items"] > 0 and lag < 100 else 0
            before = figures["items"]
            if calm >= 8:
                return


async def _publish_bad_clicks(state: Path) -> None:
    run = await _announced(state)
    async with AIOKafkaProducer(bootstrap_servers=run.bootstrap_servers) as producer:
        for value in _BAD_CLICKS:
            await producer.send_and_wait(Topics.named(run.topic_prefix).clicks, value, key=b"ann")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.support.pictures", description=__doc__)
    parser.add_argument("--address", metavar="URL", help="of a live page that runs, open without a token")
    parser.add_argument("--only", nargs="+", choices=[*PICTURES, "stream"], metavar="NAME", default=[])
    parser.add_argument("--out", type=Path, default=OUT, metavar="FOLDER", help=f"default: {OUT}")
    return parser.parse_args()


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main()))
    except asyncio.CancelledError:  # what ended has been told
        sys.exit(1)
