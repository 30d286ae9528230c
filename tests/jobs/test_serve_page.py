"""The search page in a real browser: what a visitor does, and that nobody is shut out of it."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, Page, Request, ViewportSize, expect, sync_playwright

from tests.jobs.conftest import Service

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt install chromium")
WAIT = 20_000  # ms


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


def _open(browser: Browser, address: str, faults: list[str], *, phone: bool = False, dark: bool = False) -> Page:
    """The page, with all that the browser complains of collected in `faults`."""
    size: ViewportSize = {"width": 390, "height": 844} if phone else {"width": 1280, "height": 860}
    scheme: Literal["dark", "light"] = "dark" if dark else "light"
    context = browser.new_context(viewport=size, has_touch=phone, is_mobile=phone, color_scheme=scheme)
    page = context.new_page()
    page.set_default_timeout(WAIT)
    own = address.partition("#")[0].rstrip("/")

    def said(message: ConsoleMessage) -> None:
        if message.type == "error":
            faults.append(message.text)

    def asked(request: Request) -> None:
        if request.url.startswith(("http", "ws")) and not request.url.startswith(own):
            faults.append(f"a request to outside: {request.url}")

    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("console", said)
    page.on("request", asked)
    page.goto(address)
    expect(page.locator("#samples img").first).to_be_visible(timeout=WAIT)
    return page


def _ask(page: Page, path: Path) -> None:
    page.set_input_files("#file", path)
    expect(page.locator(".answer")).to_have_count(7, timeout=WAIT)


def _no_serious_fault(page: Page) -> None:
    found = Axe().run(page).response["violations"]
    serious = [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in {"serious", "critical"}]
    assert not serious


def test_a_visitor_searches(browser: Browser, service: Service) -> None:
    faults: list[str] = []
    page = _open(browser, service.address, faults)
    _no_serious_fault(page)
    _ask(page, service.queries()[0])
    _no_serious_fault(page)
    expect(page.locator("#found-title")).to_have_text("7 answers")
    page.locator("label", has_text="Saliency").click()
    expect(page.locator("#query-map")).to_have_class(re.compile("shown"))
    expect(page.locator(".answer .overlay.shown")).to_have_count(7, timeout=WAIT)
    page.locator("label", has=page.locator("input[name=map][value=none]")).click()
    expect(page.locator(".answer .overlay.shown")).to_have_count(0)
    page.get_by_role("button", name=re.compile("^Why answer 1")).click()
    expect(page.locator("#why-pairs li")).to_have_count(5, timeout=WAIT)
    _no_serious_fault(page)
    page.keyboard.press("Escape")
    expect(page.locator("#why")).to_be_hidden()
    assert not faults


def test_the_picture_is_cropped_by_dragging_and_by_keys(browser: Browser, service: Service) -> None:
    faults: list[str] = []
    page = _open(browser, service.address, faults)
    _ask(page, service.queries()[0])
    whole = page.locator(".score").all_inner_texts()
    box = page.locator("#stage").bounding_box()
    assert box is not None
    with page.expect_response("**/v1/search") as answer:
        page.mouse.move(box["x"] + 0.3 * box["width"], box["y"] + 0.3 * box["height"])
        page.mouse.down()
        page.mouse.move(box["x"] + 0.75 * box["width"], box["y"] + 0.8 * box["height"], steps=4)
        page.mouse.up()
    assert answer.value.ok
    expect(page.locator("#cropbox")).to_be_visible()
    expect(page.locator(".score").first).not_to_have_text(whole[0])
    with page.expect_response("**/v1/search"):
        page.get_by_role("button", name="Whole picture").click()
    expect(page.locator(".score").first).to_have_text(whole[0])
    page.locator("#stage").focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Shift+ArrowDown")
    with page.expect_response("**/v1/search"):
        page.keyboard.press("Enter")
    assert not faults


def test_errors_are_said_clearly(browser: Browser, service: Service) -> None:
    faults: list[str] = []
    page = _open(browser, service.address, faults)
    page.set_input_files("#file", {"name": "a.txt", "mimeType": "text/plain", "buffer": b"hello"})
    expect(page.get_by_role("alert")).to_contain_text("This file is not a picture.")
    _no_serious_fault(page)
    _ask(page, service.queries()[0])
    expect(page.get_by_role("alert")).to_be_hidden()
    page.context.set_offline(True)
    page.locator("#k").select_option("14")
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".answer")).to_have_count(14, timeout=WAIT)


def test_a_link_shows_the_same_search(browser: Browser, service: Service) -> None:
    faults: list[str] = []
    page = _open(browser, service.address, faults)
    page.locator("#samples button").first.click()
    expect(page.locator(".answer")).to_have_count(7, timeout=WAIT)
    page.locator("#category").select_option(index=1)
    expect(page.locator(".chip")).to_have_count(1)
    expect(page.locator("#found-note")).to_contain_text("in ")
    titles = page.locator(".answer .title").all_inner_texts()
    other = _open(browser, page.url, faults)
    expect(other.locator(".answer .title")).to_have_text(titles, timeout=WAIT)
    page.get_by_role("button", name=re.compile("^More like answer 1")).click()
    expect(page.locator("#query-picture")).to_have_attribute("alt", titles[0])
    page.go_back()
    expect(page.locator(".answer .title")).to_have_text(titles, timeout=WAIT)
    page.go_back()
    page.go_back()
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator(".answer").first).to_be_hidden()
    assert not faults


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_a_phone(browser: Browser, service: Service, dark: bool) -> None:
    faults: list[str] = []
    page = _open(browser, service.address, faults, phone=True, dark=dark)
    expect(page.get_by_role("button", name="Take a photo")).to_be_visible()
    _ask(page, service.queries()[1])
    page.locator(".answer .picture").first.tap()
    expect(page.locator(".answer .overlay.shown")).to_have_count(1, timeout=WAIT)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    _no_serious_fault(page)
    page.get_by_role("tab", name="Index").tap()
    expect(page.locator(".bars li").first).to_be_visible()
    expect(page.locator(".plot")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    _no_serious_fault(page)
    assert not faults


def test_the_index_tab_by_keyboard(browser: Browser, service: Service) -> None:
    faults: list[str] = []
    page = _open(browser, service.address, faults)
    page.get_by_role("tab", name="Search").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Index")).to_be_focused()
    expect(page.locator(".figure").first).to_contain_text("Pictures")
    page.locator(".bars button").first.click()
    expect(page.locator(".chip")).to_have_count(1)
    assert not faults
