"""`--mode=compare`: finished runs compared, written and printed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from data.files import atomic_path
from model.comparison.compare import (
    EXCESSES,
    FIELDS,
    USED,
    caption_of,
    common_cutoffs,
    comparison_rows,
    label_of,
    method_of,
)
from model.comparison.compare_latex import latex_report
from model.comparison.compare_report import Comparison, terminal_report, write_report
from model.comparison.overview import overview_of
from model.comparison.run_parity import PERMUTATIONS, parity_of_runs
from model.comparison.statistics import CONFIDENCE, RESAMPLES
from model.results.finished import Finished, check_comparable, load, short_names
from model.results.pages import typed_command
from model.runs.files import own_run_dir, write_frame, write_json
from model.runs.processes import Processes
from model.runs.settings import Settings


def compare_runs(settings: Settings, started: float, processes: Processes) -> Comparison:
    """Do `--mode=compare`: compare the runs of `--runs`, write the comparison into a folder of its own and print it."""
    if processes.world > 1:
        raise ValueError("--mode=compare runs in one process; start it without torchrun")
    config, requested = settings.config(), settings.declared["eval_k"].converted(settings.values["eval_k"])
    runs = load_runs(settings.request.runs, config.output_dir)
    ks = common_cutoffs(runs, requested)
    with own_run_dir(config.output_dir, config.run_name) as directory:
        parity = parity_of_runs(runs, ks)
        rows = [row for other in runs[1:] for row in comparison_rows(runs[0], other, ks, parity)]
        table = pd.DataFrame(rows, columns=FIELDS).astype({"k": "Int64", "users": "Int64", "seeds": "Int64"})
        comparison = Comparison(
            names=tuple(run.name for run in runs),
            labels=tuple(label_of(run) for run in runs),
            metrics={run.name: run.metrics for run in runs},
            k=ks[0],
            table=table,
            overview=overview_of(runs, table, ks[0], parity),
            caption=caption_of(runs, ks[0]),
            method=method_of(runs, table, ks[0]),
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
    return [replace(run, name=name) for run, name in zip(runs, short_names(specs, output_dir), strict=True)]


def _write(comparison: Comparison, runs: Sequence[Finished], ks: Sequence[int]) -> None:
    table, directory = comparison.table, comparison.directory
    write_frame(directory / "comparison.csv", table)
    with atomic_path(directory / "comparison.tex") as temporary:
        data = f"{runs[0].facts['dataset']}, {len(runs[0].values):,} users"
        latex = latex_report(comparison.overview, directory.name, data, f"{comparison.caption} {comparison.method}")
        temporary.write_text(latex, encoding="utf-8")
    content = {
        "caption": comparison.caption,
        "method": comparison.method,
        "facts": runs[0].facts,
        "k": comparison.k,
        "ks": list(ks),
        "users": len(runs[0].values),
        "confidence": CONFIDENCE,
        "resamples": RESAMPLES,
        "permutations": PERMUTATIONS,
        "runs": [
            {
                "name": run.name,
                "label": run.label,
                "list": run.root,
                "seeds": run.seeds,
                "warnings": run.warnings,
                "metrics": run.metrics,
                "intervals": comparison.overview.intervals[run.name],
            }
            for run in runs
        ],
        "rows": [_plain_row(row) for row in table.to_dict("records")],
    }
    write_json(directory / "comparison.json", content)


def _plain_row(row: dict) -> dict:
    """Give a row of the long table without columns that its kind does not use; an undefined number stays NaN."""
    names = ["baseline", "run", "kind", "k", "metric", *USED[row["kind"]]]
    # not every row of a kind has a K, a group, or a chance level
    empty = {name for name in ("k", "attribute", "group", "differs", *EXCESSES) if pd.isna(row[name])}
    whole = {name: int(row[name]) for name in ("k", "users", "seeds") if not pd.isna(row[name])}
    return {name: row[name] for name in names if name not in empty} | {
        name: value for name, value in whole.items() if name in names
    }
