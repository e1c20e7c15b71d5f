"""Compile LaTeX tables as a paper would."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

needs_latex = pytest.mark.skipif(shutil.which("pdflatex") is None, reason="needs pdflatex")


def compiled(content: str, folder: Path, columns: int = 2) -> str:
    """Compile tables in a paper of one or two columns; give what LaTeX said, AssertionError where it failed."""
    layout = "twocolumn" if columns == 2 else "onecolumn"
    source = (
        rf"\documentclass[{layout}]{{article}}\usepackage[margin=2cm]{{geometry}}\usepackage{{booktabs,longtable}}"
        rf"\begin{{document}}\footnotesize {content}\end{{document}}"
    )
    (folder / "paper.tex").write_text(source, encoding="utf-8")
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "paper.tex"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and (folder / "paper.pdf").exists(), done.stdout[-2000:]
    return done.stdout
