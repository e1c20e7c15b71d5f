"""Summary of several seeds: mean, spread and interval of every metric."""

from __future__ import annotations

import dataclasses
import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from data.files import atomic_path
from data.messages import WIDTH
from model.comparison.finished import FOLDER_OF_SEEDS
from model.comparison.statistics import CONFIDENCE, Summary, summarise
from model.evaluation.keys import MetricKey, by_list, is_one, run_lists, short_name
from model.evaluation.metric_table import COLUMNS
from model.results.latex import escape, latex_table
from model.results.metric_text import UNDEFINED, cell, columns, interval, main_metrics, name_of
from model.results.text_table import grid
from model.runs.files import write_frame, write_json

HEADERS = ("metric", "mean", "std", "95 % interval", "defined")


def folder_name(seed: int) -> str:
    """Give the name of a seed's run folder."""
    return f"seed{seed}"


def summarise_seeds(
    directory: Path, results: Mapping[int, dict], failed: Mapping[int, str], drawn: bool, k: int
) -> None:
    """Write seeds.json, seeds.csv and seeds.tex of the seeds' `results` and print the main metrics at `k`."""
    first = next(iter(results.values()))
    keys = sorted({key for result in results.values() for key in result["metrics"]})
    lists = first.get("lists") or run_lists(by_list(dict.fromkeys(keys)))
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
        temporary.write_text(_latex(summaries, caption, lists, k), encoding="utf-8")
    write_json(directory / FOLDER_OF_SEEDS, content)
    print("\n" + textwrap.fill(caption, WIDTH))
    for name, table in _tables(summaries, lists, k).items():
        print(f"\n{name}: accuracy in percent, the rest as fractions unless a unit is given")
        print(grid(list(HEADERS), table))
    if not is_one(lists):
        print("\nAll lists: mean ± standard deviation, accuracy in percent")
        print(grid(*_side_by_side(summaries, lists, k)))
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


def _tables(summaries: Mapping[str, Summary], lists: Sequence[str], k: int) -> dict[str, list[list[str]]]:
    """The main metrics at `k` of every tested list: its name -> rows of cells."""
    metrics_of = by_list(summaries)
    return {
        name: [[name_of(key), *_cells(key, metrics_of[name][str(key)])] for key in main_metrics(metrics_of[name], k)]
        for name in lists
    }


def _side_by_side(summaries: Mapping[str, Summary], lists: Sequence[str], k: int) -> tuple[list[str], list[list[str]]]:
    """Headers and a line for each tested list: the columns of a comparison, mean and standard deviation."""
    metrics_of = by_list(summaries)
    keys = dict.fromkeys(text for name in lists for text in metrics_of[name])
    attributes = [key.group for key in map(MetricKey.parse, metrics_of[lists[0]]) if key.spread and key.k == k]
    headers = columns(COLUMNS, keys, k, next(iter(attributes), ""))
    lines = []
    for name in lists:
        cells = []
        for text in headers:
            key, summary = MetricKey.parse(text), metrics_of[name].get(text)
            cells.append(f"{cell(key, summary.mean)} ± {cell(key, summary.std)}" if summary else "")
        lines.append([short_name(name) or name, *cells])
    return ["", *headers.values()], lines


def _cells(key: MetricKey, summary: Summary) -> list[str]:
    """A summary as the tables of one list show it."""
    ends = interval(key, summary.low, summary.high)
    return [cell(key, summary.mean), cell(key, summary.std), ends, str(summary.count)]


def _as_fractions(summary: Summary) -> list[str]:
    """A summary as the table of every metric shows it."""
    mean, std, low, high = (
        UNDEFINED if math.isnan(value) else f"{value:.4f}"
        for value in (summary.mean, summary.std, summary.low, summary.high)
    )
    return [mean, std, UNDEFINED if math.isnan(summary.low) else f"[{low}, {high}]", str(summary.count)]


def _latex(summaries: Mapping[str, Summary], caption: str, lists: Sequence[str], k: int) -> str:
    """A table of the main metrics of every tested list, and behind it a long one of every metric."""
    headers = [escape(header) for header in HEADERS]
    parts = ["% booktabs; the last table is every metric and needs longtable\n"]
    if not is_one(lists):
        table_headers, lines = _side_by_side(summaries, lists, k)
        rows = [[escape(text) for text in line] for line in lines]
        title = escape(f"{caption} Mean and standard deviation, accuracy in percent.")
        parts.append(latex_table([escape(header) for header in table_headers], rows, title, "tab:seeds-lists"))
    for name, table in _tables(summaries, lists, k).items():
        rows = [[escape(text) for text in row] for row in table]
        label = f"tab:seeds-{name.replace('/', '-')}"
        parts.append(latex_table(headers, rows, escape(f"{caption} Accuracy in percent."), label))
    rows = [[escape(text) for text in (key, *_as_fractions(summary))] for key, summary in summaries.items()]
    parts.append(latex_table(headers, rows, escape(f"{caption} All as fractions."), "tab:seeds-all", long=True))
    return "\n".join(parts)
