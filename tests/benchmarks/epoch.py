"""Processor seconds of an epoch under each way of training, and their ratio to the plain backbone's.

    python -m tests.benchmarks.epoch --dataset_dir=./datasets [--protocol=fda] [--dataset=ml] [--phase=0] [--repeats=5]

A data set under a protocol and its presets: FDA's (one negative, 40,960 positives a step), Cofair's (4,096, and for
lightgcn 32,768 in the backbone's own stage) or FADE's (256, four negatives; `--phase=1` is an epoch on a block). Of two
stages it is the method's. Epochs of all ways take turns, so that
what else the machine does meets them alike; the ratio is the median over turns. Evaluation is not in it. On one thread
of an idle core it is the time that passes.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from tabulate import tabulate

import main as program
from model.modes.setup import build, prepare
from model.runs.streams import torch_generator
from model.training.batches import batch_sampler, draw_batch, planned_steps
from model.training.update import update

FDA = ("--enable_fairness=True", "--fairness_method=fda")
PARITY = ("--enable_fairness=True", "--fairness_method=parity")
COFAIR = ("--enable_fairness=True", "--fairness_method=cofair")
FADE = ("--enable_fairness=True", "--fairness_method=fade")
# protocol -> way -> flags
WAYS = {
    "fda": {
        "none": (),
        "FDA": FDA,
        "FDA, form=paper": (*FDA, "--method_option=form=paper"),
        "parity, DP": PARITY,
        "parity, EO": (*PARITY, "--method_option=kind=eo"),
    },
    "cofair": {
        "none": (),
        "Cofair": COFAIR,
        "Cofair, disc_update=after": (*COFAIR, "--method_option=disc_update=after"),
        "Cofair, one level": (*COFAIR, "--method_option=levels=1"),
        "FA-BUHS's adversaries": ("--enable_fairness=True", "--adversarial_lambda_item=0"),
    },
    "fade": {
        "none": (),
        "FADE": FADE,
        "FADE, NeuralNDCG": (*FADE, "--method_option=measure=neural_ndcg"),
        "FADE, adaptive": (*FADE, "--method_option=adaptive=True"),
        "adversarial filter": ("--enable_fairness=True", "--fairness_method=fade_adversary"),
    },
}
BACKBONES = {"fda": ["bprmf", "gccf"], "cofair": ["bprmf", "lightgcn"], "fade": ["bprmf"]}


def epoch_of(options: argparse.Namespace, backbone: str, flags: tuple[str, ...]) -> Callable[[], None]:
    """Make a function that trains an epoch of `backbone` under `flags`."""
    for name in program.FLAGS:
        program.FLAGS[name].unparse()
    words = [f"--dataset={options.dataset}", f"--dataset_dir={options.dataset_dir}", "--title_encoder=hash"]
    words += ["--device=cpu", f"--protocol={options.protocol}", f"--backbone={backbone}", *flags]
    program.FLAGS(["epoch", *words])
    run = prepare(program.settings_from_flags().config())
    network, method = build(run)
    phase = run.protocol.phases[options.phase]
    network.begin_phase(phase.split)
    sampler = batch_sampler(run, phase, network, method)
    method.begin_phase(phase, planned_steps(phase, sampler, method))
    stage = method.stages()[-1]
    method.begin_stage(stage)
    batch_size = method.schedule(stage, phase).batch_size
    generators = {name: torch_generator(0) for name in ("order", "negatives", "history")}

    def train() -> None:
        method.begin_epoch(stage, 1)
        for name in method.passes(stage, 1):
            for edges in sampler.batches(batch_size, generators["order"]):
                batch = draw_batch(sampler, edges, method, stage, generators)
                method.train_step(batch, stage, name, update)

    return train


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_dir", required=True)
    parser.add_argument("--protocol", default="fda", choices=list(WAYS))
    parser.add_argument("--dataset", default="ml")
    parser.add_argument("--phase", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--backbones", nargs="*", default=None)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = []
    for backbone in options.backbones or BACKBONES[options.protocol]:
        ways = WAYS[options.protocol].items()
        epochs = {name: epoch_of(options, backbone, flags) for name, flags in ways}
        seconds = {name: [] for name in epochs}
        for turn in range(options.repeats + 1):
            for name, train in epochs.items():
                started = time.process_time()
                train()
                if turn:  # the first warms up
                    seconds[name].append(time.process_time() - started)
        plain = np.array(seconds["none"])
        rows += [
            [backbone, name, f"{np.median(own):.2f}", f"{np.median(np.array(own) / plain):.2f}"]
            for name, own in seconds.items()
        ]
    print(tabulate(rows, ["backbone", "method", "s / epoch", "times none"], "github", disable_numparse=True))


if __name__ == "__main__":
    main()
