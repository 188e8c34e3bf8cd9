"""The pages to try, in a browser, on a gateway over a client that publishes nothing."""

from typing import Final

from playwright.async_api import async_playwright, expect

from headwater.gateway.admission import Admission
from headwater.gateway.process import application
from headwater.settings import Settings
from headwater.web_server import WebServer
from tests.support.chromium import CHROMIUM, arguments, needs_chromium
from tests.unit.gateway.test_routes import KEY, Recorded

LONG_MS: Final = 30_000


@needs_chromium
async def test_a_request_is_sent_from_both_pages_and_the_key_stays_in_its_field() -> None:
    client = Recorded()
    server = WebServer("GATEWAY", application(client, Admission(1e6, 100), [KEY], Settings.load()))
    await server.start("127.0.0.1", 0)
    complaints: list[str] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=arguments())
        page = await browser.new_page()
        page.set_default_timeout(LONG_MS)
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on(
            "console",
            lambda told: told.type == "error" and "401" not in told.text and complaints.append(told.text),
        )
        try:
            await page.goto(f"http://{server.address}/docs/api")
            route = page.locator("details", has_text="post /clicks").first
            await route.locator("summary").first.click()
            await route.get_by_role("button", name="Send").click()
            await expect(route.get_by_role("status")).to_contain_text("Status 401", timeout=LONG_MS)
            await page.fill("#key", KEY)
            await route.get_by_role("button", name="Send").click()
            await expect(route.get_by_role("status")).to_contain_text("Status 201", timeout=LONG_MS)
            said = await route.get_by_role("status").inner_text()
            assert "headwater-position: 3-1042" in said
            assert "Authorization: Bearer KEY" in said
            assert KEY not in said
            await page.goto(f"http://{server.address}/docs/topics")
            assert await page.input_value("#key") == "", "nothing is kept"
            assert await page.locator("h2").count() >= 10
            await page.fill("#key", KEY)
            topic = page.locator("section", has_text="headwater.requests.v1")
            await topic.locator("summary", has_text="Request").click()
            await topic.get_by_role("button", name="Send").click()
            await expect(topic.get_by_role("status")).to_contain_text('"item_id": "c2"', timeout=LONG_MS)
            stored = await page.evaluate("[localStorage.length, sessionStorage.length, document.cookie]")
            assert stored == [0, 0, ""]
        finally:
            await browser.close()
            await server.stop()
    assert [topic for topic, _, _ in client.published] == ["headwater.clicks.v1"]
    assert client.asked[0]["user_id"] == "ann"
    assert complaints == []
