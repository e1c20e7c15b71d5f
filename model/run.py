"""Set a run up: data, protocol, groups, samplers, backbone and method; say what it is, costs and gives."""

from __future__ import annotations

import dataclasses
import itertools
import os
import platform
import resource
import shlex
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.dataloader import BatchSampler, HistorySampler, NegativeSampler
from data.datareader import READERS
from data.options import ReadOptions, SyntheticOptions
from data.protocols import PROTOCOLS, Phase, Protocol, ProtocolOptions
from data.structs import Group, InteractionData, ItemLists, Ranking
from fairness_utils import DIRECTIONS
from model import BACKBONES, METHODS, preset
from model.config import Config, stream_seeds, torch_generator
from model.distributed import ALONE, Processes
from model.evaluation import Evaluator
from model.methods.base import Environment, Method, Schedule
from model.metrics import evaluate
from model.pages import run_sections, typed_command, write_page
from model.pictures import draw_run
from model.probe import held_out_users
from model.report import (
    Table,
    recommendation_frame,
    result_table,
    result_tables,
    write_frame,
    write_json,
    write_per_user,
)
from model.training import Progress, update


@dataclasses.dataclass
class Run:
    """What every part of a run needs: settings, data, protocol, reported groups, probe users, seeds, device, and
    which of the processes that share the work this is."""

    config: Config
    data: InteractionData
    protocol: Protocol
    groups: dict[str, Group]
    held_out: np.ndarray
    seeds: dict[str, int]
    device: torch.device
    processes: Processes = ALONE

    @property
    def fingerprint(self) -> str:
        """What the data of all phases hash to."""
        return " ".join(phase.split.fingerprint() for phase in self.protocol.phases)

    def data_lines(self) -> list[str]:
        """What was read, who is in which group, and what is asked: one finding a line."""
        data = self.data
        lines = [f"{data.name}: {data.num_users:,} users, {data.num_items:,} items, {len(data.user_id):,} interactions"]
        lines += [f"  {line}" for line in data.report.lines()]
        for group in self.groups.values():
            counts = zip(group.labels, group.counts(), strict=True)
            members = ", ".join(f"{label} {count:,}" for label, count in counts)
            lines.append(f"  {group.name}: {members}, unknown {(group.codes < 0).sum():,}")
        lines.append(f"protocol: {self.protocol.description}")
        for phase in self.protocol.phases:
            split = phase.split
            in_tail = split.item_groups["popularity"].codes == 1
            lines.append(
                f"  {phase.name}: {len(split.train.item):,} train, {len(split.valid.item):,} validation, "
                f"{len(split.test.item):,} test; tail = {in_tail.sum():,} of {split.num_items:,} items "
                f"({100 * split.degree[in_tail].sum() / split.degree.sum():.1f} % of train); fingerprint "
                f"{split.fingerprint()}"
            )
        return lines


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device=cuda: this machine has no CUDA device; use --device=cpu or --device=auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local, count = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if local >= count:
        raise ValueError(f"process {local} of this machine has none of its {count} GPUs; lower --nproc_per_node")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def reported_groups(data: InteractionData, config: Config) -> dict[str, Group]:
    """The user groups that `--user_attribute` names."""
    unknown = [name for name in config.user_attribute if name not in data.user_groups]
    if unknown:
        raise ValueError(f"--user_attribute={','.join(unknown)}: {data.name} has {', '.join(data.user_groups)}")
    return {name: data.user_groups[name] for name in config.user_attribute}


def prepare(config: Config, processes: Processes = ALONE) -> Run:
    """Read the data, apply the protocol and set the probe's users aside."""
    if processes.world > 1 and config.upstream_compat and config.synthesis_type == "gru":
        raise ValueError("--upstream_compat with --synthesis_type=gru draws noise row by row: run it in one process")
    seeds, device = stream_seeds(config.seed), _device(config.device)
    synthetic = SyntheticOptions(config.synthetic_users, config.synthetic_items, config.synthetic_interactions)
    options = ReadOptions(
        dataset_dir=config.dataset_dir,
        title_encoder=config.title_encoder,
        cache_dir=config.cache_dir,
        max_bad_rows=config.max_bad_rows,
        keep_incomplete_users=config.keep_incomplete_users,
        seed=config.seed,
        synthetic=synthetic,
    )
    data = READERS[config.dataset](options)
    groups = reported_groups(data, config)
    if max(config.eval_k) > data.num_items:
        raise ValueError(
            f"--eval_k={','.join(map(str, config.eval_k))}: a list cannot be longer than the catalogue of {data.name}, "
            f"{data.num_items} items; lower --eval_k"
        )
    if config.rerank_fair and config.rerank_pool < config.eval_k[0]:
        raise ValueError(
            f"--rerank_pool={config.rerank_pool}: re-ranking fills lists of K = {config.eval_k[0]} (the first of "
            "--eval_k) from the pool; raise it to at least K, or lower --eval_k"
        )
    protocol = PROTOCOLS[config.protocol](
        data,
        ProtocolOptions(
            warm_threshold=config.warm_threshold,
            ks=config.eval_k,
            epochs=config.epochs,
            every=config.eval_every,
            patience=config.patience,
            eval_negatives=config.eval_negatives,
            keep_valid_candidates=config.upstream_compat,
        ),
        np.random.default_rng(seeds["split"]),
    )
    if not any(len(task.relevant.item) for phase in protocol.phases for task in phase.tests):
        raise ValueError(
            f"--protocol={config.protocol} finds no test item in {data.name}: leave-one-out needs users with three "
            "interactions, one each to train, validate and test; use more data"
        )
    held_out = held_out_users(groups[config.attribute].codes, seed=seeds["probe"])
    return Run(config, data, protocol, groups, held_out, seeds, device, processes)


def describe(run: Run, trains: bool = True) -> None:
    """Print what was read, who is in which group and, of a run that `trains`, the settings that presets filled in."""
    config = run.config
    print("\n".join(run.data_lines()))
    if not trains:
        return
    names = [*sorted(preset(config.dataset, config.recipe)), "synthesis_type", "sample_size", "mask_sensitive_feature"]
    print("settings: " + ", ".join(f"{name}={_shown(getattr(config, name))}" for name in names))


def _shown(value) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def build(run: Run) -> tuple[torch.nn.Module, Method]:
    """Make the backbone and the method that trains it."""
    backbone = BACKBONES[run.config.backbone](run.data, run.config, run.seeds["initialisation"], run.device)
    backbone.begin_phase(run.protocol.phases[0].split)
    environment = Environment(run.config, run.groups, run.held_out, run.seeds, run.device, run.processes)
    return backbone, METHODS[run.config.method](backbone, environment)


def batch_sampler(run: Run, phase: Phase, backbone: torch.nn.Module, method: Method) -> BatchSampler:
    """Make the sampler of a phase's batches."""
    config, split = run.config, phase.split
    known: ItemLists = split.train.merge(split.valid) if config.upstream_compat else split.train
    negatives = NegativeSampler(known, split.num_items, config.num_negatives, config.in_batch_negatives, run.device)
    history = None
    if backbone.history_kind is not None:
        weights = method.history_weights(split.histories, split)
        history = HistorySampler(
            split.histories, weights, config.sample_size, run.device, with_replacement=config.upstream_compat
        )
    # upstream leaves the target in its history where there are no times (BookCrossing)
    exclude_target = not (config.upstream_compat and split.train.time is None)
    return BatchSampler(split.train, negatives, history, exclude_target, config.upstream_compat)


def estimate(run: Run, backbone, method: Method, evaluator: Evaluator) -> None:
    """Print what a run would do and cost, from a few timed steps whose weights are thrown away."""
    parameters = sum(parameter.numel() for parameter in backbone.parameters())
    print(f"parameters: {parameters:,}")
    for phase in run.protocol.phases:
        sampler = batch_sampler(run, phase, backbone, method)
        method.begin_phase(phase, planned_steps(phase, sampler, method))
        for stage in method.stages():
            schedule = method.schedule(stage, phase)
            if not method.passes(stage):
                print(f"{phase.name}, {stage}: fitted at once, without steps to time")
                continue
            step, steps = _timed_step(run, sampler, method, stage, schedule), sampler.steps(schedule.batch_size)
            started = time.perf_counter()
            ask_validation(run, phase, method, evaluator)
            ranking = time.perf_counter() - started
            epoch = step * steps + ranking / schedule.every
            name = phase.name if len(method.stages()) == 1 else f"{phase.name}, {stage}"
            print(
                f"{name}: {steps:,} steps an epoch at {step:.3f} s, ranking {ranking:.1f} s: about {epoch:.0f} s an "
                f"epoch, at most {schedule.epochs} epochs = {epoch * schedule.epochs / 3600:.2f} h"
            )


def _timed_step(run: Run, sampler: BatchSampler, method: Method, stage: str, schedule: Schedule) -> float:
    """Seconds that one step of every pass of `stage` takes together; the weights are spoilt."""
    generators = {name: torch_generator(0, run.device) for name in ("order", "negatives", "history")}
    method.begin_epoch(stage, 1)
    times = []
    for edges in itertools.islice(sampler.batches(schedule.batch_size, generators["order"]), 5):
        started = time.perf_counter()
        rows = sampler.sample(edges, generators["negatives"], generators["history"])
        for name in method.passes(stage):
            method.train_step(rows, stage, name, partial(update, processes=run.processes))
        times.append(time.perf_counter() - started)
    return min(times)


def planned_steps(phase: Phase, sampler: BatchSampler, method: Method) -> int:
    """Most steps that a pass over the batches takes in all epochs of all stages of `phase`."""
    schedules = [method.schedule(stage, phase) for stage in method.stages()]
    return sum(sampler.steps(schedule.batch_size) * schedule.epochs for schedule in schedules)


def ask_validation(run: Run, phase: Phase, method: Method, evaluator: Evaluator) -> dict[str, float]:
    """Metrics of the validation task; under several controls, each one's with its name in front, and their means."""
    split, protocol, controls = phase.split, run.protocol, method.selection_controls()
    summaries = {}
    for control in controls:
        ranking = evaluator.rank(phase.valid, split.histories, split, max(protocol.ks), control)
        if ranking is not None:
            summaries[control] = evaluate(ranking, split, run.groups, protocol.ks, protocol.metrics).summary
    if len(controls) > 1 and summaries:
        means = {key: float(np.mean([own[key] for own in summaries.values()])) for key in summaries[controls[0]]}
        named = {f"{control}/{key}": value for control, own in summaries.items() for key, value in own.items()}
        return run.processes.from_first(named | means)
    return run.processes.from_first(next(iter(summaries.values()), None))


def ask_tests(run: Run, phase: Phase, method: Method, evaluator: Evaluator):
    """Ask each test task once under each control: metrics by key, rankings by name, per-user values.

    Of many processes the first gets them, the others nothing.
    """
    config, split = run.config, phase.split
    top = max(*run.protocol.ks, config.rerank_pool if config.rerank_fair else 1)
    results, rankings, per_user = {}, {}, {}

    def add(prefix: str, ranking: Ranking | None) -> None:
        if ranking is None:
            return
        outcome = evaluate(ranking, split, run.groups, run.protocol.ks, run.protocol.metrics)
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
            if ranking is None:
                continue
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


def origin_of(config: Config, metric: str, epoch: int, validation: float) -> dict[str, Any]:
    """What a trained run's numbers come from: method, seed, and the epoch that `metric` selected on validation."""
    origin = {"method": config.method, "seed": config.seed, "epoch": epoch}
    return origin | {"selected_by": metric, "validation": validation}


def write_results(
    run: Run,
    directory: Path,
    progress: Progress,
    origin: Mapping[str, Any],
    rankings: Mapping[str, Ranking],
    per_user: Mapping[str, np.ndarray],
    evaluator: Evaluator | None = None,
    command: str | None = None,
) -> dict[str, Path]:
    """Write every result file and print the table of `progress.results`; give pictures and report by name.

    `origin` says what was judged (`origin_of`; epoch is None where this program trained nothing), `evaluator` holds the
    selected weights, where there are any, `command` is what the report says was called (default: this program's
    arguments). `result.json` comes last: a folder that holds it is a finished run's.
    """
    config, data, commit = run.config, run.data, _commit()
    ranking = rankings["test/reranked" if config.rerank_fair else "test"]
    k = config.eval_k[0]
    originals = data.original_user_ids, data.original_item_ids
    write_per_user(directory / "per_user.parquet", ranking.users, originals[0], per_user, run.groups)
    lists = recommendation_frame(ranking, *originals, data.item_titles, k)
    write_frame(directory / "recommendations.parquet", lists)
    pictures = draw_run(run, directory, progress, origin, rankings, per_user, evaluator)
    header = _header(run, directory, len(progress.rows), origin)
    write_page(
        directory / "report.html",
        f"{config.run_name}: {origin['method']} on {data.name}",
        typed_command() if command is None else command,
        run_sections(
            run,
            header | {"commit": commit or "unknown"},
            tables_of(run, progress.results),
            list(pictures.values()),
            progress.rows,
            trained=origin["epoch"] is not None,
        ),
    )
    progress.spend("write")
    _write_cost(run, directory, progress)
    write_json(
        directory / "result.json",
        {
            "dataset": data.name,
            "protocol": run.protocol.name,
            "description": run.protocol.description,
            "fingerprint": run.protocol.phases[-1].split.fingerprint(),
            "commit": commit,
            **origin,
            "metrics": progress.results,
        },
    )
    labels = {name: group.labels for name, group in run.groups.items()}
    print("\n" + result_table(progress.results, header, labels, k, DIRECTIONS), flush=True)
    return {name: picture.paths[0] for name, picture in pictures.items()} | {"report": directory / "report.html"}


def tables_of(run: Run, results: Mapping[str, float]) -> list[Table]:
    """The tables of a run's `results` at its first K."""
    labels = {name: group.labels for name, group in run.groups.items()}
    return result_tables(results, labels, run.config.eval_k[0], DIRECTIONS)


def _write_cost(run: Run, directory: Path, progress: Progress) -> None:
    write_json(
        directory / "cost.json",
        {
            "seconds": {**progress.seconds, "total": sum(progress.seconds.values())},
            "epochs": len(progress.rows),
            "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "finished": datetime.now().isoformat(timespec="seconds"),
            "directory": str(directory),
            "command": shlex.join(sys.argv),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "device": str(run.device),
            "threads": torch.get_num_threads(),
        },
    )


def _header(run: Run, directory: Path, epochs: int, origin: Mapping[str, Any]) -> dict[str, str]:
    config, data, method = run.config, run.data, origin["method"]
    header = {"data set": f"{data.name}, {data.num_users:,} users, {data.num_items:,} items"}
    if origin["epoch"] is not None:
        method += f" on {config.backbone} ({config.synthesis_type}), seed {origin['seed']}"
    header |= {"method": method, "protocol": run.protocol.description}
    if origin["epoch"] is not None:
        trained = f" of {epochs}" if epochs else ""
        header["epoch"] = (
            f"{origin['epoch']}{trained} (best validation {origin['selected_by']}, {origin['validation']:.4f})"
        )
    header["sampled"] = f"{config.eval_negatives:,} candidates" if config.eval_negatives else "no: full ranking"
    return header | {"files": str(directory)}
