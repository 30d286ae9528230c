"""The search page in a test's hands: open it, ask, crop, hold an answer back."""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, ConsoleMessage, FilePayload, Page, Request, Route, ViewportSize, expect

WAIT = 20_000  # ms
NO_PICTURE: FilePayload = {"name": "a.txt", "mimeType": "text/plain", "buffer": b"hello"}
HELD_CUTS = """() => {
  const [open, blob] = [window.createImageBitmap, HTMLCanvasElement.prototype.toBlob];
  const held = new Promise((done) => { window.letCut = done; });
  window.createImageBitmap = async (...given) => { await held; return open(...given); };
  window.wasCut = new Promise((cut) => {
    HTMLCanvasElement.prototype.toBlob = function (done, ...rest) {
      blob.call(this, (found) => { done(found); setTimeout(cut); }, ...rest);
    };
  });
}"""  # a slow device: no picture is cut before letCut()


def new_page(browser: Browser, address: str, faults: list[str], *, phone: bool = False, dark: bool = False) -> Page:
    """An empty page, with all that the browser complains of collected in `faults`."""
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
    return page


def open_page(browser: Browser, address: str, faults: list[str], *, phone: bool = False, dark: bool = False) -> Page:
    page = new_page(browser, address, faults, phone=phone, dark=dark)
    page.goto(address)
    expect(page.locator("#samples img").first).to_be_attached(timeout=WAIT)
    if "#" not in address:  # else answers soon stand in their place
        expect(page.locator("#samples img").first).to_be_visible(timeout=WAIT)
    return page


def ask(page: Page, path: Path) -> None:
    page.set_input_files("#file", path)
    expect(page.locator(".answer")).to_have_count(7, timeout=WAIT)


def crop_middle(page: Page) -> None:
    drag(page, (0.3, 0.3), (0.75, 0.8))


def drag(page: Page, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Over the query's square, in shares of it."""
    box = page.locator("#stage").bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + start[0] * box["width"], box["y"] + start[1] * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + end[0] * box["width"], box["y"] + end[1] * box["height"], steps=4)
    page.mouse.up()


def answer_next(page: Page, pattern: str, answer: Callable[[Route], None], count: int = 1) -> None:
    """So many requests like this are answered so. The route stays: as the last one goes, Chromium may lose a request."""
    left = iter(range(count))
    page.route(pattern, lambda route: route.fallback() if next(left, None) is None else answer(route))


def hold(page: Page, pattern: str) -> list[Route]:
    """The next request like this gets no answer before it is given one."""
    held: list[Route] = []
    answer_next(page, pattern, held.append)
    return held


def settle(page: Page) -> None:
    """What the page was about to ask is asked."""
    with page.expect_response("**/healthz"):
        page.evaluate("fetch('healthz').then(() => null)")


def refuse_with(route: Route, status: int, code: str = "refused") -> None:
    """An error as the service sends it."""
    route.fulfill(status=status, json={"error": {"code": code, "message": f"A {status}."}})


def no_serious_fault(page: Page) -> None:
    found = Axe().run(page).response["violations"]
    serious = [(each["id"], each["nodes"][0]["html"]) for each in found if each["impact"] in {"serious", "critical"}]
    assert not serious
