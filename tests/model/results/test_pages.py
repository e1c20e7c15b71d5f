"""Pages in one file: what they show, and that they need nothing else."""

from __future__ import annotations

import pandas as pd

from model.evaluation.keys import by_list
from model.results.metric_text import UNDEFINED
from model.results.pages import Picture, Section, aligned, write_page
from model.results.run_page import epoch_frame, frame_table
from model.results.summary import summary_lines
from model.results.text_table import Table
from tests.support.pages import read_page
from tests.support.runs import run_main

NAN = float("nan")


def picture(folder, sizes):
    """A picture in two formats of so many bytes."""
    paths = (folder / "p.png", folder / "p.svg")
    for path, start, size in zip(paths, (b"\x89PNG", b"<?xml"), sizes, strict=True):
        path.write_bytes(start.ljust(size, b" "))
    return Picture("A <title>", "One & all.", paths)


def test_a_page_shows_text_tables_and_the_sharp_picture(tmp_path):
    sections = [
        Section("First <b>", "line 1\nline 2 & more", lines=["Found: 5 % of <b>"], warnings=["So few"], folded=True),
        Section(
            "Tables",
            tables=[
                Table("Caption", ["", "n"], [["a<b", "1"]], note="Noted"),
                frame_table(pd.DataFrame({"epoch": [1, 2], "loss": [0.5, NAN]})),
            ],
        ),
        Section("Pictures", images=[picture(tmp_path, (6000, 9000))]),
    ]
    write_page(tmp_path / "page.html", "T & <t>", "main.py --x='<y>'", sections)
    page = read_page(tmp_path / "page.html")
    assert page.title == "T & <t>" and page.images == 1
    assert page.tables == [
        [["", "n"], ["a<b", "1"]],
        [["epoch", "loss"], ["1", "0.5000"], ["2", UNDEFINED]],
    ]
    for words in (
        "main.py --x='<y>'",
        "First <b>",
        "line 1\nline 2 & more",
        "Caption",
        "Noted",
        "A <title>",
        "One & all.",
        "Found: 5\N{NO-BREAK SPACE}% of <b>",
        "So few",
    ):
        assert words in page.text
    source = (tmp_path / "page.html").read_text()
    assert "data:image/svg+xml" in source and "data:image/png" not in source
    write_page(tmp_path / "again.html", "T & <t>", "main.py --x='<y>'", sections)
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "page.html").read_bytes()


def test_the_epochs_of_stages_say_which_they_are():
    rows = [
        {"epoch": epoch, "phase": "loo", "stage": stage, "train/loss": 0.5, "valid/ndcg@10": None, "valid/ndcg@20": 0.1}
        for stage in ("a", "b")
        for epoch in (1, 2)
    ]
    frame = epoch_frame(rows, 10)
    assert list(frame.columns) == ["phase", "stage", "epoch", "train/loss", "valid/ndcg@10"]
    assert frame["valid/ndcg@10"].isna().all()
    assert list(epoch_frame(rows[:2], 20).columns) == ["epoch", "train/loss", "valid/ndcg@20"]


def test_numbers_are_cut_at_their_point():
    rows = [
        ["a 1.5", "0.616~", "1.25", "12"],
        ["b", "10.98 (0.1 ± 0.1)", "0.50", "1,234"],
        ["c", UNDEFINED, "9.75", "<0.001 ***"],
        ["d", "", "-3.00", "[-12.5, 1]"],
    ]
    cells = aligned(Table("", ["", "x", "y", "z"], rows))
    assert [[f"{cell.before}{cell.after}" for cell in row] for row in cells] == rows
    first, mixed, same, last = zip(*cells, strict=True)
    assert [cell.before for cell in first] == ["a 1.5", "b", "c", "d"]
    assert [cell.before for cell in mixed] == ["0", "10", UNDEFINED, ""]
    # the widest has each form once, with digits that are all equally wide
    assert [cell.widest.split("\n") for cell in mixed[:3]] == [["", ".00 (0.0 ± 0.0)", ".000~"]] * 3
    assert mixed[3].widest == ""
    # where all have the same form there is nothing to do
    assert {cell.widest for cell in (*first, *same)} == {""}
    assert [cell.before for cell in last] == ["12", "1,234", "<0", "[-12"]
    assert aligned(Table("", ["", "x"], [])) == []


def test_the_page_of_a_run_begins_with_what_it_found(tmp_path):
    result = run_main(tmp_path, epochs=1)
    lines = summary_lines(by_list(result["metrics"]), ["gender"], 5, warnings=result["warnings"])
    subjects = [line.partition(":")[0] for line in lines]
    assert subjects == ["Accuracy", "Tail", "Parity", "Warnings"] and result["warnings"]
    lines += result["warnings"]
    text = read_page(tmp_path / "run" / "report.html").text.replace("\N{NO-BREAK SPACE}", " ")
    places = [text.index(line) for line in lines]
    assert places == sorted(places) and places[-1] < text.index("data set")


def test_what_stands_out_is_bold_and_yardsticks_are_below_a_rule(tmp_path):
    table = Table("", ["", "x"], [["a", "1.5"], ["b", "2.5"], ["popular", "9"]], best=frozenset({(1, 1)}), ruled=2)
    write_page(tmp_path / "report.html", "Page", "", [Section("All", tables=[table])])
    source = (tmp_path / "report.html").read_text()
    assert source.count('<td class="best">') == source.count('<tr class="ruled">') == 1
    assert source.index('class="best"') < source.index('<tr class="ruled">') < source.index("popular")
    read_page(tmp_path / "report.html")
