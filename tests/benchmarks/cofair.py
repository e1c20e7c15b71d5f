"""Cofair on MovieLens-1M under its own protocol, beside separate trainings, with its ablations.

    python -m tests.benchmarks.cofair --run --dataset_dir=./datasets --output_dir=./runs [--jobs=2] [--rows BPR ...]
    python -m tests.benchmarks.cofair --users --dataset_dir=./datasets --output_dir=./runs   # user-wise losses
    python -m tests.benchmarks.cofair             # print the tables and draw the curves from what is kept

Numbers are kept in results/cofair.jsonl, those of `--users` in results/cofair_users.json.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from tabulate import tabulate

from model.comparison.statistics import summarise
from model.evaluation.keys import CHANCE, EXCESS, MetricKey
from model.results.pareto import accuracy_against_fairness
from tests.benchmarks.rows import FOLDER, SEEDS, Row, Rows, lists_of, served, shown

COMMON = "--dataset=ml --title_encoder=hash --protocol=cofair"
COFAIR = "--enable_fairness=True --fairness_method=cofair"
# an epoch takes fifteen times a plain one: fewer epochs at a higher rate
FABUHS = "--enable_fairness=True --fairness_method=fabuhs --adversarial_lambda_item=0 --lr=3e-3 --epochs=30"
NETWORKS = {"BPR": "--backbone=bprmf", "LightGCN": "--backbone=lightgcn"}
LEVELS = tuple(f"t{number}" for number in range(6))
# of the filter that is trained for one level alone, and of FA-BUHS's adversaries
WEIGHTS = (0.02, 0.05, 0.1, 0.2)
USER_WEIGHTS = (1.0,)
WIDE = "Cofair BPR 0.02 to 0.2"
# network -> the rows of Cofair that are set against separate trainings
CURVES = {"BPR": ["Cofair BPR", WIDE], "LightGCN": ["Cofair LightGCN"]}
# on BPR, one seed: name -> option
ABLATION = {
    "beta 0": "beta=0",
    "disc_update=after": "disc_update=after",
    "select=mean": "select=mean",
    "spare_probe_users": "spare_probe_users=True",
}
USERS_FILE = FOLDER / "cofair_users.json"
FOLDS, ATTACKERS = 5, 5


def filter_row(network: str, weight: float) -> str:
    """Name the row of the filter that is trained with one adversarial weight."""
    return f"filter {network} {weight:g}"


def rows() -> dict[str, Row]:
    """Make every row of the table."""
    made = {network: Row(flags) for network, flags in NETWORKS.items()}
    for network, flags in NETWORKS.items():
        made[f"Cofair {network}"] = Row(f"{flags} {COFAIR}", backbone=network)
        for weight in WEIGHTS:
            options = f"--method_option=levels=1 --method_option=lambda0={weight:g}"
            made[filter_row(network, weight)] = Row(f"{flags} {COFAIR} {options}", backbone=network)
    # the same levels with the range of weights that the filters have
    wide = f"{NETWORKS['BPR']} {COFAIR} --method_option=lambda0=0.02 --method_option=alpha=0.045"
    made[WIDE] = Row(wide, backbone="BPR")
    for weight in USER_WEIGHTS:
        flags = f"{NETWORKS['BPR']} {FABUHS} --adversarial_lambda_user={weight:g}"
        made[f"FA-BUHS {weight:g} BPR"] = Row(flags, SEEDS[:1])
    for name, option in ABLATION.items():
        made[f"Cofair BPR, {name}"] = Row(f"{NETWORKS['BPR']} {COFAIR} --method_option={option}", SEEDS[:1], "BPR")
    return made


TABLE = Rows("cofair", COMMON, rows())
# row of the ablation -> what differs in it
ABLATED = {f"Cofair BPR, {name}": name for name in ABLATION}


def parity(name: str, k: int) -> str:
    """Name the key of a parity metric."""
    return str(MetricKey(name, k, "gender"))


# column -> what is read of a list's metrics
COLUMNS: dict[str, str] = {
    "Recall@10": "recall@10",
    "NDCG@10": "ndcg@10",
    "DP@10": parity("dp_js", 10),
    "EO@10": parity("eo_js", 10),
    "Recall@20": "recall@20",
    "NDCG@20": "ndcg@20",
    "DP@20": parity("dp_js", 20),
    "EO@20": parity("eo_js", 20),
}
CHANCES = {
    f"{name} {what}": str(
        MetricKey(metric, k, "gender").of(CHANCE) if what == "chance" else MetricKey(metric, k, "gender")
    )
    for name, metric, k in (("DP@10", "dp_js", 10), ("DP@20", "dp_js", 20), ("EO@20", "eo_js", 20))
    for what in ("", "chance")
} | {
    "DP@10 debiased": parity("dp_debiased", 10),
    "DP@20 debiased": parity("dp_debiased", 20),
}
ATTACKS = {
    "as published": "leakage_auc_hard/gender",
    "its chance": "leakage_auc_hard/chance/gender",
    "discriminator": "leakage_auc_discriminator/gender",
    "strongest": "leakage_auc/gender",
    "chance": "leakage_auc/chance/gender",
}


def lists(row: str) -> dict[str, list[dict[str, float]]]:
    """Give what a row serves: name of each of its lists -> its metrics, one dict for each kept seed."""
    if not any(kept["row"] == row for kept in TABLE.kept()):
        return {}
    if "levels=1" in TABLE.rows[row].flags:
        return {row: TABLE.of(row, "t1")}
    if COFAIR not in TABLE.rows[row].flags:
        return {row: TABLE.of(row)}
    return {f"{row}, {level}": TABLE.of(row, level) for level in LEVELS}


def table(columns: Mapping[str, str], digits: int = 3) -> str:
    """Make a table of `columns` with a line for each list of each row but the ablation's: mean ± deviation."""
    lines = []
    for row in TABLE.rows:
        for name, runs in lists(row).items() if row not in ABLATED else ():
            cells = [shown(np.array([metrics[key] for metrics in runs]), digits) for key in columns.values()]
            lines.append([f"{name} ({len(runs)})", *cells])
    return tabulate(lines, ["(seeds)", *columns], "github", disable_numparse=True)


def ablation(k: int = 20) -> str:
    """Make the table of the ablation on BPR, of one seed."""
    lines = []
    for row, name in {"Cofair BPR": "Cofair", **ABLATED}.items():
        kept = [one for one in TABLE.kept() if (one["row"], one["seed"]) == (row, SEEDS[0])]
        if kept:
            found = lists_of(kept[0]["metrics"])
            cells = [f"{found[level][f'ndcg@{k}']:.3f}" for level in (LEVELS[1], LEVELS[-1])]
            cells += [f"{found[level][parity('dp_js', k)]:.3f}" for level in LEVELS[1:]]
            cells.append(f"{found[LEVELS[-1]]['leakage_auc/gender']:.3f}")
            lines.append([name, kept[0]["epoch"], *(cell.replace("0.", ".", 1) for cell in cells)])
    headers = [f"NDCG@{k} {LEVELS[1]}", LEVELS[-1], f"DP@{k} {LEVELS[1]}", *LEVELS[2:], f"AUC {LEVELS[-1]}"]
    return tabulate(lines, ["", "epoch", *headers], "github", disable_numparse=True)


# --- One training against several ---


def hypervolume(points: list[tuple[float, float]], worst: tuple[float, float]) -> float:
    """Compute the area that `points` (accuracy, disparity) dominate, above the accuracy and below the disparity of
    `worst`."""
    area, least = 0.0, worst[0]
    for accuracy, disparity in sorted(points, key=lambda point: (point[1], -point[0])):
        if accuracy > least and disparity < worst[1]:
            area += (accuracy - least) * (worst[1] - disparity)
            least = accuracy
    return area


def curve_area(network: str, rows_of: list[str], figure: str, k: int = 20) -> np.ndarray:
    """Compute the hypervolume of NDCG and a parity `figure` over the lists of some rows: one for each seed `[S]`.

    In percent of the rectangle from the worst point (four fifths of the backbone's NDCG, the backbone's disparity) to
    the backbone's NDCG without disparity.
    """
    base = lists(network)[network]
    areas = []
    for place, own in enumerate(base):
        found = [runs[place] for row in rows_of for runs in lists(row).values()] + [own]
        accuracy, disparity = f"ndcg@{k}", parity(figure, k)
        worst = (0.8 * own[accuracy], own[disparity])
        points = [(metrics[accuracy], metrics[disparity]) for metrics in found]
        areas.append(100 * hypervolume(points, worst) / ((own[accuracy] - worst[0]) * worst[1]))
    return np.array(areas)


def interval(values: np.ndarray) -> str:
    """Format mean and 95 % interval over seeds (Student's t)."""
    found = summarise(values)
    return f"{found.mean:.1f}" + (f" [{found.low:.1f}, {found.high:.1f}]" if found.count > 1 else "")


def areas() -> str:
    """Make the table of hypervolumes: one training against as many as there are weights."""
    lines = []
    for network, curves in CURVES.items():
        # as many seeds as the backbone has: places are seeds
        seeds = len(TABLE.of(network))
        filters = [filter_row(network, weight) for weight in WEIGHTS]
        separate = [row for row in filters if len(lists(row).get(row, [])) == seeds]
        for curve in curves:
            if not separate or len(lists(curve).get(f"{curve}, {LEVELS[0]}", [])) != seeds:
                continue
            for figure, title in (("dp_js", "DP"), ("dp_debiased", "DP debiased")):
                one, many = (curve_area(network, rows_of, figure) for rows_of in ([curve], separate))
                line = [interval(one), interval(many), interval(one - many)]
                lines.append([f"{curve} ({seeds}), {len(separate)} filters", title, *line])
    return tabulate(lines, ["(seeds)", "against", "one training", "trained anew", "difference"], "github")


# --- The picture ---


def mean_over(runs: list[dict[str, float]]) -> dict[str, float]:
    """Average the metrics that all `runs` have."""
    return {key: float(np.mean([run[key] for run in runs])) for key in runs[0] if all(key in run for run in runs)}


def draw_curve(network: str, row: str, k: int = 20) -> list[Path]:
    """Draw NDCG against parity and leakage: the levels of a `row`, and the filters trained for one weight each.

    Means over seeds, with 95 % intervals over them.
    """
    separate = {filter_row(network, weight): f"{weight:g}" for weight in WEIGHTS}
    found = lists(row)
    joined = {row: dict(zip(found, LEVELS, strict=True))}
    anew = {row: text for row, text in separate.items() if lists(row)}
    joined |= {"trained anew for λ": anew} if anew else {}
    for other in anew:
        found |= lists(other)
    for weight in USER_WEIGHTS:
        found |= lists(f"FA-BUHS {weight:g} BPR") if network == "BPR" else {}
    fairness = [str(MetricKey(name, k, "gender").of(EXCESS)) for name in ("dp_debiased", "dp_js")]
    fairness.append(str(MetricKey("leakage_auc", group="gender").of(EXCESS)))
    intervals = {}
    for name, runs in found.items():
        over_seeds = {key: summarise([run[key] for run in runs]) for key in (f"ndcg@{k}", *fairness)}
        intervals[name] = {key: (own.low, own.high) for key, own in over_seeds.items()}
    points = {name: mean_over(runs) for name, runs in found.items()}
    path = FOLDER / "_".join(row.lower().split())
    return accuracy_against_fairness(points, path, f"ndcg@{k}", fairness, intervals, joined)


# --- User by user ---


def user_losses(vectors: np.ndarray, codes: np.ndarray, seed: int) -> np.ndarray:
    """Compute each user's mean cross-entropy `[U]` under fresh attackers, which were fitted on other users.

    Small MLPs on standardised vectors, cross-validated, each with folds of its own.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_predict
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    losses = []
    for own in np.random.SeedSequence(seed).generate_state(ATTACKERS).tolist():
        attacker = make_pipeline(StandardScaler(), MLPClassifier((64,), early_stopping=True, random_state=own))
        folds = StratifiedKFold(FOLDS, shuffle=True, random_state=own)
        shares = cross_val_predict(attacker, vectors, codes, cv=folds, method="predict_proba")
        losses.append(-np.log(np.clip(shares[np.arange(len(codes)), codes], 1e-12, None)))
    return np.mean(losses, axis=0)


def measure_users(dataset_dir: Path, output_dir: Path) -> None:
    """Measure user-wise losses at every level of the kept runs of Cofair, and how many rise from level to level."""
    found = json.loads(USERS_FILE.read_text()) if USERS_FILE.exists() else []
    measured = [(one["row"], one["seed"]) for one in found]
    for kept in TABLE.kept():
        own = (kept["row"], kept["seed"])
        if own in measured or kept["row"] not in [f"Cofair {network}" for network in NETWORKS]:
            continue
        run, split, evaluator = served(output_dir / TABLE.run_name(*own), dataset_dir)
        codes, everybody = run.groups["gender"].codes, np.arange(split.num_users)
        losses = []
        for level in LEVELS:
            vectors = evaluator.represent(everybody, split.test_histories, split, level).numpy()
            losses.append(user_losses(vectors, codes, kept["seed"]))
        rises = np.diff(losses, axis=0) > 0  # [T, U]
        # other attackers on the same vectors: what rises between two levels that are alike
        again = user_losses(vectors, codes, kept["seed"] + 1000)
        found.append(
            {
                "row": kept["row"],
                "seed": kept["seed"],
                "loss": [round(float(loss.mean()), 4) for loss in losses],
                "rises": [round(float(share), 4) for share in rises.mean(axis=1)],
                "rises at every level": round(float(rises[1:].all(axis=0).mean()), 4),
                "rises between other attackers on one level": round(float((again > losses[-1]).mean()), 4),
            }
        )
        print(found[-1], flush=True)
    USERS_FILE.write_text(json.dumps(found, indent=1) + "\n")


def users() -> str:
    """Make the table of user-wise losses."""
    found = json.loads(USERS_FILE.read_text()) if USERS_FILE.exists() else []
    lines = []
    for row in dict.fromkeys(one["row"] for one in found):
        runs = [one for one in found if one["row"] == row]
        for place, level in enumerate(LEVELS):
            loss = np.array([one["loss"][place] for one in runs])
            rises = np.array([one["rises"][place - 1] for one in runs]) if place else None
            lines.append([f"{row}, {level} ({len(runs)})", shown(loss, 3), "" if rises is None else shown(rises, 3)])
        every, alike = (
            np.array([one[name] for one in runs])
            for name in ("rises at every level", "rises between other attackers on one level")
        )
        lines.append([f"{row}: at every level from t1 to t5", "", shown(every, 3)])
        lines.append([f"{row}: between other attackers on t5", "", shown(alike, 3)])
    headers = ["(seeds)", "mean loss", "users whose loss is above the level before"]
    return tabulate(lines, headers, "github", disable_numparse=True)


def tables() -> list[str]:
    """Make every table."""
    return [*map(table, (COLUMNS, CHANCES, ATTACKS)), areas(), users(), ablation()]


def main() -> None:
    """Run what is asked, then print the tables."""
    parser = TABLE.parser(__doc__)
    parser.add_argument("--users", action="store_true")
    arguments = parser.parse_args()
    if arguments.run:
        TABLE.run(arguments)
    if arguments.users:
        measure_users(arguments.dataset_dir, arguments.output_dir)
    print(*tables(), sep="\n\n")
    for network, curves in CURVES.items():
        for row in filter(lists, curves):
            print(*draw_curve(network, row))


if __name__ == "__main__":
    main()
