"""Compare finished runs: the first is the baseline, and each other one is compared with it over the same users."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pandas as pd

from model.compare_report import Comparison, latex_report, terminal_report, write_report
from model.distributed import Processes
from model.finished import Finished, check_comparable, find, load
from model.pages import typed_command
from model.report import (
    KEY,
    atomic_path,
    own_run_dir,
    write_frame,
    write_json,
)
from model.settings import Settings, converted
from model.statistics import CONFIDENCE, RESAMPLES, compare_gaps, compare_paired, holm

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
        write_report(comparison, runs, typed_command())
    print(terminal_report(comparison, runs))
    print(f"\nEvery metric, cut-off and group is in {directory}: comparison.json, .csv, .tex, report.html", flush=True)
    return comparison


def load_runs(specs: Sequence[str], output_dir: Path) -> list[Finished]:
    """Read the runs that `--runs` names and give them short names; runs that cannot be compared are a ValueError."""
    if len(specs) < 2 or len(set(specs)) < len(specs):
        shown_specs = ",".join(specs)
        raise ValueError(f"--runs={shown_specs}: name two or more different runs, comma-separated, the baseline first")
    runs = [load(spec, output_dir) for spec in specs]
    check_comparable(runs, "only runs on the same task and users are compared")
    short = [_short(spec, find(spec, output_dir)[1]) for spec in specs]
    names = short if len(set(short)) == len(short) and all(short) else specs
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def _short(spec: str, chosen: str) -> str:
    """A run's name without the folders that it lies in; a list's name, which may have slashes, stays whole."""
    behind = f":{chosen}" if chosen else ""
    return Path(spec.removesuffix(behind)).name + behind


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
