"""LaTeX for a paper: escaped text and booktabs tables."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from model.results.metric_text import UNDEFINED

_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def escape(text: str) -> str:
    """Escape `text` for LaTeX."""
    return "".join(_SPECIAL.get(character, character) for character in text).replace(UNDEFINED, "--")


def latex_table(
    headers: Sequence[str],
    rows: Iterable[Sequence[str]],
    caption: str,
    label: str,
    long: bool = False,
    wide: bool = False,
    ruled: int | None = None,
) -> str:
    """Make a booktabs table of cells that are LaTeX already; the first column is at the left.

    `long`: over many pages; `wide`: over both columns of a page; below the first `ruled` rows there is a rule.
    """
    columns = "l" + "r" * (len(headers) - 1)
    head = [r"\toprule", " & ".join(headers) + r" \\", r"\midrule"]
    body = [" & ".join(row) + r" \\" for row in rows]
    if ruled is not None:
        body.insert(ruled, r"\midrule")
    titles = [rf"\caption{{{caption}}}", rf"\label{{{label}}}"]
    if long:
        lines = [rf"\begin{{longtable}}{{{columns}}}", *titles[:1], titles[1] + r" \\", *head, r"\endhead"]
        lines += [*body, r"\bottomrule", r"\end{longtable}"]
    else:
        kind = "table*" if wide else "table"
        lines = [rf"\begin{{{kind}}}", r"\centering", *titles, rf"\begin{{tabular}}{{{columns}}}", *head, *body]
        lines += [r"\bottomrule", r"\end{tabular}", rf"\end{{{kind}}}"]
    return "\n".join(lines) + "\n"
