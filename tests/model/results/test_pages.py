"""Pages in one file: what they show, and that they need nothing else."""

from __future__ import annotations

import pandas as pd

from model.results.metric_text import UNDEFINED
from model.results.pages import Picture, Section, write_page
from model.results.run_page import epoch_frame, frame_table
from model.results.text_table import Table
from tests.support.pages import read_page

NAN = float("nan")


def picture(folder, sizes):
    """A picture in two formats of so many bytes."""
    paths = (folder / "p.png", folder / "p.svg")
    for path, start, size in zip(paths, (b"\x89PNG", b"<?xml"), sizes, strict=True):
        path.write_bytes(start.ljust(size, b" "))
    return Picture("A <title>", "One & all.", paths)


def test_a_page_shows_text_tables_and_the_smaller_picture(tmp_path):
    sections = [
        Section("First <b>", "line 1\nline 2 & more"),
        Section(
            "Tables",
            tables=[
                Table("Caption", ["", "n"], [["a<b", "1"]], note="Noted"),
                frame_table(pd.DataFrame({"epoch": [1, 2], "loss": [0.5, NAN]})),
            ],
        ),
        Section("Pictures", images=[picture(tmp_path, (9000, 6000))]),
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
