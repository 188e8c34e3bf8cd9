"""The live page in a browser, on a made-up shop."""

import re
from collections.abc import AsyncIterator
from typing import Final

import pytest
import pytest_asyncio
from aiohttp import web
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright, expect

from tests.support.chromium import CHROMIUM, arguments, needs_chromium
from tests.support.live_stand_in import Shop, application

# A machine with other work may be slow; nothing here is about speed.
LONG_MS: Final = 30_000
HOSTILE: Final = '<img src=x onerror="window.hacked=1"><b>Bold</b>'

pytestmark = [
    needs_chromium,
    pytest.mark.asyncio(loop_scope="module"),
]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        launched = await playwright.chromium.launch(executable_path=CHROMIUM, args=arguments())
        yield launched
        await launched.close()


@pytest.fixture
def shop() -> Shop:
    return Shop(
        more=[
            ("<script>alert(1)</script>", HOSTILE, "<i>odd</i>"),
            ("__proto__", "Plain words", "words"),
            ("o1", "Turned \u202eaet", "words"),
        ]
    )


class Site:
    """The shop's server, which can be stopped, and started again on the same port."""

    def __init__(self, shop: Shop) -> None:
        self._shop, self._port = shop, 0
        self._runner: web.AppRunner | None = None

    async def start(self) -> str:
        self._runner = web.AppRunner(application(self._shop, interval_s=0.1), shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port, reuse_address=True).start()
        self._port = self._runner.addresses[0][1]
        return f"http://127.0.0.1:{self._port}"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()


@pytest_asyncio.fixture(loop_scope="module")
async def site(shop: Shop) -> AsyncIterator[Site]:
    site = Site(shop)
    yield site
    await site.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def address(site: Site) -> str:
    return await site.start()


class Visit:
    """A page that keeps what the browser complains of, and what it asks for."""

    def __init__(self, page: Page) -> None:
        self.page, self.complaints, self.asked = page, list[str](), list[str]()
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("console", self._heard)

    def _heard(self, told: ConsoleMessage) -> None:
        # Chromium logs each answer of 404, such as that of a user who is new.
        if told.type == "error" and "404" not in told.text:
            self.complaints.append(told.text)

    async def violations(self) -> list[str]:
        found: list[str] = await self.page.evaluate("window.violations")
        return found


@pytest_asyncio.fixture(loop_scope="module")
async def visit(browser: Browser, address: str) -> AsyncIterator[Visit]:
    context = await browser.new_context(viewport={"width": 1280, "height": 800}, reduced_motion="reduce")
    context.set_default_timeout(LONG_MS)
    page = await context.new_page()
    await page.add_init_script(
        "window.violations = [];"
        "document.addEventListener('securitypolicyviolation', (each) => violations.push(each.violatedDirective));"
    )
    visited = Visit(page)
    await page.goto(address)
    await expect(page.locator("#connection")).to_have_attribute("data-state", "live", timeout=LONG_MS)
    yield visited
    await context.close()


async def become(page: Page, user_id: str) -> None:
    await page.fill("#who", user_id)
    await page.click("#who-form button[type=submit]")
    await expect(page.locator("#answer .thing")).to_have_count(8, timeout=LONG_MS)


async def search(page: Page, words: str) -> None:
    await page.fill("#search", words)
    await expect(page.locator("#found .thing").first).to_be_visible(timeout=LONG_MS)


async def test_the_tour_clicks_through_every_part_and_the_policy_refuses_nothing(
    visit: Visit, shop: Shop, address: str
) -> None:
    page = visit.page
    await page.click("#welcome-go")
    steps = []
    while await page.locator("#tour").is_visible():
        await expect(page.locator("#tour-next")).to_be_enabled(timeout=LONG_MS)
        steps.append(await page.locator("#tour-title").inner_text())
        if steps[-1] == "One click":
            await expect(page.locator("#proof .proof")).to_contain_text("Proved: your click is record")
        if steps[-1] == "Back in time":
            await expect(page.locator("#answer-when")).to_have_text("as it was after 1 of 2 events")
            await expect(page.locator("#map")).to_have_attribute("data-interests", "1")
        await page.click("#tour-next")
    assert len(steps) == 8
    visitors = [user_id for user_id in shop.users if user_id.startswith("visitor-")]
    assert len(visitors) == 1  # what the tour publishes is of one made-up user
    assert len(shop.users[visitors[0]]) == 2
    await page.locator("#funnel details", has_text="Excluded").locator("summary").click()
    await expect(page.locator("#funnel details[open] .tag small").first).to_have_text("seen")
    await page.click("#doctor-run")
    await expect(page.locator("#findings .wrong")).to_contain_text("start one more worker")
    await page.click("#theme")
    assert visit.complaints == []
    assert await visit.violations() == []
    assert [url for url in visit.asked if not url.startswith(f"{address}/")] == []
    for link in await page.locator("footer a:visible").all():
        assert (await page.request.get(f"{address}{await link.get_attribute('href')}")).ok
    await page.reload()
    await expect(page.locator("#connection")).to_have_attribute("data-state", "live", timeout=LONG_MS)
    await expect(page.locator("#welcome")).to_be_hidden()  # it is offered once


async def test_html_in_titles_and_ids_is_text(visit: Visit, shop: Shop) -> None:
    page = visit.page
    shop.letters[0] |= {"reason": HOSTILE, "message": HOSTILE, "place": f"{HOSTILE}/0/1"}
    await become(page, HOSTILE)
    await search(page, "bold")
    await expect(page.locator("#found .title")).to_have_text(HOSTILE)
    await page.click("#found [data-action=click]")
    await expect(page.locator("#proof .proof")).to_contain_text("Proved")
    await expect(page.locator("#answer .about").first).to_contain_text(HOSTILE)
    await expect(page.locator("#log .title")).to_have_text(HOSTILE)
    await search(page, "plain words")
    await expect(page.locator("#found .title")).to_have_text("Plain words")
    await page.click("#found [data-action=click]")
    await expect(page.locator("#log .title")).to_have_text("Plain words")
    await search(page, "bold")
    await expect(page.locator("#found .title")).to_have_text(HOSTILE)
    await page.hover("#found .thing")
    await expect(page.locator("#map .tip")).to_contain_text(HOSTILE)
    await page.click("#letters-again")
    await page.locator("#letters .group", has_text=HOSTILE).get_by_text("Show").click()
    await page.locator("#letters details summary").first.click()
    await expect(page.locator("#letters pre").first).to_be_visible()
    await page.get_by_text("Its bytes").click()
    await expect(page.locator("#letters pre").last).to_contain_text("7b 22 65")
    # From the stream too.
    await expect(page.locator("#who-recent", has_text=HOSTILE)).to_be_visible(timeout=LONG_MS)
    assert await page.evaluate("window.hacked") is None
    assert await page.locator("main img, main script, main b, main i").count() == 0
    assert visit.complaints == []
    assert await visit.violations() == []


async def test_a_title_turns_no_letters_around_it_and_a_cut_link_stops_nothing(
    visit: Visit, shop: Shop
) -> None:
    page = visit.page
    title = shop.items["o1"]["title"]
    assert "\u202e" in title
    await page.goto(f"{page.url.partition('#')[0]}#token=%")
    await page.reload()
    await expect(page.locator("#connection")).to_have_attribute("data-state", "live", timeout=LONG_MS)
    await become(page, "ann")
    await search(page, "turned")
    await expect(page.locator("#found .title")).to_have_text(title.replace("\u202e", "\ufffd"))
    assert visit.complaints == []


async def test_everything_can_be_done_with_the_keyboard(visit: Visit, shop: Shop) -> None:
    page, press = visit.page, visit.page.keyboard.press

    async def focused() -> str:
        name: str = await page.evaluate(
            "(({ariaLabel, id, textContent}) => ariaLabel || id || textContent)(document.activeElement)"
        )
        return name

    async def tab_to(label: str, key: str = "Tab") -> None:
        for _ in range(25):
            await press(key)
            if re.search(label, await focused()):
                assert await page.evaluate("document.activeElement.matches(':focus-visible')")
                return
        raise AssertionError(f"{label} cannot be reached")

    await press("Tab")
    assert await focused() == "Skip to the shopper"
    await tab_to("^who$")
    await page.keyboard.type("fay")
    await press("Enter")
    await expect(page.locator("#said")).to_contain_text("You are fay", timeout=LONG_MS)
    await tab_to("^search$")
    await page.keyboard.type("green tea")
    await expect(page.locator("#found .title").first).to_contain_text("Green tea", timeout=LONG_MS)
    await tab_to("^Click: Green tea")  # a list is one stop of the Tab key, arrow keys go on from there
    await press("Enter")
    await expect(page.locator("#said")).to_contain_text("It reflects your click", timeout=LONG_MS)
    await press("ArrowRight")
    await press("ArrowRight")
    assert (await focused()).startswith("Dislike: Green tea")
    await page.evaluate("document.getElementById('said').textContent = ''")
    await press("Enter")
    await expect(page.locator("#said")).to_contain_text("It reflects your click", timeout=LONG_MS)
    assert [event["action"] for event in shop.users["fay"]] == ["click", "dislike"]
    await tab_to("^Click")
    await press("ArrowDown")
    await page.evaluate("document.getElementById('said').textContent = ''")
    await press("Enter")
    await expect(page.locator("#said")).to_contain_text("It reflects your click", timeout=LONG_MS)
    assert len(shop.users["fay"]) == 3
    assert (await focused()).startswith("Click")  # the item is gone, and the focus is not
    await tab_to("^Map of the catalog")
    await press("ArrowRight")
    await expect(page.locator("#said")).to_contain_text("1 of 8:", timeout=LONG_MS)
    await tab_to("^The answer as it was", "Shift+Tab")
    await press("ArrowLeft")
    await expect(page.locator("#answer-when")).to_have_text("as it was after 2 of 3 events", timeout=LONG_MS)


async def test_what_is_only_tried_is_not_published(visit: Visit, shop: Shop) -> None:
    page = visit.page
    await become(page, "gus")
    await search(page, "rye")
    await page.check("#what-if")
    await page.locator("#found [data-action=click]").first.click()
    await expect(page.locator("#proof")).to_contain_text("The log does not have them", timeout=LONG_MS)
    await expect(page.locator("#what-if-events")).to_contain_text("Rye loaf")
    await expect(page.locator("#map")).to_have_attribute("data-interests", "1")
    first = await page.locator("#answer .thing").first.get_attribute("data-item")
    await page.locator("#answer [data-action=dislike]").first.click()
    await expect(page.locator(f"#answer [data-item='{first}']")).to_have_count(0, timeout=LONG_MS)
    assert "gus" not in shop.users
    await page.uncheck("#what-if")
    await expect(page.locator("#answer-when")).to_have_text("", timeout=LONG_MS)


async def test_a_dead_letter_is_redriven_only_after_a_question(visit: Visit, shop: Shop) -> None:
    page = visit.page
    group = page.locator("#letters .group", has_text="bad_json")
    for answer, left in (("Cancel", 4), ("Redrive", 2)):
        await group.get_by_role("button", name="Redrive").click()
        await expect(page.locator("#confirm-text")).to_contain_text(
            "2 letters go back to their topic", timeout=LONG_MS
        )
        await page.fill("#rate", "20")
        await page.locator("#confirm").get_by_role("button", name=answer).click()
        await expect(page.locator("#confirm")).to_be_hidden()
        if left == 2:
            await expect(group).to_have_count(0, timeout=LONG_MS)
        assert len(shop.letters) == left
    await expect(page.locator("#letters-problem")).to_have_text("2 letters went back.")
    assert shop.rates == [20.0]


async def test_a_phone_scrolls_one_way_only(visit: Visit) -> None:
    page = visit.page
    await page.set_viewport_size({"width": 360, "height": 740})
    await become(page, "household-3")
    await search(page, "coffee")
    await page.locator("#found [data-action=click]").first.click()
    await expect(page.locator("#proof .proof")).to_contain_text("Proved", timeout=LONG_MS)
    await page.get_by_text("bad_field", exact=True).last.scroll_into_view_if_needed()
    for path in ("#letters button", "#funnel summary"):
        await page.locator(path).first.click()
    assert await page.evaluate("document.documentElement.scrollWidth") == 360
    outside = """[...document.querySelectorAll('main *')].filter((each) => !each.closest('.scroll, .items, .map, .sr')
        && each.getBoundingClientRect().right > 361).map((each) => each.outerHTML.slice(0, 80))"""
    assert await page.evaluate(outside) == []


async def test_a_page_comes_back_by_itself_and_says_so_while_the_worker_is_away(
    visit: Visit, site: Site, shop: Shop
) -> None:
    page = visit.page
    await site.stop()
    await expect(page.locator("#away")).to_contain_text(
        "The worker is away: the worker stops.", timeout=LONG_MS
    )
    await expect(page.locator("#connection")).to_have_text("away")
    shop.is_starting = True
    await site.start()
    await expect(page.locator("#connection")).to_have_text("live", timeout=LONG_MS)
    await expect(page.locator("#away")).to_be_hidden()
    await page.reload()
    await expect(page.locator("#map-note")).to_have_text("this worker is still starting", timeout=LONG_MS)
    shop.is_starting = False
    await expect(page.locator("#map-note")).to_contain_text("items", timeout=LONG_MS)


async def test_without_the_token_it_asks_for_it_and_keeps_it_out_of_the_address(
    visit: Visit, shop: Shop, site: Site, address: str
) -> None:
    page = visit.page
    await site.stop()
    shop.token = "correct-horse-battery"
    await site.start()
    await page.reload()
    await expect(page.locator("#token-form")).to_be_visible(timeout=LONG_MS)
    await page.fill("#token", "wrong")
    await page.click("#token-form button")
    await expect(page.locator("#token-problem")).to_have_text(
        "That is not the token of this worker.", timeout=LONG_MS
    )
    await page.fill("#token", shop.token)
    await page.click("#token-form button")
    await expect(page.locator("#token-form")).to_be_hidden(timeout=LONG_MS)
    await become(page, "household-1")
    await page.evaluate("sessionStorage.clear()")
    await page.goto(f"{address}/#token={shop.token}")
    await page.reload()
    await expect(page.locator("#connection")).to_have_text("live", timeout=LONG_MS)
    await expect(page.locator("#token-form")).to_be_hidden()
    assert shop.token not in page.url


async def test_at_a_gateway_it_says_what_is_not_there_and_the_rest_works(
    visit: Visit, shop: Shop, site: Site
) -> None:
    page = visit.page
    await site.stop()
    shop.is_gateway = True
    await site.start()
    await page.reload()
    for part in ("#stream", "#map-note", "#facts"):
        await expect(page.locator(part)).to_contain_text("a gateway has only Kafka", timeout=LONG_MS)
    await become(page, "household-2")
    await expect(page.locator("#log")).to_contain_text("a gateway has only Kafka", timeout=LONG_MS)
    await page.locator("#answer [data-action=click]").first.click()
    await expect(page.locator("#proof .proof")).to_contain_text("Proved", timeout=LONG_MS)
    await expect(page.locator("#letters .group")).to_have_count(2)
