"""The page in a real browser: Chromium, driven by Playwright."""

import re
import shutil
from pathlib import Path

import pytest

from chan.retrieval.page import save_sentences

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no browser: Debian's package chromium is not installed")
LIT = ".region.lit"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, request):
    """A page whose errors and refused requests fail the test."""
    context = browser.new_context(viewport=getattr(request, "param", {"width": 1200, "height": 900}))
    page = context.new_page()
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda line: problems.append(line.text) if line.type == "error" else None)
    yield page
    context.close()
    assert [problem for problem in problems if "status of 400" not in problem] == []


def search(page, address: str, text: str) -> None:
    page.goto(address)
    page.get_by_label("Describe a picture").fill(text)
    page.keyboard.press("Enter")
    page.wait_for_selector(".hit")


def ids(page) -> list[str]:
    return page.locator(".hit .title span:first-of-type").all_inner_texts()


def chip(page, word: str):
    return page.locator(".word", has_text=word)


def test_a_sentence_shows_pictures_in_the_order_of_the_index(page, address, searched):
    search(page, address, "a red circle")
    assert ids(page) == [hit.image_id for hit in searched.search("a red circle", 24).hits]
    page.wait_for_function(
        "[...document.images].slice(0, 3).every((image) => image.complete && image.naturalWidth)"
    )
    assert "exact" in page.locator("#status").inner_text()
    assert "q=a+red+circle" in page.url
    page.reload()
    page.wait_for_selector(".hit")  # the address brings the results back


def test_hovering_a_word_lights_its_region_in_every_picture(page, address, searched):
    search(page, address, "a red circle")
    results = searched.search("a red circle", 24)
    assert page.locator(LIT).count() == 0
    chip(page, "circle").hover()
    lit = page.locator(LIT)
    assert lit.count() == len(results.hits)
    numbers = [int(lit.nth(place).get_attribute("data-region")) for place in range(lit.count())]
    assert numbers == [hit.words[3].region for hit in results.hits]
    assert re.search(r"circle \d?-?\d\.\d\d", lit.first.locator("title").text_content() or "")
    page.mouse.move(1, 1)
    assert page.locator(LIT).count() == 0


def test_hovering_a_region_names_its_words(page, address, searched):
    search(page, address, "a red circle")
    hit = searched.search("a red circle", 1).hits[0]
    region = page.locator(f".hit:first-child .region[data-region='{hit.words[3].region}']")
    region.dispatch_event("pointerenter")
    assert "lit" in (chip(page, "circle").get_attribute("class") or "")
    assert "circle" in (region.locator(".label text").text_content() or "")


def test_a_struck_word_changes_the_ranking(page, address, searched):
    search(page, address, "red circle")
    chip(page, "red").locator(".name").click()
    page.wait_for_selector(".word.struck")
    expected = searched.search(searched.query("red circle").weighted([1, 0, 1, 1]), 24)
    assert ids(page) == [hit.image_id for hit in expected.hits]
    assert chip(page, "red").locator(".name").get_attribute("aria-pressed") == "true"
    chip(page, "circle").locator(".more", has_text="+").click()
    page.wait_for_selector("text=circle ×2")
    expected = searched.search(searched.query("red circle").weighted([1, 0, 2, 1]), 24)
    assert ids(page) == [hit.image_id for hit in expected.hits]


def test_a_region_finds_pictures_with_such_a_region(page, address, searched):
    search(page, address, "red circle")
    first = searched.search("red circle", 1).hits[0]
    region = page.locator(".hit:first-child .region.named").first
    number = int(region.get_attribute("data-region"))
    region.focus()
    page.keyboard.press("Enter")
    page.wait_for_selector(f"text=Regions like region {number} of {first.image_id}")
    assert ids(page) == [hit.image_id for hit in searched.like(first.image_id, number, 24).hits]


def test_the_page_is_used_by_keyboard_alone(page, address):
    page.goto(address)
    page.keyboard.type("a blue square")
    page.keyboard.press("Enter")
    page.wait_for_selector(".hit")
    for _ in range(12):
        page.keyboard.press("Tab")
        if page.locator(LIT).count():
            break
    assert page.locator(LIT).count() > 0
    page.locator(".hit summary").first.focus()
    page.keyboard.press("Enter")
    assert page.locator(".hit table").first.is_visible()
    rows = page.locator(".hit:first-child tbody tr").all_inner_texts()
    assert [row.split("\t")[0] for row in rows] == ["<start>", "a", "blue", "square", "<end>"]


@pytest.mark.parametrize("page", [{"width": 360, "height": 740}], indirect=True)
def test_a_narrow_screen_needs_no_sideways_scrolling(page, address):
    search(page, address, "a red circle and a zebra beside the green triangle")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    assert page.locator(".hit").first.bounding_box()["width"] > 300
    assert "zebra" in page.locator("#status").inner_text()


def test_an_error_of_the_server_is_shown(page, address):
    search(page, address, "red")
    page.evaluate("document.getElementById('query').maxLength = 5000")
    page.get_by_label("Describe a picture").fill("word " * 200)
    page.keyboard.press("Enter")
    page.wait_for_selector("text=at most 500 characters")


def test_a_written_page_needs_no_server(page, searched, tmp_path: Path):
    texts = ["a red circle", "the </script> green square"]
    queries = [searched.query(text) for text in texts]
    results = searched.search_all(queries, 4)
    save_sentences(searched, queries, results, tmp_path / "page.html")
    requests: list[str] = []
    page.on("request", lambda request: requests.append(request.url))
    page.goto((tmp_path / "page.html").as_uri())
    assert ids(page) == [hit.image_id for hit in results[0].hits]
    page.wait_for_function("[...document.images].every((image) => image.complete && image.naturalWidth)")
    chip(page, "circle").hover()
    assert page.locator(LIT).count() == 4
    page.locator("nav button").nth(1).click()
    assert ids(page) == [hit.image_id for hit in results[1].hits]
    assert all(url.startswith(("file:", "data:")) for url in requests)
