"""The search page in a real browser: what a visitor does, and that nobody is shut out of it."""

import io
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import (
    Browser,
    FilePayload,
    Request,
    Route,
    expect,
    sync_playwright,
)

from tests.jobs.conftest import MAX_PIXELS, Service
from tests.jobs.pages import (
    HELD_CUTS,
    NO_PICTURE,
    WAIT,
    answer_next,
    ask,
    crop_middle,
    drag,
    hold,
    new_page,
    no_serious_fault,
    open_page,
    refuse_with,
    settle,
)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt install chromium")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


_SLOWLY = {"error": {"code": "too_many_requests", "message": "Wait a moment."}}


def test_a_visitor_searches(browser: Browser, service: Service) -> None:
    faults: list[str] = []
    page = open_page(browser, service.address, faults)
    no_serious_fault(page)
    ask(page, service.queries()[0])
    no_serious_fault(page)
    expect(page.locator("#found-title")).to_have_text("7 answers")
    page.locator("label", has_text="Saliency").click()
    expect(page.locator("#query-map")).to_have_class(re.compile("shown"))
    expect(page.locator(".answer .overlay.shown")).to_have_count(7, timeout=WAIT)
    page.locator("label", has=page.locator("input[name=map][value=none]")).click()
    expect(page.locator(".answer .overlay.shown")).to_have_count(0)
    page.get_by_role("button", name=re.compile("^Why answer 1")).click()
    expect(page.locator("#why-pairs li")).to_have_count(5, timeout=WAIT)
    expect(page.get_by_role("status").filter(has_text="is a sum over all pairs")).to_be_visible()
    no_serious_fault(page)
    page.keyboard.press("Escape")
    expect(page.locator("#why")).to_be_hidden()
    assert not faults


def test_the_picture_is_cropped_by_dragging_and_by_keys(browser: Browser, service: Service) -> None:
    faults: list[str] = []
    page = open_page(browser, service.address, faults)
    ask(page, service.queries()[0])
    whole = page.locator(".score").all_inner_texts()
    with page.expect_response("**/v1/search") as answer:
        crop_middle(page)
    assert answer.value.ok
    expect(page.locator("#cropbox")).to_be_visible()
    expect(page.locator(".score").first).not_to_have_text(whole[0], timeout=WAIT)
    crop = page.locator("#cropbox").get_attribute("style") or ""
    page.mouse.down()
    page.mouse.move(0, 0)
    expect(page.locator("#cropbox")).not_to_have_attribute("style", crop)
    page.locator("#stage").dispatch_event("pointercancel")  # the finger scrolls: the answers stay those to the crop
    page.mouse.up()
    expect(page.locator("#cropbox")).to_have_attribute("style", crop)
    expect(page.locator("#cropbox")).to_be_visible()
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
    page = open_page(browser, service.address, faults)
    page.set_input_files("#file", NO_PICTURE)
    expect(page.get_by_role("alert")).to_contain_text("This file is not a picture. Give JPEG, PNG")
    expect(page.locator("#drop")).to_be_visible()
    no_serious_fault(page)
    ask(page, service.queries()[0])
    expect(page.get_by_role("alert")).to_be_hidden()
    page.context.set_offline(True)
    page.locator("#k").select_option("14")
    expect(page.get_by_role("alert")).to_contain_text("cannot be reached")
    page.context.set_offline(False)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".answer")).to_have_count(14, timeout=WAIT)


def test_an_unusable_file_leaves_what_stands(browser: Browser, service: Service) -> None:
    page = open_page(browser, service.address, [])
    ask(page, service.queries()[0])
    page.locator("label", has_text="Saliency").click()
    crop_middle(page)
    expect(page.locator("#whole")).to_be_visible()
    expect(page.locator("#query-map")).to_have_class(re.compile("shown"))
    titles, scores = page.locator(".answer .title").all_inner_texts(), page.locator(".score").all_inner_texts()
    whole = service.queries()[1].read_bytes()
    cut: FilePayload = {"name": "b.jpg", "mimeType": "image/jpeg", "buffer": whole[: len(whole) // 2]}
    said = "This file is not a picture. Give JPEG, PNG, WebP, GIF, BMP or TIFF."
    for file, words in ((NO_PICTURE, said), (cut, "its end is missing")):
        page.set_input_files("#file", [file])
        expect(page.get_by_role("alert")).to_contain_text(words)
        expect(page.locator(".answer .title")).to_have_text(titles)
        expect(page.locator(".score")).to_have_text(scores)
        expect(page.locator("#cropbox")).to_be_visible()
        expect(page.locator("#query-map")).to_have_class(re.compile("shown"))
        expect(page.locator("#query-picture")).not_to_have_js_property("naturalWidth", 0)
    page.get_by_role("button", name=re.compile("^Similar to answer 1")).click()
    expect(page.locator("#found-title")).to_have_text("More like this", timeout=WAIT)
    page.set_input_files("#file", NO_PICTURE)
    expect(page.get_by_role("alert")).to_contain_text("This file is not a picture.")
    expect(page.locator("#query-picture")).to_have_attribute("alt", titles[0])
    expect(page.locator("#found-title")).to_have_text("More like this", timeout=WAIT)


@pytest.mark.parametrize("busy", [False, True], ids=["slow", "busy"])
def test_what_stands_without_answers_is_asked_again(browser: Browser, service: Service, busy: bool) -> None:
    page = open_page(browser, service.address, [])
    ask(page, service.queries()[0])
    held = hold(page, "**/v1/search")
    with page.expect_request("**/v1/search"):
        page.get_by_role("button", name=re.compile("^Similar to answer 1")).click()
    expect(page.locator("#query-title")).to_be_visible()
    if busy:
        refuse_with(held[0], 503, "overloaded")
        expect(page.get_by_role("alert")).to_contain_text("A 503.")
    page.set_input_files("#file", NO_PICTURE)
    expect(page.get_by_role("alert")).to_contain_text("This file is not a picture.")
    expect(page.locator("#found-title")).to_have_text("More like this", timeout=WAIT)
    expect(page.locator("#found")).to_be_visible()
    expect(page.get_by_role("alert")).to_contain_text("This file is not a picture.")


def test_back_finds_the_photo_again(browser: Browser, service: Service) -> None:
    faults: list[str] = []
    page = open_page(browser, service.address, faults)
    ask(page, service.queries()[0])
    whole = page.locator(".score").all_inner_texts()
    crop_middle(page)
    expect(page.locator(".score").first).not_to_have_text(whole[0], timeout=WAIT)
    cropped = page.locator(".score").all_inner_texts()
    page.get_by_role("button", name=re.compile("^Similar to answer 1")).click()
    expect(page.locator("#found-title")).to_have_text("More like this", timeout=WAIT)
    expect(page).to_have_title(re.compile(" - manet$"))
    expect(page.locator("#query-title")).not_to_be_empty()
    expect(page.locator("#stage")).to_have_attribute("tabindex", "-1")  # an item is not cropped
    item = page.url
    page.go_back()
    expect(page.locator(".score")).to_have_text(cropped, timeout=WAIT)
    expect(page.locator("#cropbox")).to_be_visible()
    expect(page.locator("#query-title")).to_be_hidden()
    page.go_forward()
    expect(page.locator("#found-title")).to_have_text("More like this", timeout=WAIT)
    assert page.url == item
    page.go_back()
    expect(page.locator(".score")).to_have_text(cropped, timeout=WAIT)
    held = hold(page, "**/v1/search")
    page.go_forward()
    expect(page.locator("#query-title")).to_be_visible()
    with page.expect_event("requestfailed"):  # back before the item's answers are there
        page.go_back()
    expect(page.locator("#cropbox")).to_be_visible()
    expect(page.locator("#query-title")).to_be_hidden()
    expect(page.locator(".score")).to_have_text(cropped, timeout=WAIT)
    assert len(held) == 1
    page.locator("#k").select_option("14")
    expect(page.locator(".answer")).to_have_count(14, timeout=WAIT)
    page.get_by_role("tab", name="Index").click()
    page.go_back()
    expect(page.locator(".answer").first).to_be_visible()
    expect(page.locator(".answer")).to_have_count(14)
    page.go_back()
    expect(page.locator(".score")).to_have_text(cropped, timeout=WAIT)
    expect(page.locator("#k")).to_have_value("7")
    page.go_back()
    expect(page.locator("#empty")).to_be_visible()
    expect(page.locator("#drop")).to_be_visible()
    page.go_forward()
    expect(page.locator(".score")).to_have_text(cropped, timeout=WAIT)
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#drop")).to_be_visible()
    page.go_back()
    expect(page.locator(".score")).to_have_text(cropped, timeout=WAIT)
    assert not faults


def test_the_index_tab_loses_no_photo(browser: Browser, service: Service) -> None:
    page = open_page(browser, service.address, [])
    held = hold(page, "**/v1/search")
    with page.expect_request("**/v1/search"):
        page.set_input_files("#file", service.queries()[0])
    page.get_by_role("tab", name="Index").click()
    with page.expect_response("**/v1/search"):
        held[0].continue_()
    settle(page)
    page.go_back()
    expect(page.locator(".answer")).to_have_count(7, timeout=WAIT)
    expect(page.locator(".answer").first).to_be_visible()
    page.get_by_role("button", name="Clear").click()
    answer_next(page, "**/v1/index", lambda route: refuse_with(route, 502, "store"))
    page.get_by_role("tab", name="Index").click()
    expect(page.get_by_role("alert")).to_contain_text("A 502.")
    assert "#" not in page.url
    page.set_input_files("#file", service.queries()[1])
    expect(page.locator(".answer").first).to_be_visible(timeout=WAIT)
    page.go_back()
    expect(page.locator("#drop")).to_be_visible()
    page.go_forward()
    expect(page.locator(".answer").first).to_be_visible(timeout=WAIT)


def test_an_unusable_file_takes_no_answers_by_way_of_the_index(browser: Browser, service: Service) -> None:
    page = open_page(browser, service.address, [])
    ask(page, service.queries()[0])
    held = hold(page, "**/v1/search")
    with page.expect_request("**/v1/search"):
        page.set_input_files("#file", service.queries()[1])
    page.get_by_role("tab", name="Index").click()
    refuse_with(held[0], 413, "too_large")
    page.get_by_role("tab", name="Search").click()
    expect(page.get_by_role("alert")).to_contain_text("A 413.")
    expect(page.locator(".answer")).to_have_count(7)


def test_a_picture_that_is_dropped_on_the_index_is_searched_with(browser: Browser, service: Service) -> None:
    faults: list[str] = []
    page = open_page(browser, service.address, faults)
    page.get_by_role("tab", name="Index").click()
    paste = "new ClipboardEvent('paste', {clipboardData: new DataTransfer(), bubbles: true})"
    page.evaluate(f"document.body.dispatchEvent({paste})")
    expect(page.get_by_role("alert")).to_contain_text("What you pasted is not a picture")
    page.get_by_role("tab", name="Index").click()
    page.evaluate("document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: new DataTransfer()}))")
    expect(page.get_by_role("alert")).to_contain_text("is not a file")
    several = "const two = new DataTransfer(); for (const name of 'ab') two.items.add(new File(['x'], name));"
    page.evaluate(f"{several} document.body.dispatchEvent(new DragEvent('drop', {{dataTransfer: two}}))")
    expect(page.get_by_role("alert")).to_contain_text("You dropped several files")
    page.get_by_role("tab", name="Index").click()
    expect(page.locator(".figure").first).to_be_visible()
    page.set_input_files("#file", service.queries()[0])  # as a drop or a paste does, which need no tab either
    expect(page.locator(".answer").first).to_be_visible(timeout=WAIT)
    expect(page.get_by_role("tab", name="Search")).to_have_attribute("aria-selected", "true")
    page.evaluate(f"document.body.dispatchEvent({paste})")  # a stray key takes nothing away
    settle(page)
    expect(page.get_by_role("alert")).to_be_hidden()
    page.get_by_role("button", name="Clear").click()
    page.go_back()
    expect(page.locator(".answer").first).to_be_visible(timeout=WAIT)
    assert not faults


def test_an_item_whose_picture_cannot_be_used_is_searched_with_all_the_same(browser: Browser, service: Service) -> None:
    page = open_page(browser, service.address, [])
    page.evaluate("Math.random = () => 0")
    asked: list[float] = []

    def refuse(route: Route) -> None:
        asked.append(time.monotonic())
        if len(asked) == 1:
            error = {"code": "overloaded", "message": "Busy."}
            route.fulfill(status=503, headers={"Retry-After": "1"}, json={"error": error})
        else:
            refuse_with(route, 413, "too_large")

    answer_next(page, "**/v1/search", refuse, 2)
    page.locator("#samples button").first.click()
    expect(page.locator(".answer")).to_have_count(7, timeout=WAIT)
    expect(page.get_by_role("alert")).to_be_hidden()
    assert asked[1] - asked[0] >= 1  # not earlier than the service said


def test_what_is_no_photo_is_not_cropped(browser: Browser, service: Service, tmp_path: Path) -> None:
    faults: list[str] = []
    page = open_page(browser, service.address, faults)
    with Image.open(service.queries()[0]) as picture:
        picture.convert("RGB").resize((400, 100)).save(tmp_path / "wide.png")
    ask(page, tmp_path / "wide.png")
    drag(page, (0.1, 0.05), (0.9, 0.3))  # the white above the photo
    expect(page.locator("#cropbox")).to_be_hidden()
    drag(page, (0.1, 0.05), (0.9, 0.95))
    expect(page.locator("#whole")).to_be_visible()
    place = page.locator("#cropbox").evaluate("box => [box.style.top, box.style.height].map(parseFloat)")
    assert place == pytest.approx([37.5, 25])
    assert not faults


def test_clear_begins_anew(browser: Browser, service: Service) -> None:
    faults: list[str] = []
    page = open_page(browser, service.address, faults)
    page.locator("#category").select_option(index=1)
    page.locator("#k").select_option("28")
    expect(page.locator("#empty")).to_contain_text("the 28 most similar")
    page.locator("#samples button").first.click()
    expect(page.locator("#found")).to_be_visible()
    page.get_by_role("button", name="Clear").click()
    expect(page.locator(".chip")).to_have_count(0)
    expect(page.locator("#k")).to_have_value("7")
    expect(page.locator("#empty")).to_contain_text("the 7 most similar")
    assert not faults


@pytest.mark.parametrize("kind", ["TIFF", "AVIF"])
def test_formats_that_only_one_side_opens(browser: Browser, service: Service, kind: str) -> None:
    """The service opens TIFF and shows it to the browser; the browser opens AVIF and sends it as JPEG."""
    page = open_page(browser, service.address, [])
    sink = io.BytesIO()
    with Image.open(service.queries()[0]) as picture:
        picture.convert("RGB").save(sink, kind)
    file: FilePayload = {"name": "photo", "mimeType": f"image/{kind.lower()}", "buffer": sink.getvalue()}
    page.set_input_files("#file", [file])
    expect(page.locator(".answer")).to_have_count(7, timeout=WAIT)
    expect(page.locator("#query-picture")).not_to_have_js_property("naturalWidth", 0)
    page.set_input_files("#file", NO_PICTURE)
    expect(page.get_by_role("alert")).to_contain_text("This file is not a picture.")
    expect(page.locator("#query-picture")).not_to_have_js_property("naturalWidth", 0)
    expect(page.locator("#stage")).to_have_attribute("tabindex", "-1" if kind == "TIFF" else "0")


def test_a_link_shows_the_same_search(browser: Browser, service: Service) -> None:
    faults: list[str] = []
    page = open_page(browser, service.address, faults)
    page.locator("#samples button").first.click()
    expect(page.locator(".answer")).to_have_count(7, timeout=WAIT)
    page.locator("#category").select_option(index=1)
    expect(page.locator(".chip")).to_have_count(1)
    expect(page.locator("#found-note")).to_contain_text("in ")
    titles = page.locator(".answer .title").all_inner_texts()
    other = open_page(browser, page.url, faults)
    expect(other.locator(".answer .title")).to_have_text(titles, timeout=WAIT)
    other = open_page(browser, f"{page.url}&k=9", faults)  # a number that is not offered: seven
    expect(other.locator(".answer .title")).to_have_text(titles, timeout=WAIT)
    page.get_by_role("button", name=re.compile("^Similar to answer 1")).click()
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
    page = open_page(browser, service.address, faults, phone=True, dark=dark)
    expect(page.get_by_role("button", name="Take a photo")).to_be_visible()
    assert page.locator("#drop p").inner_text() == "A photo of the product"
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    ask(page, service.queries()[1])
    page.locator(".answer .picture").first.tap()
    expect(page.locator(".answer .overlay.shown")).to_have_count(1, timeout=WAIT)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    tops = page.locator(".answer .row").first.locator("button").evaluate_all("all => all.map((one) => one.offsetTop)")
    assert len(tops) == 2 and tops[0] == tops[1]  # on one line
    title = page.locator(".answer .title").first
    title.evaluate("one => { one.textContent = 'A title of many words '.repeat(9); }")
    before = title.bounding_box()
    title.tap()
    after = title.bounding_box()
    assert before and after and after["height"] > before["height"]
    no_serious_fault(page)
    page.get_by_role("tab", name="Index").tap()
    expect(page.locator(".bars li").first).to_be_visible()
    expect(page.locator(".plot")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    no_serious_fault(page)
    assert not faults


def test_the_index_tab_by_keyboard(browser: Browser, service: Service) -> None:
    faults: list[str] = []
    page = open_page(browser, service.address, faults)
    page.get_by_role("tab", name="Search").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Index")).to_be_focused()
    expect(page.locator(".figure").first).to_contain_text("Pictures")
    expect(page.locator("#view-index")).to_contain_text("not how good the answers are")
    page.locator(".bars button").first.click()
    expect(page.locator(".chip")).to_have_count(1)
    assert not faults


def test_a_slow_crop_does_not_overtake_the_next_query(browser: Browser, service: Service) -> None:
    faults: list[str] = []
    page = open_page(browser, service.address, faults)
    ask(page, service.queries()[0])
    whole = page.locator(".score").all_inner_texts()
    page.evaluate(HELD_CUTS)
    crop_middle(page)
    expect(page.locator("#cropbox")).to_be_visible()
    with page.expect_response("**/v1/search"):
        page.get_by_role("button", name="Whole picture").click()
    expect(page.locator("#stage")).to_be_focused()
    searches: list[Request] = []
    page.on("request", lambda request: searches.append(request) if "/v1/search" in request.url else None)
    page.evaluate("letCut(), wasCut")
    settle(page)
    assert not searches
    expect(page.locator(".score")).to_have_text(whole)
    assert not faults


def test_a_link_may_ask_for_any_number_of_answers(browser: Browser, service: Service) -> None:
    faults: list[str] = []
    page = open_page(browser, service.address, faults)
    item = service.client.search(service.gallery()[0], k=1)["results"][0]["image_id"]
    for number, shown in (("20", 20), ("1000", 7)):
        address = f"#id={item}&k={number}"
        page.evaluate("(address) => { location.hash = address; }", address)
        expect(page.locator(".answer")).to_have_count(shown, timeout=WAIT)
        expect(page.locator("#k")).to_have_value(str(shown))
    assert not faults


def test_a_slow_link_does_not_replace_what_was_asked_since(browser: Browser, service: Service) -> None:
    faults: list[str] = []
    page = open_page(browser, service.address, faults)
    held = hold(page, "**/v1/items/*")
    item = service.client.search(service.gallery()[0], k=1)["results"][0]["image_id"]
    page.evaluate("(id) => { location.hash = `#id=${encodeURIComponent(id)}`; }", item)
    expect(page.locator(".answer")).to_have_count(7, timeout=WAIT)  # the search does not wait for the item
    ask(page, service.queries()[0])
    expect(page.locator("#found-title")).to_have_text("7 answers", timeout=WAIT)
    with page.expect_response("**/v1/items/*"):
        held[0].continue_()
    settle(page)
    expect(page.locator("#query-picture")).to_have_attribute("alt", "The query picture")
    expect(page.locator("#found-title")).to_have_text("7 answers")
    expect(page.locator("#query-title")).to_be_hidden()
    assert "#" not in page.url
    assert not faults


def test_the_keyboard_keeps_its_place_and_the_answers(browser: Browser, service: Service) -> None:
    faults: list[str] = []
    page = open_page(browser, service.address, faults)
    page.locator("#samples button").first.press("Enter")
    expect(page.locator(".answer")).to_have_count(7, timeout=WAIT)
    expect(page.locator("#results")).to_be_focused()
    with page.expect_response("**/v1/search"):
        page.get_by_role("button", name=re.compile("^Similar to answer 2")).press("Enter")
    expect(page.locator("#results")).to_be_focused()
    asked = page.url
    page.locator(".skip").focus()
    page.keyboard.press("Enter")
    expect(page.locator("#results")).to_be_focused()
    assert page.url == asked
    page.get_by_role("tab", name="Index").click()
    page.get_by_role("tab", name="Search").click()
    page.go_back()
    expect(page.locator("#view-index")).to_be_visible()
    page.go_back()
    assert page.url == asked
    expect(page.locator(".answer")).to_have_count(7)
    expect(page.locator(".answer").first).to_be_visible()
    assert not faults


def test_why_of_a_closed_answer_does_not_appear_over_the_next(browser: Browser, service: Service) -> None:
    faults: list[str] = []
    page = open_page(browser, service.address, faults)
    ask(page, service.queries()[0])
    hold(page, "**/v1/search")
    page.get_by_role("button", name=re.compile("^Why answer 1")).click()
    expect(page.locator("#why-text")).to_contain_text("Looking")
    with page.expect_event("requestfailed"):  # it is given up
        page.keyboard.press("Escape")
    page.get_by_role("button", name=re.compile("^Why answer 2")).click()
    expect(page.locator("#why-pairs li")).to_have_count(5, timeout=WAIT)
    expect(page.locator("#why-caption")).to_have_text(page.locator(".answer .title").nth(1).inner_text())
    for side in ("query", "answer"):
        expect(page.locator(f"#why-{side} svg")).to_have_count(1)
    assert not faults


def test_an_old_answer_is_not_shown_for_a_new_picture(browser: Browser, service: Service) -> None:
    page = open_page(browser, service.address, [])
    ask(page, service.queries()[0])
    page.locator("label", has_text="Saliency").click()
    expect(page.locator("#query-map")).to_have_class(re.compile("shown"))
    answer_next(page, "**/v1/search", lambda route: refuse_with(route, 502, "store"))
    page.locator("#k").select_option("14")
    expect(page.get_by_role("alert")).to_contain_text("A 502.")
    expect(page.locator("#found")).to_be_visible()  # of the same picture
    held = hold(page, "**/v1/search")
    page.set_input_files("#file", service.queries()[1])
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.locator("#query-map")).not_to_have_class(re.compile("shown"))
    page.locator("label", has=page.locator("input[name=map][value=none]")).click()
    page.locator("label", has_text="Saliency").click()
    expect(page.locator("#query-map")).not_to_have_class(re.compile("shown"))
    expect(page.locator("#query-map")).not_to_have_attribute("src", re.compile(""))
    refuse_with(held[0], 503, "timed_out")  # of the service, not of the picture
    expect(page.get_by_role("alert")).to_contain_text("A 503.")
    expect(page.locator("#problem-title")).to_have_text("That did not work.")
    expect(page.locator("#found")).to_be_hidden()
    expect(page.locator("#maps")).to_be_hidden()
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".answer")).to_have_count(14, timeout=WAIT)
    expect(page.locator("#query-map")).to_have_class(re.compile("shown"))


def test_what_is_said_is_said_once_and_while_it_holds(browser: Browser, service: Service) -> None:
    page = open_page(browser, service.address, [])
    first = page.locator("#category option").first
    expect(first).to_have_text("All categories")
    page.locator("#category").select_option(index=1)
    expect(first).to_have_text("Add a category\u2026")
    page.set_input_files("#file", NO_PICTURE)
    expect(page.locator("#problem p")).to_have_text(re.compile(r"^\s*This file is not a picture\. Give [^.]*\.\s*$"))
    page.get_by_role("tab", name="Index").click()
    page.get_by_role("tab", name="Search").click()
    expect(page.get_by_role("alert")).to_be_hidden()
    headers = {"Retry-After": "47"}
    answer_next(page, "**/v1/search", lambda route: route.fulfill(status=429, json=_SLOWLY, headers=headers))
    page.set_input_files("#file", service.queries()[0])
    expect(page.get_by_role("alert")).to_contain_text("Wait a moment. It asks to wait 47 s.")
    page.get_by_role("tab", name="Index").click()
    page.get_by_role("tab", name="Search").click()
    page.get_by_role("button", name="Try again").click()  # what may still be done stays
    expect(page.locator(".answer").first).to_be_visible(timeout=WAIT)
    expect(page.locator("label", has_text="Text")).to_be_hidden()  # the model has no text branch
    page.locator(".chip button").click()
    expect(first).to_have_text("All categories")


def test_an_item_that_is_not_there_leaves_no_broken_picture(browser: Browser, service: Service) -> None:
    page = new_page(browser, service.address, [])
    page.goto(f"{service.address}/#id=nope")
    expect(page.get_by_role("alert")).to_contain_text("Not in the shop.")
    expect(page.locator("#stage")).to_have_class(re.compile("gone"))
    expect(page.locator("#query-picture")).to_be_hidden()
    expect(page.locator("#query-title")).to_have_text("nope")
    no_serious_fault(page)
    ask(page, service.queries()[0])
    expect(page.locator("#stage")).not_to_have_class(re.compile("gone"))


def test_a_map_that_was_refused_is_asked_for_again(browser: Browser, service: Service) -> None:
    page = open_page(browser, service.address, [])
    ask(page, service.queries()[0])
    answer_next(page, "**/image?*map=saliency", lambda route: refuse_with(route, 429))
    picture = page.locator(".answer .picture").first
    picture.click()
    expect(picture).to_contain_text("map not available")
    expect(picture).to_have_attribute("aria-pressed", "false")
    expect(page.get_by_role("status")).to_have_text("The map of answer 1 is not available.")
    no_serious_fault(page)
    picture.click()
    expect(picture.locator(".overlay.shown")).to_have_count(1, timeout=WAIT)
    expect(picture).to_have_attribute("aria-pressed", "true")


def test_a_token_is_asked_for_in_words(browser: Browser, service: Service) -> None:
    page = new_page(browser, service.address, [])
    accepted = ["first"]

    def guard(route: Route) -> None:  # as the service's own, to which the tokens here are unknown
        if route.request.headers.get("authorization") == f"Bearer {accepted[-1]}":
            route.continue_()
        else:
            refuse_with(route, 401, "unauthorized")

    def use(token: str) -> None:
        page.get_by_label("Access token").fill(token)
        page.get_by_role("button", name="Use it").click()

    page.route("**/v1/**", guard)
    page.goto(service.address)
    expect(page.get_by_role("alert")).to_have_text("A 401.")
    use("first\u200b")
    expect(page.get_by_role("alert")).to_contain_text("a character that no token has")
    use("wrong")
    expect(page.get_by_role("alert")).to_have_text("This token is not accepted.")
    expect(page.get_by_label("Access token")).to_be_focused()
    no_serious_fault(page)
    use(" first ")
    expect(page.locator("#samples img").first).to_be_visible()
    expect(page.get_by_role("alert")).to_be_hidden()
    ask(page, service.queries()[0])
    categories = page.locator("#category option").count()
    accepted.append("second")
    page.locator("#k").select_option("14")
    expect(page.get_by_role("alert")).to_have_text("This token is not accepted.")
    use("second")
    expect(page.locator(".answer")).to_have_count(14, timeout=WAIT)  # what was asked is not lost
    assert page.locator("#category option").count() == categories


def test_a_picture_of_too_many_pixels_is_made_smaller(browser: Browser, service: Service, tmp_path: Path) -> None:
    faults: list[str] = []
    page = open_page(browser, service.address, faults)
    with Image.open(service.queries()[0]) as picture:
        large = picture.resize((2600, 2000))
    assert large.width * large.height > MAX_PIXELS
    large.save(tmp_path / "large.jpg", quality=50)
    ask(page, tmp_path / "large.jpg")
    assert not faults
