"""The pages say what the program does: links lead somewhere, commands parse, numbers are those of the kept runs."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path

import pytest
from absl.testing import flagsaver

import main
from data.messages import shown
from model import METHODS
from model.runs.config import Config
from model.runs.presets import preset
from model.runs.setting import declared
from tests.benchmarks import cofair, fda, tables

ROOT = Path(__file__).parents[1]
FOLDERS = ("data", "datasets", "model", "tests")
PAGES = sorted([ROOT / "README.md", *(page for folder in FOLDERS for page in (ROOT / folder).rglob("*.md"))])
SOURCES = sorted([*ROOT.glob("*.py"), *(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py"))])
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = (ROOT / "tests/benchmarks/results/README.md").read_text(encoding="utf-8")
FENCED = re.compile(r"^```\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]


def prose(text: str) -> str:
    """The text of a page without its blocks of code."""
    return FENCED.sub("", text)


def anchors(text: str) -> set[str]:
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def commands(text: str) -> list[str]:
    """Every command line of `main.py` in blocks of code and in code within a line."""
    lines = [line for block in FENCED.findall(text) for line in block.replace("\\\n", " ").splitlines()]
    found = [*lines, *re.findall(r"`([^`\n]+)`", prose(text))]
    return [command for command in found if re.search(r"(^| )main\.py --(?!help)", command)]


def rows(text: str) -> dict[str, list[str]]:
    """The rows of a page's tables as cells, by their first one."""
    lines = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return {cells[0].strip(): [cell.strip() for cell in cells] for cells in lines}


def test_the_readme_is_read_in_one_sitting():
    lines = README.splitlines()
    assert len(lines) < 300
    assert max(len(line) for line in lines if line.startswith("|")) <= 200
    assert max(len(line) for line in prose(README).splitlines() if not line.startswith(("|", "!["))) <= 120


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(text)):
        if link.startswith("http"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_are_accepted(page):
    for command in commands(page.read_text(encoding="utf-8")):
        words = shlex.split(command, comments=True)
        with flagsaver.flagsaver():
            assert main.parse(words[words.index("main.py") :]) == ["main.py"], command
            main.settings_from_flags()


def test_the_printed_contract_is_among_the_commands():
    printed = " ".join(commands(README))
    for flag in ("--synthesis_type=gru", "--fairness_sampling=True", "--fairness_weight=0.5", "--rerank_alpha=0.2"):
        assert flag in printed.replace('"', "")


def test_the_tree_is_that_of_the_folders():
    (tree,) = [block for block in FENCED.findall(README) if block.startswith("main.py ")]
    named = set()
    for line in tree.splitlines():
        indent, name = re.match(r"( *)(\S+)", line).groups()
        path = Path("model" if indent else "") / name
        assert (ROOT / path).exists(), path
        named.add(path)
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "model").glob("*/__init__.py")}
    assert folders <= named


def tree_of_a_run() -> set[str]:
    """The files of a run that the README's tree names."""
    (tree,) = [block for block in FENCED.findall(README) if block.startswith("runs/<run_name>/")]
    return {line.split()[0] for line in tree.splitlines()[1:]} - {"*.png,"}


def test_what_a_run_leaves_is_told_alike():
    page = (ROOT / "model/results/README.md").read_text(encoding="utf-8")
    files = {name.strip("`") for name in rows(page) if re.fullmatch(r"`\w+\.\w+`", name)}
    assert tree_of_a_run() == files - {"state.pt"}


@pytest.mark.parametrize("folder", ["model/modes", "model/methods", "data"])
def test_the_tables_of_files_name_what_is_there(folder):
    page = (ROOT / folder / "README.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| .*?`\w+\.py`.*$", page.split("\n## ")[0], re.MULTILINE)
    named = {name for line in table for name in re.findall(r"`(\w+\.py)`", line)}
    assert named and all(list((ROOT / folder).rglob(name)) for name in named)
    if folder == "model/modes":
        assert named == {path.name for path in (ROOT / folder).glob("*.py")} - {"__init__.py"}


def test_the_defaults_in_the_readme_are_those_of_the_settings():
    declared_settings, presets = declared(Config), preset("ml")
    for line in re.findall(r"^\| `--.*$", README, re.MULTILINE):
        flags, values, *_ = (re.findall(r"`(.*?)`", cell) for cell in line.strip("|").split(" | "))
        names = [flag.removeprefix("--") for flag in flags]
        if len(values) == 1:
            values = values * len(names)
        if names == ["user_attribute"]:
            continue
        for name, value in zip(names, values, strict=True):
            default = declared_settings[name].default
            assert value == shown(presets[name] if default is None else default), name


def test_every_decision_that_is_named_is_written_down():
    page = (ROOT / "model/DECISIONS.md").read_text(encoding="utf-8")
    numbers = [int(number) for number in re.findall(r"^## (\d+)\. ", page, re.MULTILINE)]
    assert numbers == list(range(1, len(numbers) + 1))
    for path in (*SOURCES, *PAGES):
        for number in re.findall(r"Decision\s+(\d+)", path.read_text(encoding="utf-8")):
            assert int(number) in numbers, f"{path.relative_to(ROOT)}: Decision {number}"


def test_every_decision_is_named_where_it_happens():
    page = (ROOT / "model/DECISIONS.md").read_text(encoding="utf-8")
    code = " ".join(path.read_text(encoding="utf-8") for path in SOURCES if ROOT / "tests" not in path.parents)
    named = set(re.findall(r"Decision\s+(\d+)", code))
    for number, title in re.findall(r"^## (\d+)\. (.*)$", page, re.MULTILINE):
        assert number in named, f"no code names decision {number}, {title}"


def test_every_method_has_a_page_with_its_options():
    page = (ROOT / "model/methods/README.md").read_text(encoding="utf-8")
    sections = {section.partition("\n")[0]: section for section in page.split("\n## ")}
    for name in METHODS:
        defaults = {}
        for option, default, *_ in re.findall(r"^\| (`.*?`) \| (.*?) \|", sections[name], re.MULTILINE):
            defaults |= dict.fromkeys(option.replace("`", "").split(", "), default)
        for field in dataclasses.fields(METHODS[name].Options):
            value = field.default
            shown = ",".join(map(str, value)) if isinstance(value, tuple) else str(value).removesuffix(".0")
            assert defaults.pop(field.name) == shown, f"{name}: {field.name}"
        assert not defaults, f"{name} has no such options"


@pytest.mark.parametrize("title", tables.TABLES)
def test_the_tables_of_results_are_those_of_the_kept_runs(title):
    assert tables.TABLES[title]() in RESULTS


def test_the_table_of_fda_is_that_of_the_kept_runs():
    assert fda.table() in RESULTS
    assert fda.above_chance() in RESULTS


def test_the_tables_of_cofair_are_those_of_the_kept_runs():
    tables_of = cofair.tables()
    assert len(tables_of) > 5 and all(table.count("\n") > 2 and table in RESULTS for table in tables_of)


def test_the_numbers_of_the_readme_are_those_of_the_tables():
    table, first = rows(README), RESULTS.partition("## MovieLens-1M, upstream's loss")[0]
    kept = rows(first)
    assert set(table["bprmf"]) - {"", "bprmf"} <= set(kept["BPR-MF"])
    for name in ("popular", "random", "two towers, no history", "BUHS mean", "FA-BUHS mean", "FA-BUHS mean, re-ranked"):
        assert set(table[name]) - {""} <= set(kept[name]), name


def test_the_readme_says_how_many_decisions_there_are():
    page = (ROOT / "model/DECISIONS.md").read_text(encoding="utf-8")
    assert f"All {len(re.findall(r'^## [0-9]+[.] ', page, re.MULTILINE))}, with reasons" in README
