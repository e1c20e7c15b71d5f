"""Write what a run leaves: lists, per-user values, pictures, report, cost and result."""

from __future__ import annotations

import math
import os
import platform
import resource
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from data.protocols.base import Phase
from data.structs import Ranking
from fairness_utils import DIRECTIONS
from model.evaluation.evaluator import Evaluator
from model.results.pages import run_sections, typed_command, write_page
from model.results.pictures import draw_run
from model.results.side_by_side import (
    LEVELS,
    TestedList,
    is_one,
    label_rows,
    roots_of,
    tables_side_by_side,
    values_by_user,
    with_earlier,
)
from model.results.tables import Table, result_tables, result_text
from model.results.user_tables import recommendation_frame, write_per_user
from model.runs.config import Config, shown_network
from model.runs.files import write_frame, write_json
from model.runs.run import Run
from model.training.progress import Progress


def _commit() -> str | None:
    # GIT_DIR and its like are about another repository
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace", check=True)
        return done.stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None  # an unpacked archive without git has no commit to name


def selected(origin: Mapping[str, Any]) -> str:
    """How the epoch was selected, in words."""
    value = origin["validation"]
    if value is None or math.isnan(value):
        return str(origin["selected_by"])
    return f"best validation {origin['selected_by']}, {value:.4f}"


def origin_of(config: Config, metric: str, epoch: int, validation: float) -> dict[str, Any]:
    """What a trained run's numbers come from: method, seed, and the epoch that `metric` selected on validation."""
    origin = {"method": config.method, "seed": config.seed, "epoch": epoch}
    return origin | {"selected_by": metric, "validation": validation}


def write_lists(
    run: Run,
    directory: Path,
    phase: Phase,
    rankings: Mapping[str, Ranking],
    per_user: Mapping[str, np.ndarray],
) -> None:
    """Write each user's metrics and lists, `per_user.parquet` and `recommendations.parquet`, as `phase` found them.

    Of several phases those before are kept: a run that was cut off in between asks them no more. Lists of several
    phases, tasks and controls are told apart by columns of these names.
    """
    config, data, protocol = run.config, run.data, run.protocol
    originals = data.original_user_ids, data.original_item_ids
    names = [one.name for one in protocol.phases]
    before = set(names[: names.index(phase.name)])
    users, values = values_by_user(rankings, per_user)
    path = directory / "per_user.parquet"
    # a checkpoint that is judged anew has a folder without them
    if before and path.exists():
        users, values = with_earlier(pd.read_parquet(path), users, values, originals[0], before)
    write_per_user(path, users, originals[0], values, run.groups)
    lists = [TestedList.of(root, protocol) for root in rankings if root.partition("/")[0] == "test"]
    lists = [one for one in lists if one.reranked == config.rerank_fair]
    levels = [level for level in LEVELS if any(getattr(one, level) for one in lists)]
    frames = [recommendation_frame(rankings[one.root], *originals, data.item_titles, config.eval_k[0]) for one in lists]
    frames = [label_rows(frame, one, levels) for frame, one in zip(frames, lists, strict=True)] if levels else frames
    path = directory / "recommendations.parquet"
    if before and path.exists():
        old = pd.read_parquet(path)
        frames.insert(0, old[old["phase"].isin(before)])
    write_frame(path, frames[0] if len(frames) == 1 else pd.concat(frames, ignore_index=True))


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
    write_lists(run, directory, run.protocol.phases[-1], rankings, per_user)
    pictures = draw_run(run, directory, progress, origin, rankings, per_user, evaluator)
    header, tables = _header(run, directory, progress.rows, origin), tables_of(run, progress.results)
    roots = roots_of(progress.results, config.eval_k[0])
    write_page(
        directory / "report.html",
        f"{config.run_name}: {origin['method']} on {data.name}",
        typed_command() if command is None else command,
        run_sections(
            run,
            header | {"commit": commit or "unknown"},
            tables,
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
            "fingerprint": run.fingerprint,
            "commit": commit,
            **origin,
            # keys of JSON are sorted; the order of the lists is the method's and the protocol's
            **({} if is_one(roots) else {"lists": roots}),
            "metrics": progress.results,
        },
    )
    print("\n" + result_text(header, tables), flush=True)
    return {name: picture.paths[0] for name, picture in pictures.items()} | {"report": directory / "report.html"}


def tables_of(run: Run, results: Mapping[str, float]) -> list[Table]:
    """The tables of a run's `results` at its first K; of several lists, a line for each."""
    labels, k = {name: group.labels for name, group in run.groups.items()}, run.config.eval_k[0]
    roots = roots_of(results, k)
    if is_one(roots):
        return result_tables(results, labels, k, DIRECTIONS)
    lists = [TestedList.of(root, run.protocol) for root in roots]
    return tables_side_by_side(results, lists, labels, k, DIRECTIONS)


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


def _header(run: Run, directory: Path, rows: Sequence[Mapping], origin: Mapping[str, Any]) -> dict[str, str]:
    config, data, method = run.config, run.data, origin["method"]
    header = {"data set": f"{data.name}, {data.num_users:,} users, {data.num_items:,} items"}
    if origin["epoch"] is not None:
        method += f" on {shown_network(config.backbone, config.synthesis_type)}, seed {origin['seed']}"
    header |= {"method": method, "protocol": run.protocol.description}
    if origin["epoch"] is not None:
        # of the last stage of the last phase
        epochs = f" of {rows[-1]['epoch']}" if rows else ""
        header["epoch"] = f"{origin['epoch']}{epochs} ({selected(origin)})"
    header["sampled"] = f"{config.eval_negatives:,} candidates" if config.eval_negatives else "no: full ranking"
    return header | {"files": str(directory)}
