"""Time per positive and peak memory of training against the size of the data.

    python -m tests.benchmarks.growth [--sizes 1 2.5 5 10 25] [--steps 200] [--output growth]

Synthetic data of 1 to 25 million interactions, users and items growing with them from 6,040 and 3,900 to 160,000 and
60,000, each size in a process of its own: BUHS with the mean, at MovieLens's hyper-parameters, on the CPU in float32.
A step's time is split into sampling, the item tower (`prepare` and its backward pass, timed apart on the step's items),
the optimiser (dense Adam over every id) and the rest. Exponents are least squares in log-log: 0 means that a positive
costs the same whatever the size. Writes OUTPUT.csv, OUTPUT.png and OUTPUT.svg. On a machine that is shared, take
`--clock=cpu` with OMP_NUM_THREADS=1, which counts the process's own time. Other flags go to the program.
"""

from __future__ import annotations

import argparse
import csv
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from tabulate import tabulate

SMALLEST, LARGEST = (1e6, 6040, 3900), (25e6, 160_000, 60_000)  # interactions, users, items
PARTS = ("sampling", "item_tower", "optimiser", "rest")
TOWER_EVERY = 10  # steps from one timing of the item tower to the next
STYLES = (("black", "-", "o"), ("0.25", "--", "s"), ("0.45", "-.", "^"), ("0.6", ":", "D"), ("0.0", (0, (1, 1)), "x"))


def sizes_of(millions: float) -> tuple[int, int, int]:
    """Choose interactions, users and items of a size: power laws through the smallest and the largest size."""
    place = np.log(millions * 1e6 / SMALLEST[0]) / np.log(LARGEST[0] / SMALLEST[0])
    users, items = (round(SMALLEST[n] * (LARGEST[n] / SMALLEST[n]) ** place) for n in (1, 2))
    return round(millions * 1e6), users, items


def peak_mb() -> float:
    """Read this process's peak resident set in MiB (Linux reports KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(millions: float, steps: int, warm_up: int, clock_name: str, flags: list[str]) -> dict[str, float]:
    """Make data of one size, train for `warm_up + steps` steps and time the latter: medians in microseconds a positive.

    `flags` are further ones of the program.
    """
    # a process that only starts others needs no torch, whose memory they would inherit in their peak
    import torch

    import main
    from data.dataloader import edge_batches
    from model.modes.setup import build, prepare
    from model.runs.streams import torch_generator
    from model.training.batches import batch_sampler

    clock = {"wall": time.perf_counter, "cpu": time.process_time}[clock_name]
    interactions, users, items = sizes_of(millions)
    main.FLAGS(
        [
            "growth",
            "--dataset=synthetic",
            f"--synthetic_users={users}",
            f"--synthetic_items={items}",
            f"--synthetic_interactions={interactions}",
            "--title_encoder=hash",
            "--batch_size=1024",
            "--num_negatives=20",
            "--lr=2e-4",
            "--device=cpu",
            "--run_name=growth",
            *flags,
        ]
    )
    started = clock()
    run = prepare(main.settings_from_flags().config())
    loaded, load_mb = clock(), peak_mb()
    backbone, method, *_ = build(run)
    phase = run.protocol.phases[0]
    sampler = batch_sampler(run, phase, backbone, method)
    generators = {name: torch_generator(run.seeds[name]) for name in ("order", "negatives", "history")}
    method.begin_phase(phase, warm_up + steps)
    built = clock()
    taken = {part: [] for part in ("step", *PARTS[:3])}

    def update(loss: torch.Tensor, *optimisers: torch.optim.Optimizer) -> None:
        for optimiser in optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        begun = clock()
        for optimiser in optimisers:
            optimiser.step()
        taken["optimiser"].append(clock() - begun)

    def time_item_tower(batch) -> None:
        begun = clock()
        context = backbone.prepare(
            torch.cat([batch.positives, batch.negatives.flatten(), batch.history.items.flatten()])
        )
        (context.features.sum() + context.scored.sum()).backward()
        taken["item_tower"].append(clock() - begun)
        backbone.zero_grad(set_to_none=True)

    edges = edge_batches(len(sampler.user), run.config.batch_size, generators["order"])
    for step, rows in zip(range(warm_up + steps), edges, strict=False):
        begun = clock()
        batch = sampler.sample(rows, generators["negatives"], generators["history"])
        sampled = clock()
        method.train_step(batch, "method", "train", update)
        taken["step"].append(clock() - begun)
        taken["sampling"].append(sampled - begun)
        if step % TOWER_EVERY == 0:
            time_item_tower(batch)
    skipped = {"item_tower": warm_up // TOWER_EVERY}
    median = {part: float(np.median(values[skipped.get(part, warm_up) :])) for part, values in taken.items()}
    microseconds = {part: 1e6 * value / run.config.batch_size for part, value in median.items()}
    microseconds["rest"] = microseconds["step"] - sum(microseconds[part] for part in PARTS[:3])
    return {
        "interactions": interactions,
        "users": users,
        "items": items,
        "load_seconds": loaded - started,
        "build_seconds": built - loaded,
        "load_peak_mb": load_mb,
        "peak_mb": peak_mb(),
        **{f"{part}_us": microseconds[part] for part in ("step", *PARTS)},
    }


def in_own_process(millions: float, options: argparse.Namespace, flags: list[str]) -> dict[str, float]:
    """Measure one size in a fresh process, so that the peak memory is this size's alone."""
    command = [sys.executable, "-m", __spec__.name, f"--one={millions}", f"--steps={options.steps}"]
    command += [f"--warm_up={options.warm_up}", f"--clock={options.clock}", *flags]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def exponent(points: list[dict[str, float]], without: tuple[str, ...] = ()) -> float:
    """Fit the slope of log time per positive, some parts left out, over log interactions by least squares."""
    seconds = [point["step_us"] - sum(point[f"{part}_us"] for part in without) for point in points]
    return float(np.polyfit(np.log([point["interactions"] for point in points]), np.log(seconds), 1)[0])


def draw(points: list[dict[str, float]], stem: Path) -> None:
    """Plot time per positive with its parts, and peak memory, against interactions."""
    figure = Figure(figsize=(6.4, 7.2), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    millions = [point["interactions"] / 1e6 for point in points]
    labels = {"step": "whole step", "item_tower": "item tower", "optimiser": "optimiser (dense Adam)"}
    for part, (color, line, marker) in zip(("step", *PARTS), STYLES, strict=True):
        values = [point[f"{part}_us"] for point in points]
        panels[0].plot(millions, values, color=color, linestyle=line, marker=marker, label=labels.get(part, part))
    memory = {"peak_mb": "after training", "load_peak_mb": "after loading"}
    for (key, label), (color, line, marker) in zip(memory.items(), STYLES, strict=False):
        gigabytes = [point[key] / 1024 for point in points]
        panels[1].plot(millions, gigabytes, color=color, linestyle=line, marker=marker, label=label)
    panels[0].set(xscale="log", yscale="log", ylabel="time per positive (microseconds)")
    panels[1].set(ylim=(0, None), ylabel="peak memory (GiB)", xlabel="interactions (millions)")
    panels[1].set_xticks(millions, [f"{value:g}" for value in millions])
    panels[1].minorticks_off()
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small", loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3)
    for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
        figure.savefig(stem.with_name(f"{stem.name}.{kind}"), dpi=150, metadata=metadata)


def summary(points: list[dict[str, float]]) -> str:
    """Make a table of the points, with the exponents and the growth beyond that of the item tower and Adam."""
    columns = ["step", *PARTS]
    header = ["M", "users", "items", *[f"{name} µs" for name in columns], "load s", "build s", "peak GiB"]
    rows = [
        [point["interactions"] / 1e6, f"{point['users']:,}", f"{point['items']:,}"]
        + [f"{point[f'{name}_us']:.1f}" for name in columns]
        + [f"{point['load_seconds']:.0f}", f"{point['build_seconds']:.0f}", f"{point['peak_mb'] / 1024:.2f}"]
        for point in points
    ]
    lines = [tabulate(rows, header, "github", disable_numparse=True)]
    if len(points) > 1:
        first, last = points[0], points[-1]
        for without in ((), ("item_tower",), ("item_tower", "optimiser")):
            grown = last["step_us"] - first["step_us"] - sum(last[f"{n}_us"] - first[f"{n}_us"] for n in without)
            name = f"without {' and '.join(without).replace('_', ' ')}" if without else "whole step"
            lines.append(
                f"{name}: exponent {exponent(points, without):.3f}; from the smallest to the largest size it grows by "
                f"{grown / first['step_us']:.1%} of the smallest size's step"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure every size, print the table and write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="+", default=[1, 2.5, 5, 10, 25], help="millions of interactions")
    parser.add_argument("--steps", type=int, default=200, help="timed steps of 1,024 positives")
    parser.add_argument("--warm_up", type=int, default=20, help="steps before the timed ones")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--output", type=Path, default=Path("growth"), help="path of the files, without their endings")
    parser.add_argument("--one", type=float, help="measure this size alone and print it as JSON")
    options, flags = parser.parse_known_args()
    if options.one:
        print(json.dumps(measure(options.one, options.steps, options.warm_up, options.clock, flags)))
        return
    points = []
    for millions in sorted(options.sizes):
        points.append(in_own_process(millions, options, flags))
        print(json.dumps(points[-1]), flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with options.output.with_name(f"{options.output.name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(points[0]))
        writer.writeheader()
        writer.writerows(points)
    draw(points, options.output)
    print(summary(points))


if __name__ == "__main__":
    main()
