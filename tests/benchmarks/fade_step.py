"""What FADE's losses cost: processor seconds of a step, and of the loss alone; and peak memory on a wide catalogue.

    python -m tests.benchmarks.fade_step [--steps=200] [--memory]

A step of matrix factorisation (64 wide, 256 positives with 4 negatives, dense Adam with weight decay) on tables of
MovieLens-1M's and of ModCloth's size, plainly, under FADE with each measure and against its adversary. The loss alone
is that of `[256, 5]` scores, forward and backward. Ways take turns, so that what else the machine does meets them
alike; numbers are medians on one thread, ratios medians over turns. `--memory` runs the protocol instead, on 60,000
users x 160,000 items with 2 million interactions in two blocks, trained and ranked among 100 candidates, and prints the
peak of the process. Writes results/fade_step.json and results/fade_memory.json.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from absl.testing import flagsaver
from tabulate import tabulate

import main as program
from data.structs import Batch
from model.factorisation import BPRMF
from model.methods.fade import MEASURES, group_loss
from model.modes.setup import build, prepare
from model.runs.streams import torch_generator
from model.training.update import update
from tests.support.light import light_runs

RESULTS = Path(__file__).parent / "results"
SIZES = {"MovieLens-1M": (6_039, 3_628), "ModCloth": (37_142, 1_014)}
POSITIVES, NEGATIVES = 256, 4
FADE = ("--enable_fairness=True", "--fairness_method=fade")
PLAIN = "none"
WAYS = {
    PLAIN: (),
    **{f"FADE, {measure}": (*FADE, f"--method_option=measure={measure}") for measure in MEASURES},
    "FADE, hit, adaptive": (*FADE, "--method_option=adaptive=True"),
    "adversary": ("--enable_fairness=True", "--fairness_method=fade_adversary"),
}
WIDE = {"synthetic_users": 60_000, "synthetic_items": 160_000, "synthetic_interactions": 2_000_000}
# MiB of an array of users x items
ONE_BYTE_EACH = WIDE["synthetic_users"] * WIDE["synthetic_items"] / 2**20


def step_of(size: tuple[int, int], flags: tuple[str, ...]) -> Callable[[], None]:
    """Make a function that takes a step under `flags` on tables of `size` (users, items) and given batches."""
    for name in program.FLAGS:
        program.FLAGS[name].unparse()
    words = ["--dataset=synthetic", "--synthetic_users=400", "--synthetic_items=200", "--synthetic_interactions=9000"]
    words += [f"--batch_size={POSITIVES}", "--protocol=fade", "--backbone=bprmf", "--device=cpu"]
    program.FLAGS(["fade_step", *words, *flags])
    run = prepare(program.settings_from_flags().config())
    _, method = build(run)
    users, items = size
    # users and items beyond those of the data are in the tables alone
    wide = BPRMF(users, items, run.config.embedding_dim)
    method.backbone, generator = wide, torch_generator(0)
    with torch.no_grad():
        for table in wide.parameters():
            # scores of size 1: how often NeuralNDCG scales depends on them
            table.normal_(std=wide.vector_width**-0.25, generator=generator)
    method.optimisers = method.backbone_optimisers()
    group = run.environment.user_groups[run.config.attribute]
    codes = torch.from_numpy(group.codes)[torch.randint(len(group.codes), (users,), generator=generator)]
    method.side = method.codes = codes
    batches = [
        Batch(
            torch.randint(users, (POSITIVES,), generator=generator),
            torch.randint(items, (POSITIVES,), generator=generator),
            torch.randint(items, (POSITIVES, NEGATIVES), generator=generator),
            None,
        )
        for _ in range(16)
    ]
    turn = iter(range(10**9))
    return lambda: method.train_step(batches[next(turn) % len(batches)], "method", "train", update)


def loss_of(measure: str) -> Callable[[], None]:
    """Make a function that computes FADE's loss of scores and its gradient."""
    scores = torch.randn(POSITIVES, 1 + NEGATIVES, generator=torch_generator(0)).requires_grad_()
    first = torch.arange(POSITIVES) % 3 > 0

    def loss() -> None:
        quality = MEASURES[measure](scores, 1, 3.0)
        torch.autograd.grad(group_loss(quality[first].mean() - quality[~first].mean()), scores)

    return loss


def seconds_of(actions: dict[str, Callable[[], None]], repeats: int) -> dict[str, list[float]]:
    """Measure processor seconds of each of `actions`, in turn; the first turns warm up."""
    seconds = {name: [] for name in actions}
    for turn in range(repeats + 10):
        for name, action in actions.items():
            started = time.process_time()
            action()
            if turn >= 10:
                seconds[name].append(time.process_time() - started)
    return seconds


def shown(seconds: dict[str, list[float]], base: str) -> dict[str, dict[str, float]]:
    """Give the median in milliseconds of each, and of its ratio to `base`."""
    return {
        name: {
            "ms": 1e3 * float(np.median(own)),
            "times": float(np.median(np.array(own) / np.array(seconds[base]))),
        }
        for name, own in seconds.items()
    }


def measure_steps(repeats: int) -> None:
    """Measure steps and losses, write them and print two tables."""
    torch.set_num_threads(1)
    steps = {
        name: shown(seconds_of({way: step_of(size, flags) for way, flags in WAYS.items()}, repeats), PLAIN)
        for name, size in SIZES.items()
    }
    losses = shown(seconds_of({measure: loss_of(measure) for measure in MEASURES}, repeats), "hit")
    (RESULTS / "fade_step.json").write_text(json.dumps({"step": steps, "loss": losses}, indent=1) + "\n")
    print(tables(steps, losses))


def tables(steps: dict[str, dict[str, dict[str, float]]], losses: dict[str, dict[str, float]]) -> str:
    """Lay out steps by data set, and losses, as two tables in markdown."""
    rows = [
        [way, *(text for own in steps.values() for text in (f"{own[way]['ms']:.2f}", f"{own[way]['times']:.2f}"))]
        for way in WAYS
    ]
    head = ["", *(text for name in steps for text in (f"{name}, ms / step", "times none"))]
    alone = [[name, f"{own['ms']:.2f}", f"{own['times']:.2f}"] for name, own in losses.items()]
    return "\n\n".join(
        tabulate(body, names, "github", disable_numparse=True)
        for names, body in ((head, rows), (["loss alone", "ms", "times hit"], alone))
    )


def measure_memory() -> None:
    """Run the protocol on a wide catalogue, write this process's peak resident set and print it."""
    values = {"dataset": "synthetic", "protocol": "fade", "backbone": "bprmf", "epochs": 1, "batch_size": 32_768}
    values |= {"enable_fairness": True, "fairness_method": "fade", "run_name": "wide", **WIDE}
    values["protocol_option"] = ["share=0.97", "batch=256", "blocks=2", "averaged=1", "epochs=1", "full=False"]
    with tempfile.TemporaryDirectory() as folder, light_runs():
        for name in program.FLAGS:
            program.FLAGS[name].unparse()
        program.FLAGS(["fade_step"])
        with flagsaver.flagsaver(output_dir=folder, cache_dir=f"{folder}/cache", **values):
            program.main(["main.py"])
    # Linux reports KiB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {**WIDE, "peak_mib": peak, "mib_of_one_byte_a_pair": ONE_BYTE_EACH, "seconds": time.process_time()}
    (RESULTS / "fade_memory.json").write_text(json.dumps(found, indent=1) + "\n")
    print(f"peak {peak:,.0f} MiB; an array of users x items would be {ONE_BYTE_EACH:,.0f} MiB at one byte each")


def main() -> None:
    """Print what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--memory", action="store_true")
    options = parser.parse_args()
    if options.memory:
        measure_memory()
    else:
        measure_steps(options.steps)


if __name__ == "__main__":
    main()
