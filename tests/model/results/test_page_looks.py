"""How report pages look in a real browser, on a phone and on a desk, in light and in dark; skipped where there is none.

Needs a Chromium with its driver, on PATH.
"""

from __future__ import annotations

import pytest
from absl.testing import flagsaver

import main
from model.results.metric_text import UNDEFINED
from model.results.pages import Picture, Section, write_page
from model.results.tables import Table
from tests.support.browser import headless_browser
from tests.support.light import light_runs
from tests.support.runs import TINY

WIDTHS, SCHEMES = (390, 1280), ("light", "dark")
FAIR = {
    "enable_fairness": True,
    "rerank_fair": True,
    "rerank_pool": 20,
    "user_attribute": ["gender", "age", "occupation"],
}
SVG = '<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg" width="900" height="300"><path d="M0 0V9"/></svg>'
FLAG = "--a_flag_with_a_name=its-value"
ROWS = [
    ["DP rate", "this run", "0.616~", "0.510 ± 0.011", "+0.106", "<0.001 ***"],
    ["Equal opportunity as a long name has it", "re-ranked", "10.98 (0.1 ± 0.1)", UNDEFINED, "-12.5", "0.03 *"],
    ["Users", "most popular", "1,234", "12", "", "[-0.5, 1.25]"],
]


@pytest.fixture(scope="module")
def browser():
    with headless_browser() as found:
        yield found


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A page with all that a section can have."""
    folder = tmp_path_factory.mktemp("page")
    (folder / "wide.svg").write_text(SVG)
    wide = Table("Wide " * 20, ["a long-named figure", "list", *(f"column {n}" for n in range(4))], ROWS, 2, "A note.")
    long = Table("", ["epoch", "train/loss"], [[str(n), f"{n / 7:.4f}" if n % 9 else UNDEFINED] for n in range(100)])
    picture = Picture("Wide", "Read it so.", (folder / "wide.svg",))
    sections = [
        Section("Summary", lines=["In words. " * 20, "Next."], warnings=[f"So many, give {FLAG}.", "x" * 200]),
        Section("y" * 100, f"text\n{'z' * 300}", [wide, long], [picture]),
        Section("Folded", tables=[Table("", ["flag", "value"], [[FLAG, "/a" * 200]] * 3, left=2)], folded=True),
    ]
    write_page(folder / "page.html", "T" * 80, f"python main.py {FLAG} {FLAG}", sections)
    return folder / "page.html"


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """The report of a run with three attributes and a re-ranked list, and that of its comparison with others."""
    folder, names = tmp_path_factory.mktemp("runs"), [f"a-run-with-a-longer-name-{number}" for number in range(4)]
    values = {**TINY, "epochs": 1, "eval_k": ["5"]}
    with light_runs(), flagsaver.flagsaver(output_dir=str(folder)):
        with flagsaver.flagsaver(**{**values, **FAIR, "run_name": names[0]}):
            main.main(["main.py"])
        for number, name in enumerate(names[1:], 1):
            with flagsaver.flagsaver(**{**values, "run_name": name, "lr": number / 1000}):
                main.main(["main.py"])
        with flagsaver.flagsaver(mode="compare", runs=names, run_name="comparison"):
            main.main(["main.py"])
    return [folder / name / "report.html" for name in (names[0], "comparison")]


@pytest.mark.parametrize("scheme", [SCHEMES[0], *(pytest.param(one, marks=pytest.mark.slow) for one in SCHEMES[1:])])
@pytest.mark.parametrize("width", WIDTHS)
def test_pages_are_readable(browser, page, reports, width, scheme):
    for path in (page, *reports):
        browser.show(path, width, scheme)
        assert browser.wrong() == {}, path
        light = browser.ask("luminance(paper(document.body))")
        assert light > 0.9 if scheme == "light" else light < 0.1
    assert browser.ask("innerWidth") == width


def test_a_row_is_copied_as_its_cells(browser, page):
    browser.show(page, 1280, "light")
    browser.ask("getSelection().selectAllChildren(document.querySelector('table tbody'))")
    assert browser.ask("getSelection().toString()").strip().splitlines() == ["\t".join(row) for row in ROWS]
    browser.ask("getSelection().selectAllChildren(document.querySelector('pre'))")
    assert browser.ask("getSelection().toString()").strip() == f"python main.py {FLAG} {FLAG}"


def test_what_is_wrong_is_seen(browser, page):
    browser.show(page, 390, "light")
    for kind, change in (
        ("wide", "document.querySelector('pre').style.width = '500px'"),
        (
            "cut",
            "document.querySelector('.word').style.cssText = 'width: 2rem; overflow-wrap: anywhere'",
        ),
        ("ragged", "document.querySelector('.after').style.display = 'inline'"),
        ("moved", "document.querySelector('td').style.position = 'static'"),
        ("faint", "document.querySelector('h1').style.color = '#ccc'"),
        ("lost", "document.querySelector('nav a').href = '#nowhere'"),
        ("console", "console.error('broken')"),
    ):
        browser.ask(change)
        assert kind in browser.wrong(), kind
