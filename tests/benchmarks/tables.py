"""Print the result tables of results/README.md from the runs kept beside it.

    python -m tests.benchmarks.tables                        # print
    python -m tests.benchmarks.tables --keep runs/NAME ...   # copy finished runs in, then print

Each kept run is its result.json (the numbers, protocol, seed and commit) and run.json (command, epochs, time).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tabulate import tabulate

from tests.benchmarks.rows import served

FOLDER = Path(__file__).parent / "results"
ACCURACY = {
    "HR@10": "hr@10",
    "NDCG@10": "ndcg@10",
    "head": "ndcg@10/head",
    "tail": "ndcg@10/tail",
    "gap": "ndcg@10/gap/{group}",
}
FAIRNESS = {
    "Gini": "gini@10",
    "coverage": "coverage@10",
    "tail share": "aplt@10",
    "exposure gap": "exposure_gap@10",
    "DP debiased": "dp_debiased@10/{group}",
    "DP rate": "dp_rate@10/{group}",
    "DP rate, excess": "dp_rate@10/excess/{group}",
    "DP JS": "dp_js@10/{group}",
    "DP JS, excess": "dp_js@10/excess/{group}",
    "AUC": "leakage_auc/{group}",
    "erased": "leakage_auc_erased/{group}",
}
PERCENT = set(ACCURACY)
KINDS = ("", "_linear", "_mlp", "_within", "_erased")


def keep(run: Path, dataset_dir: Path) -> None:
    """Copy the small files of a finished run into the results."""
    cost = json.loads((run / "cost.json").read_text())
    epochs = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    validation = {row["epoch"]: row.get("valid/ndcg@10") for row in epochs}
    words = [word for word in cost["command"].split() if not word.startswith(("--output_dir", "--run_name"))]
    command = " ".join("--dataset_dir=./datasets" if word.startswith("--dataset_dir") else word for word in words)
    folder = FOLDER / run.name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").write_text((run / "result.json").read_text())
    kept = {"command": f"python {command}", "epochs": len(epochs), "threads": cost["threads"], "torch": cost["torch"]}
    kept |= {"train_seconds": round(cost["seconds"]["train"]), "peak_memory_mb": round(cost["peak_memory_mb"])}
    kept |= {"finished": cost["finished"], "validation ndcg@10": validation}
    kept |= {"leakage": leakage_of(run, dataset_dir)}
    (folder / "run.json").write_text(json.dumps(kept, indent=1) + "\n")


def leakage_of(run: Path, dataset_dir: Path) -> dict[str, float]:
    """Measure the leakage of a finished run's checkpoint with today's probes; keys are those of result.json."""
    setting, split, evaluator = served(run, dataset_dir)
    found = evaluator.leakage(split, setting.groups, setting.held_out)
    return {f"test/{key}": value for key, value in found.items()}


def load(name: str) -> dict:
    """Load the metrics of a kept run, with the leakage that was measured when it was kept."""
    metrics = json.loads((FOLDER / name / "result.json").read_text())["metrics"]
    return metrics | json.loads((FOLDER / name / "run.json").read_text())["leakage"]


def row(name: str, metrics: dict, root: str, group: str) -> list[str]:
    """Make a row of a table from the metrics under `root`, accuracy in percent."""
    cells = [name]
    for column, key in (ACCURACY | FAIRNESS).items():
        value = metrics.get(f"{root}/{key.format(group=group)}", "")
        if value is None:  # undefined, as JSON writes it
            value = "NaN"
        elif value != "":
            value = f"{100 * value:.2f}" if column in PERCENT else f"{value:.3f}"
            if column == "DP debiased":
                value += f" ± {metrics[f'{root}/dp_debiased@10/chance_std/{group}']:.3f}".replace("0.", ".")
        cells.append(value)
    return cells


def overview(runs: dict[str, str], group: str) -> str:
    """Make a table of runs (shown name -> kept run), with their yardsticks and their re-ranked lists."""
    loaded = {name: load(name) for name in runs.values()}
    # those of earlier runs have no chance levels
    latest = max(loaded.values(), key=len)
    rows = [row(which, latest, f"reference/{which}", group) for which in ("popular", "random")]
    for shown, name in runs.items():
        metrics = loaded[name]
        rows.append(row(shown, metrics, "test", group))
        if "test/reranked/ndcg@10" in metrics:
            rows.append(row(f"{shown}, re-ranked", metrics, "test/reranked", group))
    headers = ["run", *ACCURACY, *FAIRNESS]
    # earlier runs have no chance levels
    shown = [place for place in range(len(headers)) if any(cells[place] for cells in rows)]
    chosen = [[cells[place] for place in shown] for cells in rows]
    return tabulate(chosen, [headers[place] for place in shown], "github", disable_numparse=True)


def leakage(prefixes: dict[str, str], group: str) -> str:
    """Make a table of leakage and accuracy against lambda for the sweeps `prefix-LAMBDA`."""
    rows = []
    for shown, prefix in prefixes.items():
        for strength in ("0", "0.1", "1", "10"):
            metrics = load(f"{prefix}-{strength}")
            auc = [metrics[f"test/leakage_auc{kind}/{group}"] for kind in KINDS]
            accuracy = [f"{100 * metrics[f'test/{name}@10']:.2f}" for name in ("hr", "ndcg")]
            rows.append([shown, strength, *[f"{value:.3f}" for value in auc], *accuracy])
    headers = ["attribute as input", "λ_u", "AUC", "linear", "MLP", "within", "erased", "HR@10", "NDCG@10"]
    return tabulate(rows, headers, "github", disable_numparse=True)


TABLES = {
    "MovieLens-1M": lambda: overview(
        {
            "BPR-MF": "bprmf",
            "two towers, no history": "tuned-base",
            "BUHS mean": "tuned-buhs-mean",
            "BUHS attention": "tuned-buhs-attention",
            "BUHS gru": "tuned-buhs-gru",
            "FA-BUHS mean": "tuned-fabuhs-mean",
            "FA-BUHS attention, earlier adversary": "tuned-fabuhs-attention",
            "FA-BUHS gru, earlier adversary": "tuned-fabuhs-gru",
        },
        "gender",
    ),
    "MovieLens-1M, upstream's loss": lambda: overview(
        {
            "BUHS mean": "ml-buhs-mean",
            "FA-BUHS mean, earlier adversary": "ml-fabuhs-mean",
            "BUHS gru (upstream command 1)": "upstream-1",
            "FA-BUHS gru (upstream command 2), earlier adversary": "upstream-2",
            "FA-BUHS mean (upstream command 3), earlier adversary": "upstream-3",
        },
        "gender",
    ),
    "Leakage": lambda: leakage({"yes": "sweep-open", "no (masked)": "sweep-masked"}, "gender"),
    "BookCrossing subset": lambda: overview({"BUHS mean": "bx-buhs-mean"}, "age"),
}


def main() -> None:
    """Keep runs if asked, then print every table whose runs are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=Path, nargs="*", default=[])
    parser.add_argument("--dataset_dir", type=Path, default=Path("datasets"))
    arguments = parser.parse_args()
    for run in arguments.keep:
        keep(run, arguments.dataset_dir)
    for title, table in TABLES.items():
        try:
            print(f"\n{title}\n\n{table()}")
        except FileNotFoundError as missing:
            print(f"\n{title}: not yet, {missing.filename} is missing")


if __name__ == "__main__":
    main()
