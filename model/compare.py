"""Compare finished runs: the first is the baseline, and each other one is compared with it over the same users."""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tabulate import tabulate

from model.distributed import Processes
from model.finished import Finished, check_comparable, load
from model.report import (
    ARROWS,
    KEY,
    UNDEFINED,
    WIDTH,
    atomic_path,
    own_run_dir,
    write_frame,
    write_json,
)
from model.settings import Settings, converted
from model.statistics import CONFIDENCE, RESAMPLES, compare_gaps, compare_paired, holm
from model.tables import best, escape, latex_table, main_metrics, shown

PER_USER = ("hr", "ndcg", "mrr", "arp", "aplt")
# names of what the statistics give, as columns of the long table
VALUES = {"baseline": "baseline_value", "other": "value"}
NUMBERS = ("baseline_value", "value", "difference")
# what a row of each kind has beside its run, baseline, kind, K and metric
USED = {
    "paired": (*NUMBERS, "low", "high", "users", "p", "p_holm", "family", "d_z", "rank_biserial", "attribute", "group"),
    "gap": (*NUMBERS, "low", "high", "attribute"),
    "untested": NUMBERS,
}
FIELDS = ["baseline", "run", "kind", "k", "metric", *USED["paired"]]
VALUE_HEADERS = ["baseline", "run", "difference"]
TEST_HEADERS = ["95 % interval", "p", "p (Holm)", "d_z", "r"]
LEVELS = {0.001: "***", 0.01: "**", 0.05: "*"}
# columns of the LaTeX table: key -> header; {k} and {attribute} are the primary ones
COLUMNS = {
    "hr@{k}": "HR",
    "ndcg@{k}": "NDCG",
    "mrr@{k}": "MRR",
    "ndcg@{k}/head": "head",
    "ndcg@{k}/tail": "tail",
    "ndcg@{k}/gap/{attribute}": "gap",
    "gini@{k}": "Gini",
    "coverage@{k}": "coverage",
    "arp@{k}": "ARP",
    "aplt@{k}": "APLT",
    "dp_rate@{k}/{attribute}": "DP rate",
    "dp_js@{k}/{attribute}": "DP JS",
    "leakage_auc/{attribute}": "AUC",
}


@dataclass(frozen=True)
class Comparison:
    """What a comparison found: runs' `names` (the first is the baseline) and `labels`, their `metrics` (name -> key ->
    number), the primary `k`, the long `table` of `comparison.csv`, the `caption` and the folder of its files."""

    names: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: dict[str, dict[str, float]]
    k: int
    table: pd.DataFrame
    caption: str
    directory: Path


def compare_runs(settings: Settings, started: float, processes: Processes) -> Comparison:
    """`--mode=compare`: compare the runs of `--runs`, write the comparison into a folder of its own and print it."""
    if processes.world > 1:
        raise ValueError("--mode=compare runs in one process; start it without torchrun")
    config, asked = settings.config(), settings.values["eval_k"]
    runs = load_runs(settings.request.runs, config.output_dir)
    ks = common_cutoffs(runs, None if asked is None else converted("eval_k", asked))
    with own_run_dir(config.output_dir, config.run_name) as directory:
        rows = [row for other in runs[1:] for row in comparison_rows(runs[0], other, ks)]
        table = pd.DataFrame(rows, columns=FIELDS).astype({"k": "Int64", "users": "Int64"})
        comparison = Comparison(
            names=tuple(run.name for run in runs),
            labels=tuple(label_of(run) for run in runs),
            metrics={run.name: run.metrics for run in runs},
            k=ks[0],
            table=table,
            caption=caption_of(runs, table, ks[0]),
            directory=directory,
        )
        _write(comparison, runs, ks)
    print(terminal_report(comparison, runs))
    print(f"\nEvery metric, cut-off and group is in {directory}: comparison.json, .csv, .tex", flush=True)
    return comparison


def load_runs(specs: Sequence[str], output_dir: Path) -> list[Finished]:
    """Read the runs that `--runs` names and give them short names; runs that cannot be compared are a ValueError."""
    if len(specs) < 2 or len(set(specs)) < len(specs):
        shown_specs = ",".join(specs)
        raise ValueError(f"--runs={shown_specs}: name two or more different runs, comma-separated, the baseline first")
    runs = [load(spec, output_dir) for spec in specs]
    check_comparable(runs, "only runs on the same task and users are compared")
    short = [Path(spec).name for spec in specs]
    names = short if len(set(short)) == len(short) and all(short) else specs
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def common_cutoffs(runs: Sequence[Finished], asked: tuple[int, ...] | None) -> list[int]:
    """Cut-offs that every run has, the baseline's primary one first; or those `asked`, which every run must have."""
    common = [k for k in runs[0].ks if all(k in run.ks for run in runs)]
    each = "; ".join(f"{run.name} has {', '.join(map(str, run.ks))}" for run in runs)
    if not common:
        raise ValueError(f"the runs have no cut-off K in common ({each}); evaluate them anew with the same --eval_k")
    missing = [k for k in asked or () if k not in common]
    if missing:
        raise ValueError(f"--eval_k={','.join(map(str, asked))}: not every run has {missing} ({each})")
    return list(asked or common)


def comparison_rows(baseline: Finished, other: Finished, ks: Sequence[int]) -> Iterator[dict]:
    """Rows of the long table for one pair of runs: paired tests at each K over all users and by group, changes of the
    gaps, and what is a number of the whole list, which has a difference and no test."""
    pair, told = {"baseline": baseline.name, "run": other.name}, set()
    for k in ks:
        keys = [f"{metric}@{k}" for metric in PER_USER]
        keys = [key for key in keys if key in baseline.values and key in other.values]
        values = [run.values[keys].to_numpy().T for run in (baseline, other)]
        overall = _paired_rows(keys, *values, {"k": k, "family": f"all users @{k}"})
        by_group, gaps = [], []
        for attribute in baseline.groups.columns.intersection(other.groups.columns):
            codes, labels = pd.factorize(baseline.groups[attribute], sort=True)
            for code, label in enumerate(labels):
                members = [run[:, codes == code] for run in values]
                same = {"k": k, "family": f"user groups @{k}", "attribute": attribute, "group": label}
                by_group += _paired_rows([f"{key}/{attribute}/{label}" for key in keys], *members, same)
            found = asdict(compare_gaps(*values, codes, len(labels)))
            same = {"k": k, "kind": "gap", "attribute": attribute}
            gaps += [
                same | {"metric": f"{key}/gap/{attribute}"} | _entry(found, place) for place, key in enumerate(keys)
            ]
        rows = [*_corrected(overall), *_corrected(by_group), *gaps]
        told |= {row["metric"] for row in rows}
        yield from (pair | row for row in rows)
    for key in dict.fromkeys([*baseline.metrics, *other.metrics]):
        match = KEY.fullmatch(key)
        k = int(match["k"]) if match and match["k"] else None
        if key not in told and (k is None or k in ks):
            one, two = (run.metrics.get(key, np.nan) for run in (baseline, other))
            found = (one, two, two - one)
            yield pair | {"k": k, "kind": "untested", "metric": key} | dict(zip(NUMBERS, found, strict=True))


def _paired_rows(keys: Sequence[str], baseline: np.ndarray, other: np.ndarray, same: dict) -> list[dict]:
    found = asdict(compare_paired(baseline, other))
    return [same | {"kind": "paired", "metric": key} | _entry(found, place) for place, key in enumerate(keys)]


def _entry(columns: dict[str, np.ndarray], place: int) -> dict[str, float]:
    return {VALUES.get(name, name): column[place] for name, column in columns.items()}


def _corrected(family: list[dict]) -> list[dict]:
    adjusted = holm(np.array([row["p"] for row in family]))
    return [row | {"p_holm": value} for row, value in zip(family, adjusted, strict=True)]


def label_of(run: Finished) -> str:
    """What a run is: method, list and seeds."""
    if not run.seeds:
        return run.label
    return f"{run.label}, {'seed' if len(run.seeds) == 1 else f'mean of {len(run.seeds)} seeds:'} {_listed(run.seeds)}"


def _listed(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def caption_of(runs: Sequence[Finished], table: pd.DataFrame, k: int) -> str:
    """What the numbers are and how they were come by."""
    facts, tested = runs[0].facts, table[(table["family"] == f"all users @{k}") & (table["run"] == runs[1].name)]
    labels = "; ".join(f"{run.name} = {label_of(run)}" for run in runs)
    averaged = " Values of a user are means over seeds, and what is tested is users, not seeds." * any(
        len(run.seeds) > 1 for run in runs
    )
    return (
        f"{facts['dataset']} (fingerprint {facts['fingerprint']}), {len(runs[0].values):,} users; "
        f"{facts['description']}; K = {k}. {labels}.{averaged} Differences are to {runs[0].name}, paired by user: "
        f"{100 * CONFIDENCE:.0f} % percentile bootstrap intervals over users ({RESAMPLES:,} resamples), p by "
        "Wilcoxon's signed-rank test (users without a difference left out), Holm-corrected over the "
        f"{len(tested)} metrics of a pair of runs at this K; user groups are a family of their own. The test ranks "
        "differences, so it need not agree with the interval of their mean."
    )


def _write(comparison: Comparison, runs: Sequence[Finished], ks: Sequence[int]) -> None:
    table, directory = comparison.table, comparison.directory
    write_frame(directory / "comparison.csv", table)
    with atomic_path(directory / "comparison.tex") as temporary:
        temporary.write_text(latex_report(comparison, runs), encoding="utf-8")
    content = {
        "caption": comparison.caption,
        "facts": runs[0].facts,
        "k": comparison.k,
        "ks": list(ks),
        "users": len(runs[0].values),
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "runs": [
            {"name": run.name, "label": run.label, "list": run.root, "seeds": run.seeds, "metrics": run.metrics}
            for run in runs
        ],
        "rows": [_plain_row(row) for row in table.to_dict("records")],
    }
    write_json(directory / "comparison.json", content)


def _plain_row(row: dict) -> dict:
    """A row of the long table without the columns that its kind has no use for; an undefined number stays NaN."""
    names = ["baseline", "run", "kind", "k", "metric", *USED[row["kind"]]]
    empty = {name for name in ("k", "attribute", "group") if pd.isna(row[name])}
    whole = {name: int(row[name]) for name in ("k", "users") if not pd.isna(row[name])}
    return {name: row[name] for name in names if name not in empty} | {
        name: value for name, value in whole.items() if name in names
    }


def latex_report(comparison: Comparison, runs: Sequence[Finished]) -> str:
    """A booktabs table, runs as rows: the best of each column bold, stars where a run differs from the first."""
    k, table = comparison.k, comparison.table
    attribute = next(iter(runs[0].groups.columns), "")
    columns = {key.format(k=k, attribute=attribute): header for key, header in COLUMNS.items()}
    columns = {key: header for key, header in columns.items() if any(key in run.metrics for run in runs)}
    marks = {
        (row.run, row.metric): _stars(row.p_holm) for row in table[table["family"] == f"all users @{k}"].itertuples()
    }
    cells = []
    for key in columns:
        metric, numbers = shown(key), [run.metrics.get(key, math.nan) for run in runs]
        winners = best(metric, numbers)
        for place, (run, number) in enumerate(zip(runs, numbers, strict=True)):
            text = escape(metric.cell(number)) if key in run.metrics else ""
            text = rf"\textbf{{{text}}}" if place in winners else text
            stars = marks.get((run.name, key), "")
            cells.append(f"{text}$^{{{stars}}}$" if stars else text)
    by_run = [cells[place :: len(runs)] for place in range(len(runs))]
    rows = [[escape(run.name), *row] for run, row in zip(runs, by_run, strict=True)]
    legend = (
        f"HR, NDCG and MRR are in percent; head, tail and gap are NDCG of head and tail items and between groups by "
        f"{attribute or 'no attribute'}. Best in bold. Stars: "
    )
    levels = ", ".join(f"$^{{{stars}}}$ $p < {level}$" for level, stars in sorted(LEVELS.items(), reverse=True))
    caption = f"{escape(comparison.caption)} {escape(legend)}{levels} against the first row."
    return "% needs booktabs\n" + latex_table(["run", *map(escape, columns.values())], rows, caption, "tab:comparison")


def _stars(p: float) -> str:
    return next((stars for level, stars in sorted(LEVELS.items()) if p < level), "")


def terminal_report(comparison: Comparison, runs: Sequence[Finished]) -> str:
    """The comparison at the primary K as text: for each run its tests, groups, gaps and what has no test."""
    k, blocks = comparison.k, [textwrap.fill(comparison.caption, WIDTH)]
    for other in runs[1:]:
        table = comparison.table[comparison.table["run"] == other.name]
        at_k = table[table["k"] == k]
        paired, gaps = at_k[at_k["kind"] == "paired"], at_k[at_k["kind"] == "gap"]
        overall = paired[paired["attribute"].isna()]
        groups = paired[paired["metric"].str.startswith(f"ndcg@{k}/")]
        tables = {
            "All users; accuracy in percent": ([*VALUE_HEADERS, *TEST_HEADERS], _tests(overall, of_group=False)),
            f"NDCG@{k} by user group, in percent": ([*VALUE_HEADERS, *TEST_HEADERS], _tests(groups, of_group=True)),
            "Gap between user groups, largest less smallest mean; accuracy in percent": (
                [*VALUE_HEADERS, TEST_HEADERS[0]],
                [[_named(row.metric), *_values(row), _interval(row)] for row in gaps.itertuples()],
            ),
            "Numbers of the whole list, which have no test; accuracy in percent": (
                VALUE_HEADERS,
                _side_by_side(table[table["kind"] == "untested"], (runs[0], other), k),
            ),
        }
        blocks.append(f"=== {other.name} against {runs[0].name} (baseline)")
        for title, (headers, rows) in tables.items():
            if rows:
                alignment = ["left"] + ["right"] * len(headers)
                text = tabulate(rows, ["", *headers], disable_numparse=True, colalign=alignment)
                blocks.append(f"{title}\n{text}")
    stars = ", ".join(f"{stars} below {level}" for level, stars in sorted(LEVELS.items(), reverse=True))
    blocks.append(
        f"Stars: p after Holm {stars}.  d_z: mean difference over its standard deviation.\n"
        "r: rank-biserial correlation.  Better: ↓ lower, ↑ higher, →0 near 0, →1 near 1.  "
        f"{UNDEFINED} undefined, blank: not measured."
    )
    return "\n" + "\n\n".join(blocks)


def _named(key: str) -> str:
    """The metric's name, without what stands in brackets, and its better side."""
    metric = shown(key)
    name = re.sub(r" \([^)]*\)", "", metric.name)
    return f"{name} {ARROWS.get(metric.better, '')}"


def _values(row: Any) -> list[str]:
    metric = shown(row.metric)
    return [metric.cell(row.baseline_value), metric.cell(row.value), metric.cell(row.difference, signed=True)]


def _side_by_side(untested: pd.DataFrame, pair: tuple[Finished, Finished], k: int) -> list[list[str]]:
    rows, table = {row.metric: row for row in untested.itertuples()}, []
    for metric in main_metrics(rows, k):
        measured = [metric.key in run.metrics for run in pair]
        cells = zip(_values(rows[metric.key]), [*measured, all(measured)], strict=True)
        table.append([_named(metric.key), *(cell if there else "" for cell, there in cells)])
    return table


def _interval(row: Any) -> str:
    return shown(row.metric).interval(row.low, row.high, signed=True)


def _tests(rows: pd.DataFrame, of_group: bool) -> list[list[str]]:
    table = []
    for row in rows.itertuples():
        name = f"{row.attribute} {row.group}" if of_group else _named(row.metric)
        chances = [_p(row.p), f"{_p(row.p_holm)} {_stars(row.p_holm):<3}"]
        effects = [UNDEFINED if math.isnan(effect) else f"{effect:+.3f}" for effect in (row.d_z, row.rank_biserial)]
        table.append([name, *_values(row), _interval(row), *chances, *effects])
    return table


def _p(value: float) -> str:
    return UNDEFINED if math.isnan(value) else "<0.001" if value < 0.001 else f"{value:.3f}"
