"""What the runs of several seeds say together: mean, spread and interval of every metric."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from data.files import atomic_path
from model.comparison.finished import FOLDER_OF_SEEDS
from model.comparison.statistics import CONFIDENCE, Summary, summarise
from model.results.shown import Shown, comparison_columns, escape, latex_table, main_metrics, shown, under
from model.results.side_by_side import is_one, roots_of
from model.results.tables import WIDTH
from model.runs.files import write_frame, write_json

HEADERS = ("metric", "mean", "std", "95 % interval", "defined")


def folder_name(seed: int) -> str:
    """The name of a seed's run."""
    return f"seed{seed}"


def _summarise(directory: Path, results: Mapping[int, dict], failed: Mapping[int, str], drawn: bool, k: int) -> None:
    """Write seeds.json, seeds.csv and seeds.tex of the seeds' `results` and print the main metrics at `k`."""
    first = next(iter(results.values()))
    keys = sorted({key for result in results.values() for key in result["metrics"]})
    roots = first.get("lists") or roots_of(keys, k)
    values = {key: [result["metrics"].get(key, float("nan")) for result in results.values()] for key in keys}
    summaries = {key: summarise(entries) for key, entries in values.items()}
    content = {name: first[name] for name in ("dataset", "protocol", "description", "method")}
    content |= {
        "seeds": list(results),
        "failed": {str(seed): reason for seed, reason in failed.items()},
        "fingerprints": {str(seed): result["fingerprint"] for seed, result in results.items()},
        "drawn_by_seed": drawn,
        "confidence": CONFIDENCE,
        "k": k,
        "metrics": {key: dataclasses.asdict(summary) | {"values": values[key]} for key, summary in summaries.items()},
    }
    names = [folder_name(seed) for seed in results]
    rows = [
        {"metric": key, **dataclasses.asdict(summary), **dict(zip(names, values[key], strict=True))}
        for key, summary in summaries.items()
    ]
    caption = _caption(content)
    write_frame(directory / "seeds.csv", pd.DataFrame(rows))
    with atomic_path(directory / "seeds.tex") as temporary:
        temporary.write_text(_latex(summaries, caption, roots, k), encoding="utf-8")
    write_json(directory / FOLDER_OF_SEEDS, content)
    print("\n" + textwrap.fill(caption, WIDTH))
    for root, table in _tables(summaries, roots, k).items():
        print(f"\n{root}: accuracy in percent, the rest as fractions unless a unit is given")
        print(tabulate(table, HEADERS, disable_numparse=True, colalign=["left"] + ["right"] * 4))
    headers, lines = _side_by_side(summaries, roots, k)
    if not is_one(roots):
        print("\nAll lists: mean ± standard deviation, accuracy in percent")
        print(tabulate(lines, headers, disable_numparse=True, colalign=["left"] + ["right"] * (len(headers) - 1)))
    print(f"\nEvery metric is in {directory}: seeds.json, seeds.csv, seeds.tex", flush=True)


def _caption(content: Mapping) -> str:
    seeds, failed = content["seeds"], content["failed"]
    of_all = f" ({len(seeds)} of {len(seeds) + len(failed)}, the others failed)" if failed else ""
    if content["drawn_by_seed"]:
        data = "the data or their split are drawn by the seed, so fingerprints differ and the spread is theirs too"
    else:
        data = f"fingerprint {next(iter(content['fingerprints'].values()))}"
    return (
        f"{content['method']} on {content['dataset']}, seeds {', '.join(map(str, seeds))}{of_all}. "
        f"Protocol: {content['description']}; {data}. Mean, standard deviation (n - 1) and "
        f"{100 * content['confidence']:.0f} % interval of the mean (Student t over seeds); defined: seeds with a value."
    )


def _tables(summaries: Mapping[str, Summary], roots: Sequence[str], k: int) -> dict[str, list[list[str]]]:
    """The main metrics at `k` of every tested list: its root -> rows of cells."""
    tables = {}
    for root in roots:
        own = under(summaries, root, roots)
        tables[root] = [[metric.name, *_cells(metric, own[metric.key])] for metric in main_metrics(own, k)]
    return tables


def _side_by_side(summaries: Mapping[str, Summary], roots: Sequence[str], k: int) -> tuple[list[str], list[list[str]]]:
    """Headers and a line for each tested list: the columns of a comparison, mean and standard deviation."""
    found = {root: under(summaries, root, roots) for root in roots}
    attributes = [key.rpartition("/")[2] for key in found[roots[0]] if key.startswith(f"ndcg@{k}/gap/")]
    columns = comparison_columns({key for own in found.values() for key in own}, k, next(iter(attributes), ""))
    lines = []
    for root, own in found.items():
        cells = []
        for metric in map(shown, columns):
            summary = own.get(metric.key)
            cells.append(f"{metric.cell(summary.mean)} ± {metric.cell(summary.std)}" if summary else "")
        lines.append([root.partition("/")[2] or root, *cells])
    return ["", *columns.values()], lines


def _cells(metric: Shown, summary: Summary) -> list[str]:
    return [
        metric.cell(summary.mean),
        metric.cell(summary.std),
        metric.interval(summary.low, summary.high),
        str(summary.count),
    ]


def _latex(summaries: Mapping[str, Summary], caption: str, roots: Sequence[str], k: int) -> str:
    """A table of the main metrics of every tested list, and behind it a long one of every metric."""
    headers = [escape(header) for header in HEADERS]
    parts = ["% booktabs; the last table is every metric and needs longtable\n"]
    if not is_one(roots):
        table_headers, lines = _side_by_side(summaries, roots, k)
        rows = [[escape(cell) for cell in line] for line in lines]
        title = escape(f"{caption} Mean and standard deviation, accuracy in percent.")
        parts.append(latex_table([escape(header) for header in table_headers], rows, title, "tab:seeds-lists"))
    for root, table in _tables(summaries, roots, k).items():
        rows = [[escape(cell) for cell in row] for row in table]
        label = f"tab:seeds-{root.replace('/', '-')}"
        parts.append(latex_table(headers, rows, escape(f"{caption} Accuracy in percent."), label))
    everything = [Shown(key, key, 1, 4, None) for key in summaries]
    rows = [[escape(cell) for cell in (metric.name, *_cells(metric, summaries[metric.key]))] for metric in everything]
    parts.append(latex_table(headers, rows, escape(f"{caption} All as fractions."), "tab:seeds-all", long=True))
    return "\n".join(parts)
