"""FDA's Table 4 on MovieLens-1M beside the published figures, and its ablation.

    python -m tests.benchmarks.fda --run --dataset_dir=./datasets --output_dir=./runs [--jobs=2] [--rows BPR FDA_BPR]
    python -m tests.benchmarks.fda                # print the tables and draw the ablation from what is kept

Numbers are kept in results/fda.jsonl. Published figures: Chen et al., WWW 2023, Table 4.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate

from model.evaluation.keys import CHANCE, EXCESS, MetricKey
from model.results.drawing import STYLES, save
from tests.benchmarks.rows import FOLDER, SEEDS, Row, Rows, shown, values

COMMON = "--dataset=ml --title_encoder=hash --protocol=fda"
FDA = "--enable_fairness=True --fairness_method=fda --method_option=form=code"
PAPER = FDA.replace("code", "paper")
PARITY = "--enable_fairness=True --fairness_method=parity --method_option=weight=0.01"
MEASURES = ("hr", "ndcg", "dp_code", "eo_code")
CHANCE_FIGURES = ("dp_code", "dp_rate", "dp_js", "dp_debiased")
# row -> its flags and the seeds that it runs with
ROWS: dict[str, tuple[str, tuple[int, ...]]] = {
    "BPR": ("--backbone=bprmf", SEEDS),
    "BPR_DP": (f"--backbone=bprmf {PARITY} --method_option=kind=dp", SEEDS),
    "BPR_EO": (f"--backbone=bprmf {PARITY} --method_option=kind=eo", SEEDS),
    "BPR_DP, weight 0.1": (f"--backbone=bprmf {PARITY.replace('0.01', '0.1')} --method_option=kind=dp", SEEDS[:1]),
    "FDA_BPR": (f"--backbone=bprmf {FDA}", SEEDS),
    "FDA_BPR, form=paper": (f"--backbone=bprmf {PAPER}", SEEDS),
    "GCCF": ("--backbone=gccf --epochs=120", SEEDS),
    "GCCF_DP": (f"--backbone=gccf --epochs=120 {PARITY} --method_option=kind=dp", SEEDS),
    "GCCF_EO": (f"--backbone=gccf --epochs=120 {PARITY} --method_option=kind=eo", SEEDS),
    "FDA_GCCF": (f"--backbone=gccf --epochs=120 {FDA} --method_option=mask_ratio=0.5", SEEDS),
    "FDA_GCCF, form=paper": (f"--backbone=gccf --epochs=120 {PAPER} --method_option=mask_ratio=0.5", SEEDS[:1]),
}
# as the authors ran it: five triples a positive, 204,800 in a step
ROWS |= {
    "FDA_BPR, five negatives": (f"{ROWS['FDA_BPR'][0]} --num_negatives=5", SEEDS[:1]),
    "FDA_GCCF, five negatives": (
        f"{ROWS['FDA_GCCF'][0].replace('--epochs=120', '--epochs=60')} --num_negatives=5",
        SEEDS[:1],
    ),
    "FairUser": ("--backbone=bprmf --enable_fairness=True --fairness_method=fairuser", SEEDS[:1]),
    "SLIM": ("--backbone=slim", SEEDS[:1]),
    "BN-SLIM": ("--backbone=slim --enable_fairness=True --fairness_method=bnslim", SEEDS[:1]),
}
# Table 4 of the paper: HR, NDCG, DP and EO at K = 10, at 20 and at 50
PUBLISHED_KS = (10, 20, 50)
PUBLISHED = {
    name: [float(value) for value in values]
    for name, *values in map(
        str.split,
        """
        BPR      .2478 .2492 .6541 .7158  .2770 .2498 .6198 .6868  .3849 .2830 .5861 .6575
        BPR_DP   .2209 .2241 .6524 .7039  .2446 .2229 .6063 .6802  .3427 .2530 .5921 .6565
        BPR_EO   .2259 .2225 .6510 .7053  .2507 .2279 .6194 .6712  .3529 .2589 .5950 .6608
        FDA_BPR  .2307 .2226 .6132 .6969  .2716 .2321 .5730 .6562  .3941 .2729 .5450 .6224
        GCCF     .2607 .2602 .6391 .7025  .2913 .2617 .6182 .6869  .4059 .2967 .5740 .6462
        GCCF_DP  .2416 .2420 .6532 .7155  .2691 .2434 .6164 .6865  .3761 .2763 .5869 .6607
        GCCF_EO  .2407 .2428 .6479 .7060  .2698 .2437 .6211 .6784  .3748 .2759 .5844 .6579
        FDA_GCCF .2476 .2430 .6036 .6773  .2857 .2487 .5786 .6593  .4075 .2873 .5438 .6130
        FairUser .2306 .2262 .6502 .7375  .2656 .2318 .6167 .7162  .3847 .2705 .5761 .6680
        BN-SLIM  .2305 .2287 .6502 .7349  .2671 .2334 .6078 .7061  .3868 .2716 .5661 .6747
        """.strip().splitlines(),
    )
}

# The ablation, on BPR-MF: other shares of fakes; one hypothesis (form=paper, whose noise has both).
RATIOS = {f"mask ratio {ratio}": f"--method_option=mask_ratio={ratio}" for ratio in (0.0, 0.2, 0.6)}
ABLATION: dict[str, str] = {
    **{row: f"--backbone=bprmf {FDA} {flags}" for row, flags in RATIOS.items()},
    "H1 only": f"--backbone=bprmf {PAPER} --method_option=negative_hypothesis=False",
    "H2 only": f"--backbone=bprmf {PAPER} --method_option=positive_hypothesis=False",
}
ROWS |= {name: (flags, SEEDS[:1]) for name, flags in ABLATION.items()}


TABLE = Rows("fda", COMMON, {name: Row(*own) for name, own in ROWS.items()})


def measured(row: str, k: int) -> Iterator[np.ndarray]:
    """Give the values over seeds `[S]` of each of `MEASURES` at k."""
    groups = ("/gender" if measure.endswith("_code") else "" for measure in MEASURES)
    return values(TABLE.of(row), [f"{measure}@{k}{group}" for measure, group in zip(MEASURES, groups, strict=True)])


def table() -> str:
    """Make Table 4: every row as measured, with the published figures below it."""
    lines = []
    for row in ROWS:
        if row in ABLATION or not any(kept["row"] == row for kept in TABLE.kept()):
            continue
        lines.append([row, *[shown(values) for k in PUBLISHED_KS for values in measured(row, k)]])
        if row in PUBLISHED:
            lines.append([f"{row}, published", *[f"{value:.4f}"[1:] for value in PUBLISHED[row]]])
    headers = [f"{name}@{k}" for k in PUBLISHED_KS for name in ("HR", "NDCG", "DP", "EO")]
    return tabulate(lines, ["", *headers], "github", disable_numparse=True)


def above_chance(k: int = 10) -> str:
    """Make a table of parity at k above its chance level, of the rows whose runs were judged so."""
    lines = []
    for row in ROWS:
        runs = [metrics for metrics in TABLE.of(row) if f"dp_rate@{k}/p/gender" in metrics]
        if not runs:
            continue
        cells = [f"{row} ({len(runs)})"]
        for name in CHANCE_FIGURES:
            key = MetricKey(name, k, "gender")
            parts = [key] if name.endswith("_debiased") else [key, key.of(CHANCE), key.of(EXCESS)]
            cells += [shown(np.array([metrics[str(part)] for metrics in runs])) for part in parts]
        lines.append(cells)
    headers = ["(seeds)"]
    for name in CHANCE_FIGURES:
        headers += [name] if name.endswith("_debiased") else [name, "chance", "excess"]
    return tabulate(lines, headers, "github", disable_numparse=True)


def draw_ablation(k: int = 20) -> list[Path]:
    """Draw NDCG, DP and EO against the share of fakes, and under both hypotheses and each alone, of one seed each."""
    kept = {run["row"]: run["metrics"] for run in TABLE.kept() if run["seed"] == SEEDS[0]}
    ratios = {float(row.split()[-1]): row for row in RATIOS} | {0.4: "FDA_BPR"}
    points = sorted((ratio, row) for ratio, row in ratios.items() if row in kept)
    forms = ("FDA_BPR, form=paper", "H1 only", "H2 only")
    figure = Figure(figsize=(9.5, 3.4), layout="constrained")
    for panel, (title, key) in zip(
        figure.subplots(1, 3),
        {f"NDCG@{k}": f"ndcg@{k}", f"DP@{k}": f"dp_code@{k}/gender", f"EO@{k}": f"eo_code@{k}/gender"}.items(),
        strict=True,
    ):
        line = [kept[row][key] for _, row in points]
        panel.plot([ratio for ratio, _ in points], line, "o-", color="black", label="form=code")
        for row, style in zip(forms, STYLES[1:], strict=True):
            if row in kept:
                look = {"color": style.color, "markersize": 9, "markerfacecolor": "white", "linestyle": "none"}
                panel.plot(0.4, kept[row][key], marker=style.marker, label=row.removeprefix("FDA_BPR, "), **look)
        panel.axhline(kept["BPR"][key], color="0.5", linestyle=":", label="BPR")
        panel.set_title(title, fontsize="medium")
        panel.set_xlabel("mask ratio (share of fakes)")
        panel.grid(alpha=0.3)
    figure.legend(*panel.get_legend_handles_labels(), loc="outside upper center", ncols=5, fontsize="small")
    return save(figure, FOLDER / "fda_ablation")


def main() -> None:
    """Run what is asked, then print the table and draw the ablation."""
    arguments = TABLE.parser(__doc__).parse_args()
    if arguments.run:
        TABLE.run(arguments)
    print(table())
    print(f"\n{above_chance()}")
    if any(run["row"] in ABLATION for run in TABLE.kept()):
        print(*draw_ablation())


if __name__ == "__main__":
    main()
