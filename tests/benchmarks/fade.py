"""FADE under its own protocol on MovieLens-1M and ModCloth: its reproduction, strategies and restarts.

    python -m tests.benchmarks.fade --run --dataset_dir=./datasets --output_dir=./runs [--jobs=2] [--rows ...]
    python -m tests.benchmarks.fade             # print the tables from what is kept

Numbers are kept in results/fade.jsonl. The authors' are those of the logs that they ship; both are means over
snapshots 1 to 6, absolute values of a disparity first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tabulate import tabulate

from data.protocols.fade import MEAN
from model.comparison.statistics import summarise
from model.evaluation.keys import CHANCE, REFERENCE, YARDSTICKS, MetricKey, split_key
from model.results.period_numbers import Line
from model.results.period_plots import by_phase
from tests.benchmarks.rows import FOLDER, SEEDS, Row, Rows, shown

COMMON = "--title_encoder=hash --protocol=fade"
FADE = "--enable_fairness=True --fairness_method=fade"
ML, MODCLOTH = "--dataset=ml --backbone=bprmf", "--dataset=modcloth --backbone=bprmf"
NCF = "--dataset=modcloth --backbone=ncf"
ATTRIBUTES = {"ML-1M": "gender", "ModCloth": "size"}


def option(assignment: str) -> str:
    """Write an option of the protocol as a flag."""
    return f"--protocol_option={assignment}"


RETRAIN = f"{option('restart=retrain')} {option('restart_every=5')}"
ROWS = {
    "ML-1M, λ 0": Row(ML),
    "ML-1M, λ .5": Row(f"{ML} {FADE}"),
    "ModCloth, λ 0": Row(MODCLOTH),
    "ModCloth, λ 4": Row(f"{MODCLOTH} {FADE}"),
    "ModCloth, λ 0, pretrain": Row(f"{MODCLOTH} {option('strategy=pretrain')}"),
    "ModCloth, λ 4, pretrain": Row(f"{MODCLOTH} {FADE} {option('strategy=pretrain')}"),
    "ModCloth, λ 4, restart=pretrained": Row(f"{MODCLOTH} {FADE} {option('restart=pretrained')}"),
    "ModCloth, λ 4, restart=retrain, every 5": Row(f"{MODCLOTH} {FADE} {RETRAIN}"),
    "ModCloth, λ 4, fulltrain": Row(f"{MODCLOTH} {FADE} {option('strategy=fulltrain')}"),
    "ModCloth, NCF, λ 0": Row(NCF, SEEDS[:1]),
    "ModCloth, NCF, λ .5": Row(f"{NCF} {FADE} --method_option=weight=0.5", SEEDS[:1]),
}
# what the authors' logs say, by row and task: NDCG, its PD, F1, its PD
LOGGED = {
    ("ML-1M, λ .5", "remain"): (0.8463, 0.0044, 0.3356, 0.0124),
    ("ML-1M, λ .5", "next"): (0.7403, 0.0262, 0.2978, 0.0249),
    ("ModCloth, λ 4", "remain"): (0.2696, 0.0466, 0.0869, 0.0200),
    ("ModCloth, λ 4", "next"): (0.1793, 0.0285, 0.0495, 0.0100),
    ("ModCloth, NCF, λ .5", "remain"): (0.2890, 0.0679, 0.0923, 0.0273),
    ("ModCloth, NCF, λ .5", "next"): (0.1909, 0.0426, 0.0502, 0.0135),
}
TASKS = {"remain": "R", "next": "N", "remain-full": "R", "next-full": "N"}
K = 20
METRICS = ("ndcg_hits", "f1", "ndcg")
PHASES = tuple(f"snapshot-{number}" for number in range(10))


def attribute(row: str) -> str:
    """Give the user attribute of a row's data set."""
    return ATTRIBUTES[row.partition(",")[0]]


def disparity(name: str, row: str, spread: str = "gap", part: str = "") -> str:
    """Name the key of a disparity between the groups of a row."""
    return str(MetricKey(name, K, attribute(row), spread=spread, part=part))


def keeps(key: str) -> bool:
    """Tell whether a metric is kept: means over snapshots, the course of NDCG, what lists and vectors give away."""
    list_name, metric = split_key(key if key.startswith(REFERENCE) else f"test/{key}")
    own, of_mean = MetricKey.parse(metric), f"/{MEAN}/" in list_name
    if own.name == "leakage_auc":
        return list_name == f"test/{PHASES[-1]}/next" and not own.part
    if own.name == "dp_debiased":
        return of_mean and list_name.endswith("-full") and not own.part
    if own.name not in METRICS or (own.group and not own.spread):
        return False
    if of_mean:
        return own.spread in ("", "gap") and own.part in ("", CHANCE)
    course = (own.name == METRICS[0] and own.spread in ("", "difference")) or (own.name == "ndcg" and not own.spread)
    return course and not own.part and not list_name.startswith(REFERENCE) and "-full" not in list_name


TABLE = Rows("fade", COMMON, ROWS, keeps)


def lists() -> dict[str, tuple[str, str]]:
    """Give what has a line: its name with how many seeds -> the row and where its lists are; yardsticks come first."""
    found, kept = {}, [run["row"] for run in TABLE.kept()]
    for row in filter(kept.count, TABLE.rows):
        data = row.partition(",")[0]
        for name, title in YARDSTICKS.items():
            found.setdefault(f"{data}, {title}", (row, f"{REFERENCE}/{name}/{MEAN}"))
        found[f"{row} ({kept.count(row)})"] = row, MEAN
    return found


def cells(row: str, name: str, metrics: Sequence[str], digits: int = 4) -> list[str]:
    """Write accuracy, disparity and its chance level of a row's list, mean and deviation over seeds, for `metrics`."""
    # a yardstick is the same for every seed but for the candidates
    runs = TABLE.of(row, name)
    keys = [
        key
        for metric in metrics
        for key in (f"{metric}@{K}", disparity(metric, row), disparity(metric, row, part=CHANCE))
    ]
    return [shown(np.array([run[key] for run in runs]), digits) for key in keys]


def reproduced() -> str:
    """Make the table of every list beside the authors' logs: accuracy, disparity and its chance level, by task."""
    lines = []
    for title, (row, name) in lists().items():
        for task in ("remain", "next"):
            lines.append([title, TASKS[task], *cells(row, f"{name}/{task}", METRICS[:2])])
            if (row, task) in LOGGED and name == MEAN:
                ndcg, ndcg_gap, f1, f1_gap = (f"{value:.4f}".replace("0.", ".", 1) for value in LOGGED[row, task])
                lines.append(["authors", TASKS[task], ndcg, ndcg_gap, "", f1, f1_gap, ""])
    headers = ["(seeds)", "task", "NDCG, hits", "PD", "chance", "F1", "PD", "chance"]
    return tabulate(lines, headers, "github", disable_numparse=True)


def standard() -> str:
    """Make the table of standard NDCG, among the sampled candidates and among all items."""
    lines = [
        [title, *(cell for task in TASKS for cell in cells(row, f"{name}/{task}", METRICS[2:], 3))]
        for title, (row, name) in lists().items()
    ]
    headers = [f"{title} {what}" for title in ("R", "N", "R full", "N full") for what in ("NDCG", "PD", "chance")]
    return tabulate(lines, ["(seeds)", *headers], "github", disable_numparse=True)


def beyond() -> str:
    """Make the table of what the protocol does not ask: lists and vectors by group, and the last snapshots."""
    lines = []
    for row in TABLE.rows:
        if not any(kept["row"] == row for kept in TABLE.kept()):
            continue
        group = attribute(row)
        cells = [
            shown(np.array([run[str(MetricKey(name, k, group))] for run in TABLE.of(row, list_name)]), 3)
            for name, k, list_name in (
                ("dp_debiased", K, f"{MEAN}/remain-full"),
                ("dp_debiased", K, f"{MEAN}/next-full"),
                ("leakage_auc", None, f"{PHASES[-1]}/next"),
            )
        ]
        runs = [TABLE.of(row, f"{phase}/remain") for phase in PHASES[-3:]]
        cells += [shown(np.array([run[f"ndcg@{K}"] for run in own]), 3) for own in runs]
        lines.append([f"{row} ({len(runs[0])})", *cells])
    headers = [
        "DP debiased, R full",
        "N full",
        f"leakage AUC, {PHASES[-1]}",
        *(f"NDCG, R, {name}" for name in PHASES[-3:]),
    ]
    return tabulate(lines, ["(seeds)", *headers], "github", disable_numparse=True)


# (row, the row that it is set against)
PAIRS = (
    ("ML-1M, λ .5", "ML-1M, λ 0"),
    ("ModCloth, λ 4", "ModCloth, λ 0"),
    ("ModCloth, λ 4, pretrain", "ModCloth, λ 0, pretrain"),
    ("ModCloth, λ 0", "ModCloth, λ 0, pretrain"),
    ("ModCloth, λ 4", "ModCloth, λ 4, pretrain"),
    ("ModCloth, λ 4", "ModCloth, λ 4, fulltrain"),
    ("ModCloth, λ 4, restart=pretrained", "ModCloth, λ 4"),
    ("ModCloth, λ 4, restart=retrain, every 5", "ModCloth, λ 4"),
)


def by_seed(row: str, task: str) -> dict[int, dict[str, float]]:
    """Give the means over snapshots of a row's task for each kept seed."""
    seeds = sorted(kept["seed"] for kept in TABLE.kept() if kept["row"] == row)
    return dict(zip(seeds, TABLE.of(row, f"{MEAN}/{task}") if seeds else [], strict=True))


def differences() -> str:
    """Make the table of paired differences over seeds with 95 % intervals (Student's t), in thousandths."""
    lines = []
    for row, other in PAIRS:
        cells, count = [], 0
        for task in ("remain", "next"):
            ones, others = by_seed(row, task), by_seed(other, task)
            shared = [seed for seed in ones if seed in others]
            count = len(shared)
            for key in (f"ndcg_hits@{K}", disparity("ndcg_hits", row), f"ndcg@{K}", disparity("ndcg", row)):
                found = summarise([1000 * (ones[seed][key] - others[seed][key]) for seed in shared])
                cells.append(f"{found.mean:.1f} [{found.low:.1f}, {found.high:.1f}]")
        if count > 1:
            lines.append([f"{row} less {other.partition(', ')[2]} ({count})", *cells])
    headers = [f"{task} {what}" for task in ("R", "N") for what in ("NDCG, hits", "PD", "NDCG", "PD of NDCG")]
    return tabulate(lines, ["(seeds)", *headers], "github", disable_numparse=True)


# --- The picture ---

# lines of a data set's picture -> their rows
DRAWN = {
    "ModCloth": {
        "λ = 0": "ModCloth, λ 0",
        "λ = 4": "ModCloth, λ 4",
        "λ = 4, pretrain": "ModCloth, λ 4, pretrain",
        "λ = 4, restart=pretrained": "ModCloth, λ 4, restart=pretrained",
        "λ = 4, fulltrain": "ModCloth, λ 4, fulltrain",
    },
    "ML-1M": {"λ = 0": "ML-1M, λ 0", "λ = 0.5": "ML-1M, λ .5"},
}


def line(row: str, task: str, metric: MetricKey) -> Line:
    """Make the line of a row: the mean absolute value of a metric by snapshot, with 95 % intervals over seeds."""
    found = [
        summarise([abs(run[str(metric)]) for run in TABLE.of(row, f"{name}/{task}")], (0.0, 1.0)) for name in PHASES
    ]
    parts = (np.array([getattr(one, part) for one in found]) for part in ("mean", "low", "high"))
    unknown = np.full(len(PHASES), np.nan)
    return Line(*parts, unknown, unknown)


def draw(data: str) -> list[Path]:
    """Draw NDCG of the hits and the absolute disparity over snapshots, as the authors compute them."""
    rows = {name: row for name, row in DRAWN[data].items() if any(kept["row"] == row for kept in TABLE.kept())}
    metrics = (MetricKey(METRICS[0], K), MetricKey(METRICS[0], K, ATTRIBUTES[data], spread="difference"))
    panels = {
        task: {metric: {name: line(row, task, metric) for name, row in rows.items()} for metric in metrics}
        for task in ("next", "remain")
    }
    return by_phase(panels, PHASES, FOLDER / f"fade_{data.lower().replace('-', '')}")


def tables() -> list[str]:
    """Make every table."""
    return [reproduced(), differences(), standard(), beyond()]


def main() -> None:
    """Run what is asked, then print the tables."""
    arguments = TABLE.parser(__doc__).parse_args()
    if arguments.run:
        TABLE.run(arguments)
    print(*tables(), sep="\n\n")
    for data in DRAWN:
        print(*draw(data))


if __name__ == "__main__":
    main()
