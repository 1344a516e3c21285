"""The page in a browser: nothing leaves it, filters do as they say, hostile texts stay texts, anybody can read it.

The fixture `opened` fails a test in which the console said anything, or anything but the file itself was asked for.
"""

import json
import re
from itertools import product
from pathlib import Path

import pytest

from stagetrace import Trace
from tests.cases import slow_but
from tests.hostile import acting
from tests.report import pages
from tests.report.conftest import Opened


def indices(page, side):
    """The indices of the examples on one side, in their order."""
    return [int(found.removeprefix("#")) for found in page.locator(f"#{side} h4").evaluate_all(FIRST_WORDS)]


FIRST_WORDS = "heads => heads.map(head => head.firstChild.textContent)"


def test_the_lists_are_the_ends_of_the_ranking_and_more_can_be_shown(opened: Opened, pictures: Path):
    page, scores = opened(pictures), Trace.load(pictures.parent)["pretrain"]
    for side, harmful in (("harmful", True), ("helpful", False)):
        top = [row.index for row in scores.top(100, harmful=harmful) if (row.score > 0) == harmful]
        assert indices(page, side) == top[:12]
        page.get_by_role("button", name=f"Show more {side} examples").click()
        assert indices(page, side) == top[:60]
        assert page.locator(f"#{side} img").count() == len(top)


def test_filters_by_stage_query_class_and_words_agree_with_the_scores(opened: Opened, pictures: Path):
    page, trace = opened(pictures), Trace.load(pictures.parent)
    page.get_by_label("Stage", exact=True).select_option("finetune")
    page.get_by_role("combobox", name="Query").select_option("2")
    top = [row.index for row in trace["finetune"].top(10, query=2) if row.score > 0]
    assert indices(page, "harmful") == top
    assert "query #2" in page.locator("#asked").inner_text()
    page.get_by_role("combobox", name="Order").select_option("index")
    assert indices(page, "harmful") == sorted(top)
    page.get_by_label("Class", exact=True).select_option("kind 1")
    assert indices(page, "harmful") == sorted(index for index in top if index % 5 == 1)
    page.get_by_label("Class", exact=True).select_option("")
    page.get_by_label("Search").fill("KIND 3")
    assert indices(page, "harmful") == sorted(index for index in top if index % 5 == 3)
    page.get_by_label("Search").fill(f"#{top[0]}")
    assert indices(page, "harmful") == top[:1]
    page.get_by_label("Search").fill("no example says this")
    assert page.locator("#harmful").inner_text() == "None here."
    assert "0 harmful and 0 helpful" in page.get_by_role("status").inner_text()


def test_a_query_leads_to_its_examples_and_indices_can_be_copied(opened: Opened, pictures: Path):
    page, scores = opened(pictures), Trace.load(pictures.parent)["pretrain"]
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    losses = page.locator("#queries .effect dd:last-child").all_inner_texts()
    assert [text for text in losses if text.startswith("0.")] == ["0.800", "0.700", "0.600", "0.500"]
    page.get_by_role("button", name="Show the examples behind query 3").press("Enter")
    top = [row.index for row in scores.top(10, query=3) if row.score > 0]
    assert indices(page, "harmful") == top
    page.get_by_role("button", name="Copy indices").first.click()
    page.get_by_text("indices are on the clipboard").wait_for()
    assert json.loads(f"[{page.evaluate('navigator.clipboard.readText()')}]") == top


def test_what_a_card_says_is_what_the_files_say(opened: Opened, pictures: Path):
    page, scores = opened(pictures), Trace.load(pictures.parent)["pretrain"]
    index = scores.top(1).indices[0]
    words = page.locator("#harmful li").first.inner_text().replace("\u2212", "-")
    said = dict(re.findall(r"(score|if removed|via shared|via head)\s+([+-][\d.]+)", words))
    assert scores.via_shared is not None
    assert scores.via_head is not None
    for name, value in {
        "score": scores.per_example[index],
        "if removed": -scores.per_example[index] / scores.n_examples,
        "via shared": scores.via_shared.mean(dim=0)[index],
        "via head": scores.via_head.mean(dim=0)[index],
    }.items():
        assert float(said[name]) == pytest.approx(float(value), rel=0.005)
    assert page.locator("#harmful li .word").first.text_content().strip() == "harmful"


def test_examples_that_look_the_same_are_one_entry_that_names_them_all(opened: Opened, alike: Path):
    page = opened(alike)
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    assert indices(page, "harmful")[:2] == [0, 39]
    assert "31 harmful and 8 helpful" in page.get_by_role("status").inner_text()
    assert "look the same are one entry" in page.get_by_role("status").inner_text()
    assert page.locator("#harmful details.alike").count() == 1
    first = page.locator("#harmful li").first
    first.get_by_text(f"{pages.ALIKE} examples that look the same").click()
    listed = [int(found) for found in re.findall(r"#(\d+) \(\+[\d.]+\)", first.locator(".alike p").inner_text())]
    assert listed == list(range(pages.ALIKE))
    assert re.search(r"score\s+\+2\.00 to \+1\.90", first.inner_text())
    page.get_by_role("button", name="Copy indices").first.click()
    page.get_by_text("31 indices are on the clipboard").wait_for()
    copied = json.loads(f"[{page.evaluate('navigator.clipboard.readText()')}]")
    assert copied == list(Trace.load(alike.parent)[pages.LONG].top(31).indices)
    page.get_by_label("Search").fill("#5")
    assert indices(page, "harmful") == [5]


@pytest.mark.parametrize(
    ("which", "width"), slow_but(product(("alike", "pictures"), (360, 1280)), ("alike", 360), ("pictures", 1280))
)
def test_numbers_on_cards_stay_in_one_line(opened: Opened, width: int, which: str, request: pytest.FixtureRequest):
    page = opened(request.getfixturevalue(which), width=width)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    lines = """dd => { const range = document.createRange(); range.selectNodeContents(dd);
        const box = dd.closest('article').getBoundingClientRect(), own = range.getBoundingClientRect();
        return [range.getClientRects().length, own.right <= box.right]; }"""
    numbers = page.locator(".figures dd")
    assert numbers.count() == 8
    for number in numbers.all():
        assert number.evaluate(lines) == [1, True]


def test_menus_and_words_that_are_read_aloud_hold_nothing_that_acts(opened: Opened, hostile: Path):
    page = opened(hostile)
    words = page.evaluate("""[document.title,
        ...[...document.querySelectorAll('option')].map(each => each.textContent),
        ...[...document.querySelectorAll('[aria-label], [alt]')].map(each => each.ariaLabel || each.alt || '')]""")
    assert any("[U+202E]egnar[U+001B]" in each for each in words)
    assert acting("".join(words), allowed="\n") == set()
    assert acting(page.locator("#status, header, #harmful h4").first.inner_text()) == set()


def test_hostile_texts_are_inert_and_whole(opened: Opened, hostile: Path):
    page = opened(hostile)
    assert pages.HOSTILE[1] in page.locator("#asked").inner_text()  # the one query example stands above the lists
    page.get_by_role("button", name=re.compile("Show more")).first.click()
    assert page.evaluate("window.stolen") is None
    assert page.locator("main img, main iframe, main b, #harmful svg, #harmful script").count() == 0
    shown = page.locator("#harmful .text, #helpful .text").evaluate_all("all => all.map(each => each.textContent)")
    assert len(shown) > 20
    for text in shown:
        assert len(text) < 2_100
    for whole in (*pages.HOSTILE[:4], *pages.HOSTILE[5:11]):
        assert whole in shown
    assert "998,000 more characters are not shown" in page.locator("#examples").inner_text()
    assert page.title().startswith("stagetrace: </title><script>")


def test_what_turns_a_line_around_is_seen_and_does_not_act(opened: Opened, hostile: Path):
    page = opened(hostile)
    page.get_by_label("Search").fill("is not what it seems")
    text = page.locator(".text", has_text="is not what it seems").first
    assert text.locator(".hidden-character").all_inner_texts() == ["U+202E", "U+202C", "U+200B", "U+2066", "U+2069"]
    assert not re.search("[\u202a-\u202e\u2066-\u2069\u200b]", text.text_content())


def test_scripts_run_their_own_way_and_blanks_are_kept(opened: Opened, hostile: Path):
    page = opened(hostile)
    page.get_by_role("button", name=re.compile("Show more")).first.click()
    way = "node => getComputedStyle(node).direction"
    for words, direction in (("مرحبا", "rtl"), ("שלום", "rtl"), ("数据集", "ltr"), ("half a character", "ltr")):
        assert page.locator("#examples .text", has_text=words).first.evaluate(way) == direction
    blanks = page.locator(".text", has_text="two leading spaces").first
    assert blanks.evaluate("node => getComputedStyle(node).whiteSpaceCollapse ?? node.style.whiteSpace") == "preserve"
    assert blanks.evaluate("node => node.clientHeight / parseFloat(getComputedStyle(node).lineHeight)") > 3


@pytest.mark.parametrize("which", ["hostile", "pictures"])
def test_a_phone_shows_it_without_scrolling_sideways(opened: Opened, which: str, request: pytest.FixtureRequest):
    page = opened(request.getfixturevalue(which), width=390)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert page.locator(".chart svg").first.bounding_box()["width"] < 390


def test_the_keyboard_reaches_filters_lists_and_buttons(opened: Opened, pictures: Path):
    page = opened(pictures)
    reached = []
    for _ in range(25):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.textContent.trim()"))
    wanted = ["Skip to the examples", "Summary", "f-stage", "f-query", "f-class", "f-sort", "f-text", "Copy indices"]
    places = [reached.index(name) for name in wanted]
    assert places == sorted(places)
    page.get_by_label("Stage", exact=True).focus()
    page.keyboard.press("ArrowDown")
    assert "stage finetune" in page.get_by_role("status").inner_text()


@pytest.mark.parametrize(
    ("which", "scheme"),
    slow_but(product(("hostile", "pictures", "tokens"), ("light", "dark")), ("hostile", "dark"), ("pictures", "light")),
)
def test_an_audit_of_accessibility_finds_nothing(
    opened: Opened, which: str, scheme: str, request: pytest.FixtureRequest
):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="pip install axe-playwright-python")
    page = opened(request.getfixturevalue(which), scheme=scheme)
    found = axe.Axe().run(page).response["violations"]
    assert [(each["id"], each["impact"], each["nodes"][0]["html"][:200]) for each in found] == []
