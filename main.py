"""Train and evaluate FA-BUHS and its baselines.

    python main.py --dataset=synthetic --enable_fairness=True --fairness_sampling=True
    python main.py --dataset=ml --enable_fairness=False --synthesis_type=gru --epochs=50
    python main.py --dataset=ml --enable_fairness=True --rerank_fair=True --rerank_alpha=0.2 --exposure_floor=0.1

`python main.py --help` lists every flag. Raw files -> InteractionData -> protocol's phases -> batches -> backbone and
method -> ranking -> metrics -> report.
"""

from __future__ import annotations

import dataclasses
import math
import platform
import resource
import subprocess
import sys
import textwrap
import time
import traceback
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import torch
from absl import app, flags, logging
from tqdm import tqdm

from data.dataloader import BatchSampler, edge_batches
from data.datareader import READERS
from data.protocols import PROTOCOLS, Phase
from data.structs import Ranking
from fairness_utils import DIRECTIONS, exposure, position_weights
from model import BACKBONES, METHODS, preset
from model.config import Config, torch_generator
from model.evaluation import Evaluator
from model.layers import SCORERS
from model.losses import LOSSES
from model.methods.base import Method
from model.metrics import evaluate
from model.plots import exposure_lorenz, training_curves
from model.report import (
    append_jsonl,
    reserve_run_dir,
    result_table,
    write_json,
    write_per_user,
    write_recommendations,
)
from model.run import Run, batch_sampler, build, describe, estimate, prepare
from model.synthesis import SYNTHESIZERS
from model.tracking import Tracker
from model.training import Selection, save_checkpoint, update


def _define_choice(
    name: str, default: str | None, registry: Mapping, meaning: str, extra: tuple[str, ...] = ()
) -> None:
    """Define a flag whose choices are the keys of `registry` at the time of parsing."""

    def check(value: str | None) -> bool:
        allowed = [*registry, *extra]
        if value not in allowed and value is not None:
            raise flags.ValidationError(f"--{name}={value}: allowed is one of {', '.join(allowed)}")
        return True

    flags.DEFINE_string(name, default, f"<{'|'.join([*registry, *extra])}>: {meaning}")
    flags.register_validator(name, check)


# fmt: off
# --- Data ---
_define_choice("dataset", "ml", READERS, "Data set: ml = MovieLens-1M, bx = BookCrossing, synthetic = generated.")
flags.DEFINE_string("dataset_dir", "./datasets", "Folder that holds the data sets' folders (datasets/README.md shows the trees).")
flags.DEFINE_string("cache_dir", "~/.cache/fabuhs", "Folder for title vectors that are reused between runs.")
flags.DEFINE_string("title_encoder", None, "Encoder of item titles: a sentence-transformers name, a local model folder, or 'hash' (deterministic stand-in). None: preset.")
flags.DEFINE_float("max_bad_rows", 0.001, "Largest fraction of malformed rows of a file, in [0, 1]; above it the run stops.", 0, 1)
flags.DEFINE_bool("keep_incomplete_users", False, "BookCrossing: keep users with a missing age or country, as unknown.")
flags.DEFINE_list("user_attribute", None, "Sensitive attributes, comma-separated: the first is acted on, all are reported. ml: gender, age, occupation; bx: age, country. None: preset.")
flags.DEFINE_integer("synthetic_users", 600, "Synthetic data: number of users, >= 10.", 10)
flags.DEFINE_integer("synthetic_items", 400, "Synthetic data: number of items, >= 10.", 10)
flags.DEFINE_integer("synthetic_interactions", 24_000, "Synthetic data: number of interactions, >= 100.", 100)

# --- Model and history synthesis ---
_define_choice("backbone", "sparsenn", BACKBONES, "Recommender.")
_define_choice("synthesis_type", "mean", SYNTHESIZERS, "User history synthesis; none = two-tower base model without a history.", ("none",))
flags.DEFINE_integer("sample_size", 15, "Synthesis horizon N: items drawn from the user's history, >= 1.", 1)
flags.DEFINE_integer("attention_heads", 1, "Heads of --synthesis_type=attention; must divide the width 96.", 1)
_define_choice("scorer", "dot_compress", SCORERS, "How a user and an item vector are scored.")
flags.DEFINE_list("user_hidden", None, "Hidden widths of the user tower, comma-separated. None: preset.")
flags.DEFINE_list("item_hidden", None, "Hidden widths of the item tower, comma-separated. None: preset.")
flags.DEFINE_float("sampling_softmax_temp", None, "Temperature T of the tail-biased draw p(i|u) ~ exp((1/d_i)/T), > 0; inf = uniform. None: preset.", 0)
flags.DEFINE_bool("upstream_compat", False, "Restore upstream's estimator: a history per scored row, BookCrossing target left in, repeats, random GRU state, validation item a test candidate.")

# --- Fairness ---
flags.DEFINE_bool("enable_fairness", False, "Enable the fairness framework.")
_define_choice("fairness_method", "fabuhs", METHODS, "Fairness method, read with --enable_fairness.")
flags.DEFINE_multi_string("method_option", [], "name=value option of the fairness method; may be repeated.")
flags.DEFINE_bool("fairness_sampling", False, "Enable upstream fairness-constrained sampling.")
flags.DEFINE_float("fairness_weight", 0.5, "Interpolation alpha in [0, 1]: 1 = catalogue parity (BUHS), 0 = group parity.", 0, 1)
flags.DEFINE_float("adversarial_lambda_user", 0.1, "Weight of the user-side conditional adversary, >= 0.", 0)
flags.DEFINE_float("adversarial_lambda_item", 0.1, "Weight of the item-side conditional adversary, >= 0.", 0)
flags.DEFINE_float("adversarial_ramp", 0.1, "Fraction of the planned steps over which both weights rise from 0, in [0, 1].", 0, 1)
flags.DEFINE_enum("item_adversary", "popularity", ["popularity", "user_attribute"], "What the item-side adversary predicts: head/tail, or the user's attribute.")
flags.DEFINE_enum("adversary_input", "user", ["user", "pair"], "What the user-side adversary reads: the user vector, or also its product with the item vector.")
flags.DEFINE_bool("mask_sensitive_feature", None, "Leave the sensitive attribute out of the user tower's inputs. None: on with --enable_fairness.")

# --- Re-ranking ---
flags.DEFINE_bool("rerank_fair", False, "Re-rank by exposure after training.")
flags.DEFINE_float("rerank_alpha", 0.2, "Weight of the exposure deficit against relevance, in [0, 1].", 0, 1)
flags.DEFINE_float("exposure_floor", 0.1, "Guaranteed share of discounted exposure for tail items in each list, in [0, 1].", 0, 1)
flags.DEFINE_integer("rerank_pool", 100, "Candidates per user that re-ranking may use, >= 1.", 1)
flags.DEFINE_enum("rerank_target", "catalogue", ["catalogue", "train"], "Target exposure of a group: its share of the catalogue, or of train interactions.")

# --- Optimisation ---
flags.DEFINE_integer("epochs", None, "Largest number of epochs, >= 1. None: preset.", 1)
flags.DEFINE_integer("batch_size", None, "Positives per step, >= 2. None: preset.", 2)
flags.DEFINE_float("lr", None, "Learning rate of Adam, > 0. None: preset.", 0)
flags.DEFINE_integer("num_negatives", None, "Uniform negatives per positive, >= 1. None: preset.", 1)
flags.DEFINE_integer("in_batch_negatives", None, "Other positives of the batch as further negatives per positive, >= 0. None: as many as --num_negatives.", 0)
_define_choice("loss", None, LOSSES, "Ranking loss of a positive against its negatives. None: preset.")
flags.DEFINE_integer("patience", None, "Epochs without a better validation score before stopping, >= 1. None: preset.", 1)
flags.DEFINE_enum("device", "auto", ["auto", "cpu", "cuda"], "Where to compute; cuda without a GPU is an error.")
flags.DEFINE_enum("precision", "fp32", ["fp32", "bf16"], "Arithmetic of the training step's matrix products; evaluation is always fp32.")

# --- Evaluation ---
_define_choice("protocol", "loo", PROTOCOLS, "Evaluation protocol.")
flags.DEFINE_float("warm_threshold", None, "Share of items, the most popular ones, that count as head, in (0, 1). None: preset.", 0, 1)
flags.DEFINE_list("eval_k", None, "List lengths K, comma-separated; the first selects the epoch and fills the table. None: preset.")
flags.DEFINE_integer("eval_every", None, "Epochs between validations, >= 1; the last epoch always has one. None: preset.", 1)
flags.DEFINE_integer("eval_history_draws", 1, "Histories per user whose vectors are averaged in evaluation, >= 1.", 1)
flags.DEFINE_integer("eval_negatives", None, "Rank against this many sampled items instead of the full catalogue, >= 1.", 1)
flags.DEFINE_integer("eval_block_mb", 256, "Memory for a block of scores, in MiB, >= 1.", 1)

# --- Run ---
flags.DEFINE_integer("seed", 0, "Seed of every random stream, >= 0.", 0)
flags.DEFINE_string("output_dir", "./runs", "Folder for run folders.")
flags.DEFINE_string("run_name", None, "Name of the run's folder. None: made of data set, method, seed and time.")
flags.DEFINE_enum("wandb_mode", "disabled", ["disabled", "offline", "online"], "Weights & Biases tracking.")
flags.DEFINE_string("wandb_project", "fabuhs", "Weights & Biases project.")
flags.DEFINE_bool("dry_run", False, "Print phases, sizes, parameters and a time estimate; train and write nothing.")
# fmt: on

FLAGS = flags.FLAGS

_REPEATED = ";\n"  # absl adds a line to the help of a flag that may be repeated

# The first flag of each group above, for --help.
GROUPS = {
    "dataset": "Data",
    "backbone": "Model and history synthesis",
    "enable_fairness": "Fairness",
    "rerank_fair": "Re-ranking",
    "epochs": "Optimisation",
    "protocol": "Evaluation",
    "seed": "Run",
}

# A flag that the user sets but that nothing would read is an error: flag -> (flag that must be on, its value).
REQUIRES = {
    "fairness_method": ("enable_fairness", True),
    "method_option": ("enable_fairness", True),
    "fairness_sampling": ("enable_fairness", True),
    "adversarial_lambda_user": ("enable_fairness", True),
    "adversarial_lambda_item": ("enable_fairness", True),
    "adversarial_ramp": ("enable_fairness", True),
    "item_adversary": ("enable_fairness", True),
    "adversary_input": ("enable_fairness", True),
    "rerank_fair": ("enable_fairness", True),
    "fairness_weight": ("fairness_sampling", True),
    "rerank_alpha": ("rerank_fair", True),
    "exposure_floor": ("rerank_fair", True),
    "rerank_pool": ("rerank_fair", True),
    "rerank_target": ("rerank_fair", True),
    "attention_heads": ("synthesis_type", "attention"),
    "keep_incomplete_users": ("dataset", "bx"),
    "synthetic_users": ("dataset", "synthetic"),
    "synthetic_items": ("dataset", "synthetic"),
    "synthetic_interactions": ("dataset", "synthetic"),
}


def _check_combinations() -> None:
    """Refuse flags that were set away from their default while nothing reads them, and values out of reach."""
    for name, (needed, value) in REQUIRES.items():
        flag = FLAGS[name]
        if flag.value != flag.default and FLAGS[needed].value != value:
            raise ValueError(
                f"--{name}={flag.value} has no effect without --{needed}={value}; set both, or leave --{name} out"
            )
    if FLAGS.synthesis_type == "none" and (FLAGS.user_hidden or FLAGS.item_hidden):
        raise ValueError("--user_hidden and --item_hidden have no effect with --synthesis_type=none; leave them out")
    if 96 % FLAGS.attention_heads:
        raise ValueError(f"--attention_heads={FLAGS.attention_heads} does not divide the width 96; use a divisor of it")


def _integers(name: str, value) -> tuple[int, ...]:
    try:
        numbers = tuple(int(part) for part in value)
    except ValueError as error:
        raise ValueError(f"--{name}={','.join(value)}: allowed are whole numbers, comma-separated") from error
    if not numbers or min(numbers) < 1:
        raise ValueError(f"--{name}={','.join(map(str, value))}: every number must be at least 1")
    return numbers


def config_from_flags() -> Config:
    """Fill presets into the flags that were left open and check what belongs together."""
    _check_combinations()
    defaults = preset(FLAGS.dataset)
    values = {field.name: FLAGS[field.name].value for field in dataclasses.fields(Config)}
    values |= {name: defaults[name] for name, value in values.items() if value is None and name in defaults}
    for name in ("eval_k", "user_hidden", "item_hidden"):
        values[name] = _integers(name, values[name])
    for name in ("dataset_dir", "cache_dir", "output_dir"):
        values[name] = Path(values[name]).expanduser()
    for name in ("lr", "sampling_softmax_temp", "warm_threshold"):
        if not values[name] > 0:
            raise ValueError(f"--{name}={values[name]} must be above 0")
    values["user_attribute"] = tuple(values["user_attribute"])
    values["method_option"] = tuple(values["method_option"])
    if values["in_batch_negatives"] is None:
        values["in_batch_negatives"] = values["num_negatives"]
    if values["mask_sensitive_feature"] is None:  # Decision 17
        values["mask_sensitive_feature"] = values["enable_fairness"]
    if values["run_name"] is None:
        method = values["fairness_method"] if values["enable_fairness"] else "none"
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        values["run_name"] = f"{values['dataset']}-{method}-{values['synthesis_type']}-seed{values['seed']}-{stamp}"
    return Config(**values)


def train_epoch(run: Run, sampler: BatchSampler, method: Method, stage: str, generators: dict, label: str) -> dict:
    """Run every pass of one epoch; give the mean of each value that the steps report."""
    config, totals, count = run.config, {}, 0
    for name in method.passes(stage):
        batches = edge_batches(len(sampler.user), config.batch_size, generators["order"])
        steps = math.ceil(len(sampler.user) / config.batch_size)
        for edges in tqdm(batches, total=steps, desc=label, unit="batch", leave=False, disable=None):
            batch = sampler.sample(edges, generators["negatives"], generators["history"])
            values = method.train_step(batch, stage, name, update)
            for key, value in values.items():
                totals[key] = totals.get(key, 0.0) + value.double() * len(edges)
            count += len(edges)
    means = {key: float(value) / count for key, value in totals.items()}
    bad = [key for key, value in means.items() if not math.isfinite(value)]
    if bad:
        raise ValueError(f"{label}: {bad} is not finite; lower --lr or the adversarial weights")
    return means


def train_phase(run: Run, phase: Phase, backbone, method: Method, evaluator: Evaluator, directory: Path, tracker):
    """Train a phase with selection on validation (Decision 1); the selected weights are in place when it ends."""
    generators = {name: torch_generator(run.seeds[name], run.device) for name in ("order", "negatives", "history")}
    sampler = batch_sampler(run, phase, backbone, method)
    steps = math.ceil(len(sampler.user) / run.config.batch_size)
    method.begin_phase(phase, steps * phase.epochs)
    rows = []
    for stage in method.stages():
        selection = Selection(phase.patience)
        for epoch in range(1, phase.epochs + 1):
            started = time.perf_counter()
            means = train_epoch(run, sampler, method, stage, generators, f"epoch {epoch}")
            trained = time.perf_counter()
            row = {"phase": phase.name, "stage": stage, "epoch": epoch}
            row |= {f"train/{key}": mean for key, mean in means.items()}
            shown, best = ", ".join(f"{key} {mean:.4f}" for key, mean in means.items()), False
            if epoch % phase.every == 0 or epoch == phase.epochs:
                valid = evaluator.rank(phase.valid, phase.split.histories, phase.split, max(run.protocol.ks))
                summary = evaluate(valid, phase.split, run.groups, run.protocol.ks).summary
                best = selection.offer(epoch, summary[phase.metric], backbone, method)
                row |= {f"valid/{key}": metric for key, metric in summary.items()}
                shown += f"; validation {phase.metric} {summary[phase.metric]:.4f}{' *' if best else ''}"
            rows.append(row)
            append_jsonl(directory / "metrics.jsonl", row)
            tracker.log(row, epoch)
            ranked = time.perf_counter()
            print(
                f"epoch {epoch}/{phase.epochs}: {shown} [{trained - started:.1f} s + {ranked - trained:.1f} s]",
                flush=True,
            )
            if best:
                save_checkpoint(directory / "checkpoint.pt", run.config, phase.split.fingerprint(), selection)
            if selection.exhausted(epoch):
                print(f"no better validation {phase.metric} for {phase.patience} epochs: stopped")
                break
        if not selection.weights:
            raise ValueError(f"validation {phase.metric} was never defined; the validation split may be empty")
        selection.restore(backbone, method)
    return selection, rows


def test_phase(run: Run, phase: Phase, method: Method, evaluator: Evaluator):
    """Ask each test task once under each control: metrics by key, rankings by name, per-user values."""
    config, split = run.config, phase.split
    top = max(*run.protocol.ks, config.rerank_pool if config.rerank_fair else 1)
    results, rankings, per_user = {}, {}, {}

    def add(prefix: str, ranking: Ranking) -> None:
        outcome = evaluate(ranking, split, run.groups, run.protocol.ks)
        results.update({f"{prefix}/{key}": value for key, value in outcome.summary.items()})
        per_user.update({f"{prefix}/{key}": value for key, value in outcome.per_user.items()})
        rankings[prefix] = ranking

    for task in phase.tests:
        level = "" if len(phase.tests) == 1 else f"/{task.name}"
        for name, ranking in evaluator.yardsticks(task, split, top).items():
            add(f"reference/{name}{level}", ranking)
        for control in method.controls():
            prefix = f"test{level}" + (f"/{control}" if control else "")
            ranking = evaluator.rank(task, split.test_histories, split, top, control, progress="test")
            add(prefix, ranking)
            if config.rerank_fair:
                reranked, infeasible = evaluator.rerank(ranking, split)
                add(f"{prefix}/reranked", reranked)
                results[f"{prefix}/reranked/infeasible_users"] = infeasible
            leakage = evaluator.leakage(split, run.groups, run.held_out, control)
            results.update({f"{prefix}/{key}": value for key, value in leakage.items()})
    return results, rankings, per_user


def _commit() -> str | None:
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None  # an unpacked archive without git has no commit to name


def write_results(run: Run, directory: Path, selection: Selection, rows, results, rankings, per_user) -> dict:
    """Write every result file of a finished run; give the plots by name."""
    config, data, split = run.config, run.data, run.protocol.phases[-1].split
    write_json(
        directory / "result.json",
        {
            "dataset": data.name,
            "protocol": run.protocol.name,
            "description": run.protocol.description,
            "fingerprint": split.fingerprint(),
            "method": config.method,
            "seed": config.seed,
            "commit": _commit(),
            "epoch": selection.epoch,
            "validation": selection.value,
            "metrics": results,
        },
    )
    ranking = rankings["test/reranked" if config.rerank_fair else "test"]
    k = config.eval_k[0]
    originals = data.original_user_ids, data.original_item_ids
    write_per_user(directory / "per_user.parquet", ranking.users, originals[0], per_user, run.groups)
    write_recommendations(directory / "recommendations.parquet", ranking, *originals, data.item_titles, k)
    weights = position_weights(k)
    names = {"reference/popular": "most popular", "test": "this run", "test/reranked": "re-ranked"}
    exposures = {
        shown: exposure(rankings[name].topk[:, :k], data.num_items, weights)
        for name, shown in names.items()
        if name in rankings
    }
    metric = f"valid/{run.protocol.phases[-1].metric}"
    training_curves(rows, directory / "training", metric=metric, selected_epoch=selection.epoch)
    exposure_lorenz(exposures, directory / "exposure")
    return {name: directory / f"{name}.png" for name in ("training", "exposure")}


def execute(config: Config, started: float) -> dict[str, float]:
    """Do a whole run: train, select on validation, test once, write and print; gives the metrics by key."""
    run = prepare(config)
    describe(run)
    backbone, method = build(run)
    evaluator = Evaluator(backbone, method, config, run.seeds, run.device)
    read_seconds = time.perf_counter() - started
    if config.dry_run:
        estimate(run, backbone, method, evaluator)
        return {}
    directory = reserve_run_dir(config.output_dir, config.run_name)
    write_json(directory / "config.json", config.as_json())
    group = f"{config.dataset}-{config.method}-{config.synthesis_type}"
    tracker = Tracker(config.wandb_mode, config.wandb_project, config.run_name, config.as_json(), directory, group)
    results, rows, seconds = {}, [], {"read": read_seconds, "train": 0.0, "test": 0.0}
    for phase in run.protocol.phases:
        begun = time.perf_counter()
        selection, phase_rows = train_phase(run, phase, backbone, method, evaluator, directory, tracker)
        trained = time.perf_counter()
        phase_results, rankings, per_user = test_phase(run, phase, method, evaluator)
        level = f"/{phase.name}" if len(run.protocol.phases) > 1 else ""
        for key, value in phase_results.items():
            root, _, rest = key.partition("/")
            results[f"{root}{level}/{rest}"] = value
        rows += phase_rows
        seconds["train"] += trained - begun
        seconds["test"] += time.perf_counter() - trained
    images = write_results(run, directory, selection, rows, results, rankings, per_user)
    seconds["total"] = time.perf_counter() - started
    write_json(
        directory / "cost.json",
        {
            "seconds": seconds,
            "epochs": len(rows),
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "finished": datetime.now().isoformat(timespec="seconds"),
            "directory": str(directory),
            "command": " ".join(sys.argv),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "device": str(run.device),
            "threads": torch.get_num_threads(),
        },
    )
    header = {
        "data set": f"{run.data.name}, {run.data.num_users:,} users, {run.data.num_items:,} items",
        "method": f"{config.method} on {config.backbone} ({config.synthesis_type}), seed {config.seed}",
        "protocol": run.protocol.description,
        "epoch": f"{selection.epoch} of {len(rows)} (validation {phase.metric} {selection.value:.4f})",
        "sampled": f"{config.eval_negatives:,} candidates" if config.eval_negatives else "no: full ranking",
        "files": str(directory),
    }
    labels = {name: group.labels for name, group in run.groups.items()}
    print("\n" + result_table(results, header, labels, config.eval_k[0], DIRECTIONS), flush=True)
    tracker.finish(results, images)
    return results


def help_text() -> str:
    """Every flag by group, with its choices, range, unit and default."""
    lines = [__doc__.strip()]
    for field in dataclasses.fields(Config):
        flag = FLAGS[field.name]
        if flag.name in GROUPS:
            lines += ["", f"{GROUPS[flag.name]}:"]
        choices = f"<{'|'.join(flag.enum_values)}>: " if getattr(flag, "enum_values", None) else ""
        default = "" if flag.default in (None, []) else f" (default: {flag.default})"
        text = f"--{flag.name}  {choices}{flag.help.partition(_REPEATED)[0]}{default}"
        lines.append(textwrap.fill(text, 110, initial_indent="  ", subsequent_indent="      "))
    return "\n".join(lines)


def parse(argv: list[str]) -> list[str]:
    """Parse flags; --help prints them by group, and a bad one ends with one line and exit code 2."""
    if {"--help", "-help", "-h"} & set(argv[1:]):
        print(help_text())
        sys.exit(0)
    try:
        return FLAGS(argv)
    except flags.Error as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def main(argv: list[str]) -> None:
    """Run what the flags ask for; a bad request ends with one line and exit code 2."""
    started = time.perf_counter()
    try:
        if len(argv) > 1:
            raise ValueError(f"unexpected arguments {argv[1:]}; every setting is a flag, see --help")
        execute(config_from_flags(), started)
    except (ValueError, OSError) as error:
        logging.debug("%s", traceback.format_exc())
        sys.stdout.flush()
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    app.run(main, flags_parser=parse)
