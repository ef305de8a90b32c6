"""The page in a browser: it reaches for nothing, its controls work, and everybody can read it."""

import shutil
from pathlib import Path

import pytest

from ray_jobs.__main__ import main
from report_example import HOSTILE, write_dataset, write_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: install it to test the page"),
]
PHONE, DESK = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
OPEN = "for (const each of document.querySelectorAll('details')) each.open = true"


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    """Where the page of a run with everything in it lies."""
    run = tmp_path_factory.mktemp("page") / "run"
    write_dataset(run / "data", run.parent / "spool")
    write_run(run)
    assert main(["report", "--report.run", str(run)]) == 0
    return (run / "report.html").as_uri()


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import (
        sync_playwright,
    )  # half a second, which runs without these tests need not wait

    with sync_playwright() as playwright:
        # Without its sandbox: as root, which CI is, Chromium refuses to start otherwise.
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture
def show(browser, address):
    """Open the page as a reader has it: `show(color_scheme="dark", viewport=PHONE)`; complaints are kept."""
    contexts = []

    def shown(viewport=DESK, **reader):
        contexts.append(browser.new_context(viewport=viewport, **reader))
        page = contexts[-1].new_page()
        page.complaints, page.fetched = [], []
        page.on("console", lambda message: page.complaints.append(message.text))
        page.on("pageerror", lambda error: page.complaints.append(str(error)))
        page.on("dialog", lambda dialog: (page.complaints.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: page.fetched.append(request.url))
        page.goto(address)
        return page

    yield shown
    for context in contexts:
        context.close()


def test_the_page_complains_of_nothing_and_fetches_nothing(show, address):
    page = show()
    assert page.complaints == []
    assert {url for url in page.fetched if not url.startswith("data:")} == {address}
    assert page.locator("script").count() == 1
    assert page.evaluate("[...document.images].every((img) => img.naturalWidth > 0)")
    assert HOSTILE in page.locator(".sheet figcaption").first.inner_text()
    page.evaluate(OPEN)
    assert HOSTILE in page.locator(".maps figcaption").first.inner_text()


def test_the_script_is_the_only_one_that_may_run(show):
    page = show()
    foreign = "<img src=x onerror='document.title = 1'><a onclick='document.title = 2' href='#'>x</a>"
    with page.expect_console_message(lambda message: "inline event handler" in message.text):
        page.evaluate("(html) => document.body.insertAdjacentHTML('beforeend', html)", foreign)
    page.locator("a[onclick]").click()
    assert page.title() == "Projector run: run"


def test_the_slider_shows_more_or_less_of_either_side(show):
    page = show()
    page.evaluate(OPEN)
    slider = page.locator(".slider").first
    left = "getComputedStyle(document.querySelector('.slider .with')).clipPath"
    assert page.evaluate(left).endswith("50%)")
    slider.locator("input").fill("20")
    assert page.evaluate(left).endswith("20%)")
    slider.locator("input").press("ArrowRight")
    assert page.evaluate(left).endswith("21%)")
    assert slider.locator(".without").get_attribute("alt") == "case 1: text, alone"
    assert slider.locator(".with").get_attribute("alt") == "case 1: projector, concat"
    slider.locator("select.way").select_option("guidance 0.7")
    slider.locator("select.method").select_option("identity")
    assert slider.locator(".without").get_attribute("alt") == "case 1: identity, guidance 0.7"
    assert slider.locator(".with").get_attribute("alt") == "case 1: projector, guidance 0.7"
    assert page.locator(".slider .with").nth(1).get_attribute("alt") == "case 2: projector, concat"
    assert page.complaints == []


def test_a_click_on_a_title_sorts(show):
    page = show()
    page.evaluate(OPEN)
    table = page.get_by_role("table", name="Methods of mlp")
    head = table.locator("th").nth(1)

    def order():
        return table.locator("tbody td:first-child").all_inner_texts()

    best_first = ["projector", "ridge", "no_input", "per_dim_norm", "global_scale", "identity"]
    assert order() == best_first
    head.get_by_role("button").click()
    assert (order(), head.get_attribute("aria-sort")) == (best_first, "ascending")
    head.get_by_role("button").press("Enter")
    assert (order(), head.get_attribute("aria-sort")) == (best_first[::-1], "descending")
    table.locator("th").first.get_by_role("button").click()
    assert order() == sorted(best_first)
    assert head.get_attribute("aria-sort") is None


def test_empty_fields_stay_last(show):
    page = show()
    page.evaluate(OPEN)
    table = page.get_by_role("table", name="By kind of VL token, mlp")
    for _ in range(2):
        table.get_by_role("button", name="R²").click()
        assert table.locator("tbody tr:nth-child(n+7) td:nth-child(4)").all_inner_texts() == ["–"] * 6


def test_a_phone_scrolls_only_downwards(show):
    page = show(PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    page.evaluate(OPEN)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    boxes = "[...document.querySelectorAll('.wide')].filter((box) => box.scrollWidth > box.clientWidth)"
    assert page.evaluate(f"{boxes}.length") > 2
    assert page.evaluate(f"{boxes}.every((box) => getComputedStyle(box).overflowX === 'auto')")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_read_it(show, scheme):
    page = show(color_scheme=scheme)
    page.evaluate(OPEN)
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()
    assert "color-contrast" in {rule["id"] for rule in found.response["passes"]}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_drawings_take_the_colour_of_the_text(show, scheme):
    page = show(color_scheme=scheme)
    ink = page.evaluate("getComputedStyle(document.body).color")
    fills = page.evaluate(
        "[...document.querySelectorAll('svg text')].map((text) => getComputedStyle(text).fill)"
    )
    assert set(fills) == {ink}
    assert ink == ("rgb(22, 25, 29)" if scheme == "light" else "rgb(231, 234, 238)")


def test_paper_is_white_and_has_no_controls(show):
    page = show(color_scheme="dark")
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not page.locator(".slider, nav").first.is_visible()
    assert page.locator("main > *").first.get_attribute("class").split()[0] == "verdict"
    assert page.get_by_role("table", name="Worst dimensions, mlp").is_visible()


def test_without_script_everything_is_there(show):
    page = show(java_script_enabled=False)
    assert page.locator(".grid img").count() == 14
    assert not page.locator(".slider").first.is_visible()
    assert Path(page.url).name == "report.html"


def test_a_desk_needs_few_screens_and_keeps_the_contents_in_sight(show):
    page = show()
    assert page.evaluate("document.documentElement.scrollHeight") <= 4000
    assert page.evaluate("document.documentElement.scrollWidth") == DESK["width"]
    assert not page.locator("details[open]").count()
    page.get_by_role("link", name="Is more data worth it?").click()
    assert page.locator("nav").bounding_box()["y"] == 0
    assert 0 <= page.locator("#more").bounding_box()["y"] <= DESK["height"]


def test_the_contents_stay_on_a_phone_without_covering_what_is_jumped_to(show):
    page = show(PHONE)
    page.locator("nav a").nth(1).click()
    bar, heading = page.locator("nav").bounding_box(), page.locator("#better").bounding_box()
    assert bar["y"] == 0
    assert bar["width"] <= PHONE["width"]
    assert heading["y"] >= bar["height"]
    assert page.evaluate(
        "[...document.querySelectorAll('nav a')].every((a) => a.getBoundingClientRect().right <= 390)"
    )


@pytest.mark.parametrize("viewport", [PHONE, DESK])
def test_letters_of_drawings_are_large_enough(show, viewport):
    page = show(viewport)
    page.evaluate(OPEN)
    heights = page.evaluate(
        "[...document.querySelectorAll('.charts svg text')].map((text) => text.getBoundingClientRect().height)"
    )
    assert len(heights) > 20
    assert sorted(heights)[len(heights) // 20] >= 9


def test_a_table_wider_than_the_phone_shows_that_it_scrolls(show):
    page = show(PHONE)
    box = page.locator("#better ~ .wide").first
    assert box.evaluate("(each) => each.scrollWidth > each.clientWidth")
    assert (
        box.evaluate("(each) => getComputedStyle(each).backgroundAttachment")
        == "local, local, scroll, scroll"
    )
    caption = box.locator("caption span").bounding_box()
    assert caption["x"] + caption["width"] <= PHONE["width"]
