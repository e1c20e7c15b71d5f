"""Where a training step's time goes, how much of the machine it uses, and its ratio to a literal row-by-row step.

    python -m tests.benchmarks.train_step [--dataset_dir=./datasets] [--threads=2] [--precision=fp32]

MovieLens-1M at the published setting (1,024 positives, 20 uniform and 20 in-batch negatives, histories of 15), or
synthetic data of that size without --dataset_dir. Times are this machine's; ratios and utilisation are from one run.

Utilisation = useful FLOPs / time / peak. Useful are the operations of the plain formulation: one history per positive,
the item tower over the catalogue once per step, the closed-form scorer, nothing projected beforehand, the backward pass
twice the forward pass. The peak is that of a float32 matrix product of 2,048 x 2,048 in this run.
"""

from __future__ import annotations

import argparse
import functools
import time
from collections.abc import Callable

import torch
from tabulate import tabulate
from torch import nn

import main as program
from data.dataloader import edge_batches
from data.structs import Batch
from model.modes.setup import build, prepare
from model.runs.config import Config
from model.runs.streams import torch_generator
from model.training.batches import batch_sampler
from model.training.update import update
from tests.benchmarks import gemm_peak
from tests.benchmarks.literal_step import LiteralStep

STREAMS = ("order", "negatives", "history")
LITERAL_POSITIVES = 16
ADVERSARIES = ("--enable_fairness", "--fairness_sampling", "--adversarial_ramp=0")


def settings(options: argparse.Namespace, *extra: str) -> Config:
    """Make the published MovieLens setting with `extra` flags."""
    words = ["train_step", f"--precision={options.precision}", "--epochs=1", "--device=cpu"]
    if options.dataset_dir:
        words += ["--dataset=ml", f"--dataset_dir={options.dataset_dir}"]
    else:
        words += ["--dataset=synthetic", "--synthetic_users=6040", "--synthetic_items=3883", "--num_negatives=20"]
        words += ["--synthetic_interactions=1000000", "--batch_size=1024"]
    program.FLAGS.unparse_flags()
    for name in program.FLAGS:
        program.FLAGS[name].unparse()
    program.FLAGS([*words, *extra])
    return program.settings_from_flags().config()


def typical(action: Callable, repeats: int) -> float:
    """Measure the median seconds of `action`, after one call to warm up."""
    action()
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        action()
        times.append(time.perf_counter() - started)
    return sorted(times)[len(times) // 2]


def useful_flops(backbone, config: Config) -> float:
    """Count the FLOPs of one step of the plain formulation, forward and backward, without adversaries."""
    batch, length, pairs = config.batch_size, config.sample_size, 1 + config.num_negatives + config.in_batch_negatives

    def products(module: nn.Module) -> int:
        return sum(layer.weight.numel() for layer in module.modules() if isinstance(layer, nn.Linear))

    per_item = products(backbone.item_encoder) + products(backbone.item_tower)
    per_user = products(backbone.user_encoder) + products(backbone.user_tower)
    synthesis, width = backbone.synthesis, backbone.item_encoder.width
    if config.synthesis_type == "attention":
        projection = synthesis.key.out_features
        per_user += products(synthesis.query) + products(synthesis.output)
        per_user += length * (products(synthesis.key) + projection + width)
    elif config.synthesis_type == "gru":
        per_user += length * products(synthesis)
    first, *rest = (layer for layer in backbone.scorer.mlp if isinstance(layer, nn.Linear))
    per_pair = backbone.vector_width + 5 * first.out_features + sum(layer.weight.numel() for layer in rest)
    return 3 * 2 * (backbone.num_items * per_item + batch * per_user + batch * pairs * per_pair)


def stages(backbone, method, sampler, make_batch: Callable[[], Batch], repeats: int) -> dict[str, float]:
    """Measure the median seconds of each part of a step without adversaries."""
    seconds: dict[str, list[float]] = {}

    def step() -> None:
        marks = [time.perf_counter()]

        def mark() -> None:
            marks.append(time.perf_counter())

        batch = make_batch()
        mark()
        items = torch.cat([batch.positives[:, None], batch.negatives], dim=1)
        with torch.autocast("cpu", torch.bfloat16, enabled=method.config.precision == "bf16"):
            context = backbone.prepare(torch.cat([items.flatten(), batch.history.items.flatten()]))
            mark()
            user = backbone.encode_users(context, batch.users, batch.history)
            mark()
            scores = backbone.score(context, user, items)
        loss = method.loss(scores.float())
        mark()
        for optimiser in method.optimisers:
            optimiser.zero_grad(set_to_none=True)
        loss.backward()
        mark()
        for optimiser in method.optimisers:
            optimiser.step()
        mark()
        names = ("sampling", "item tower", "user tower", "scoring", "backward", "optimiser")
        for name, before, after in zip(names, marks, marks[1:], strict=False):
            seconds.setdefault(name, []).append(after - before)

    for _ in range(repeats + 1):
        step()
    return {name: sorted(values[1:])[repeats // 2] for name, values in seconds.items()}


def measure(options: argparse.Namespace, synthesis: str) -> dict:
    """Measure steps of one synthesis type, with and without adversaries, and the literal step."""
    row: dict = {"synthesis": synthesis}
    for adversaries in (False, True):
        config = settings(options, f"--synthesis_type={synthesis}", *(ADVERSARIES if adversaries else ()))
        run = prepare(config)
        backbone, method = build(run)
        phase = run.protocol.phases[0]
        sampler = batch_sampler(run, phase, backbone, method)
        method.begin_phase(phase, 1000)
        generators = {name: torch_generator(0) for name in STREAMS}
        batches = edge_batches(len(sampler.user), config.batch_size, generators["order"])

        def make_batch(sampler=sampler, batches=batches, generators=generators) -> Batch:
            return sampler.sample(next(batches), generators["negatives"], generators["history"])

        def step(method=method, make_batch=make_batch) -> None:
            method.train_step(make_batch(), "method", "train", update)

        if adversaries:
            row["with adversaries"] = typical(step, options.steps)
            continue
        row["step"] = typical(step, options.steps)
        row["peak"] = gemm_peak()
        row["flops"] = useful_flops(backbone, config)
        row["stages"] = stages(backbone, method, sampler, make_batch, options.steps)
        literal = LiteralStep(backbone, phase.split, config)
        edges = next(batches)[:LITERAL_POSITIVES]
        row["difference"] = compare(method, literal, sampler.sample(edges, *(torch_generator(1) for _ in range(2))))
        row["literal"] = typical(functools.partial(literal.train, sampler, edges), 3) / len(edges)
    row["batch"] = config.batch_size
    return row


def compare(method, literal: LiteralStep, batch: Batch) -> float:
    """Compute the largest difference between both forms' scores of one batch, in standard deviations of the scores."""
    with torch.no_grad():
        ours = method.forward(batch).scores
        theirs = literal.scores(batch.users, torch.cat([batch.positives[:, None], batch.negatives], 1), batch.history)
    return float((ours - theirs).abs().max() / theirs.std())


def main() -> None:
    """Print one table of stages and one of totals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset_dir")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--steps", type=int, default=15)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [measure(options, synthesis) for synthesis in ("mean", "attention", "gru")]
    print(f"\n{options.threads} threads, {options.precision}; medians of {options.steps} steps of {rows[0]['batch']:,}")
    shares = [[row["synthesis"], *row["stages"].values()] for row in rows]
    shown = [[f"{1e3 * value:.1f}" if isinstance(value, float) else value for value in row] for row in shares]
    print(tabulate(shown, ["milliseconds", *rows[0]["stages"]], disable_numparse=True) + "\n")
    totals = [
        [
            row["synthesis"],
            f"{1e3 * row['step']:.1f}",
            f"{1e3 * row['with adversaries']:.1f}",
            f"{1e6 * row['step'] / row['batch']:.0f}",
            f"{row['flops'] / 1e9:.1f}",
            f"{row['peak'] / 1e9:.0f}",
            f"{row['flops'] / row['step'] / row['peak']:.0%}",
            f"{row['stages']['sampling'] / row['step']:.1%}",
            f"{1e3 * row['literal']:.1f}",
            f"{row['literal'] / (row['step'] / row['batch']):.0f}",
            f"{row['difference']:.0e}",
        ]
        for row in rows
    ]
    header = ["", "step ms", "with adversaries", "µs / positive", "useful GFLOP", "peak GFLOP/s", "utilisation"]
    header += ["sampling", "literal ms / positive", "times as fast", "score difference"]
    print(tabulate(totals, header, disable_numparse=True))


if __name__ == "__main__":
    main()
