"""The files of a run: first lists, values per user, cost and result; then pictures, report and console table."""

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

import pandas as pd
import torch

from data.protocols.base import Phase
from model.evaluation.averages import averages_of
from model.evaluation.evaluator import Evaluator
from model.evaluation.keys import ListKey, flat, is_one, list_keys, run_lists
from model.evaluation.questions import Answer
from model.results.cautions import caution_text, cautions_of
from model.results.drawing import attempt
from model.results.hidden import Hidden, as_json, hidden_attributes, hidden_text, masked_attributes
from model.results.levels import levels_of
from model.results.pages import typed_command, write_page
from model.results.period_numbers import Periods
from model.results.phase_tables import tables_over_phases
from model.results.pictures import draw_run
from model.results.run_page import run_sections
from model.results.summary import summary_lines
from model.results.tables import tables_of_one, tables_of_several
from model.results.text_table import Table, result_text
from model.results.user_tables import (
    ITEMS,
    PER_USER,
    item_frame,
    values_by_user,
    with_earlier,
    write_judged,
    write_per_user,
)
from model.runs.config import Config, shown_network
from model.runs.files import write_frame, write_json
from model.runs.run import Run
from model.training.progress import Progress


def program_commit(wait: float = 10.0) -> str | None:
    """Name the commit of the program, where git can tell within `wait` seconds."""
    # GIT_DIR and its like are about another repository
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        options = {"env": environment, "timeout": wait, "stdin": subprocess.DEVNULL}
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=True, **options)
        return done.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None  # an unpacked archive without git has no commit to name


def selected(origin: Mapping[str, Any]) -> str:
    """Say in words how the epoch was selected."""
    value = origin["validation"]
    if value is None or math.isnan(value):
        return str(origin["selected_by"])
    return f"best validation {origin['selected_by']}, {value:.4f}"


def origin_of(config: Config, metric: str, epoch: int, validation: float) -> dict[str, Any]:
    """Give what a trained run's numbers come from: method, seed, and the epoch that `metric` selected on validation."""
    origin = {"method": config.method, "seed": config.seed, "epoch": epoch}
    return origin | {"selected_by": metric, "validation": validation}


def write_lists(run: Run, directory: Path, phase: Phase, answers: Sequence[Answer]) -> None:
    """Write each user's metrics, the lists and ranks of `phase`, and the catalogue (`user_tables` says which file).

    What earlier phases wrote is kept, since a resumed run does not test them again. A phase without `answers` adds
    nothing.
    """
    if not answers:
        return
    data, protocol = run.data, run.protocol
    names = [one.name for one in protocol.phases]
    before = set(names[: names.index(phase.name)])
    users, values = values_by_user(answers)
    path = directory / PER_USER
    # where a checkpoint is tested again, its new folder does not have them
    if before and path.exists():
        frame = pd.read_parquet(path)
        users, values = with_earlier(frame, users, values, data.original_user_ids, before, protocol.many_tasks)
    write_per_user(path, users, data.original_user_ids, values, run.groups)
    write_judged(directory, data, answers, max(protocol.ks), before, protocol.many_tasks)
    write_frame(directory / ITEMS, item_frame(data, [one for one in protocol.phases if one.tests]))


def write_results(
    run: Run,
    directory: Path,
    progress: Progress,
    origin: Mapping[str, Any],
    answers: Sequence[Answer],
    evaluator: Evaluator | None = None,
    command: str | None = None,
    epochs: Sequence[Mapping[str, Any]] = (),
) -> dict[str, Path]:
    """Write every result file and print the table of `progress.results`; give pictures and report by name.

    `origin` says what was judged (`origin_of`; its epoch is None where this program trained nothing), `answers` are
    those of the last phase, `evaluator` holds the selected weights, where there are any, and `command` is what the
    report names as the call (default: this program's arguments). `epochs` are the rows of `metrics.jsonl` of weights
    that were trained before. `result.json` is the last result file: a folder that holds it is that of a finished run.
    Pictures and report come after it, and one that fails costs a warning.
    """
    commit = program_commit()
    is_trained = origin["epoch"] is not None
    cautions = cautions_of(run, progress.results, progress.rows or epochs, answers, is_trained)
    hidden = hidden_attributes(evaluator.method) if evaluator is not None else None
    write_lists(run, directory, run.protocol.phases[-1], answers)
    progress.spend("write")
    _write_cost(run, directory, progress)
    names = run_lists(progress.results)
    write_json(
        directory / "result.json",
        {
            "dataset": run.data.name,
            "protocol": run.protocol.name,
            "description": run.protocol.description,
            "fingerprint": run.fingerprint,
            "users": run.data.num_users,
            "commit": commit,
            **origin,
            **({} if hidden is None else {"hidden_attributes": as_json(hidden)}),
            "warnings": cautions,
            # keys of JSON are sorted; the order of the lists is the method's and the protocol's
            **({} if is_one(names) else {"lists": names}),
            **({"periods": Periods.of(run.protocol).as_json()} if run.protocol.many_phases else {}),
            "metrics": flat(progress.results),
        },
    )
    header, tables = _header(run, directory, progress.rows, origin), tables_of(run, progress.results)
    if hidden is not None:
        masked = masked_attributes(evaluator.method.config)
        header["leakage"] = hidden_text(hidden, masked, run.groups)
    pictures = draw_run(run, directory, progress, origin, answers, evaluator) if run.draws else {}
    page = directory / "report.html"
    sections = run_sections(
        run,
        header | {"commit": commit or "unknown"},
        tables,
        list(pictures.values()),
        progress.rows,
        trained=is_trained,
        summary=summary_of(run, progress.results, hidden, cautions),
        cautions=cautions,
    )
    title = f"{title_of(run, origin)}: {run.config.run_name}"
    with attempt("report.html"):
        write_page(page, title, typed_command() if command is None else command, sections)
    print(
        "\n\n".join(part for part in ("\n" + result_text(header, tables), caution_text(cautions)) if part), flush=True
    )
    made = {name: picture.paths[0] for name, picture in pictures.items()}
    return made | ({"report": page} if page.exists() else {})


def tables_of(run: Run, results: Mapping[str, Mapping[str, float]]) -> list[Table]:
    """Make the tables of a run's `results` at its first K; of several lists, a line for each.

    Where the protocol averages over phases, they are those of the averages, and others over the phases come first.
    """
    labels, k = {name: group.labels for name, group in run.groups.items()}, run.config.eval_k[0]
    lists = _lists(run, results)
    if not lists:
        return []
    if is_one(run_lists(results)):
        return tables_of_one(results, labels, k)
    averages = averages_of(results, run.protocol)
    if not averages:
        return tables_of_several(results, lists, labels, k)
    further, attribute = run.protocol.definitions.further, run.config.attribute
    over_phases = tables_over_phases(results, lists, attribute, labels[attribute], k, further, run.protocol.averages)
    return [*over_phases, *tables_of_several(results, averages, labels, k)]


def summary_of(
    run: Run, results: Mapping[str, Mapping[str, float]], hidden: Hidden | None, cautions: Sequence[str]
) -> list[str]:
    """Say in a few sentences what a run's `results` at its first K are; `hidden`: what each control was to hide."""
    lists = _lists(run, results)
    if not lists:
        return []
    first = next(iter(averages_of(results, run.protocol)), lists[0])
    of_first = None if hidden is None else hidden[first.control]
    levels = levels_of(run.config.method, run_lists(results)).values()
    curve = next((curve for curve in levels if str(first) in curve), None)
    return summary_lines(results, run.groups, run.config.eval_k[0], first, of_first, cautions, curve)


def _lists(run: Run, results: Mapping[str, Mapping[str, float]]) -> list[ListKey]:
    return list_keys(results, run.protocol.many_phases, run.protocol.many_tasks)


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


def title_of(run: Run, origin: Mapping[str, Any]) -> str:
    """Say in words what was judged: data set, backbone and method, or whose rankings."""
    if origin["epoch"] is None:
        return f"{run.data.name}, {origin['method']}"
    method = "without a fairness method" if origin["method"] == "none" else f"with {origin['method']}"
    return f"{run.data.name}, {shown_network(run.config.backbone, run.config.synthesis_type)} {method}"


def _header(run: Run, directory: Path, rows: Sequence[Mapping], origin: Mapping[str, Any]) -> dict[str, str]:
    config, data, method = run.config, run.data, origin["method"]
    header = {"data set": f"{data.name}, {data.num_users:,} users, {data.num_items:,} items"}
    if origin["epoch"] is not None:
        method += f" on {shown_network(config.backbone, config.synthesis_type)}, seed {origin['seed']}"
    header |= {"method": method, "protocol": run.protocol.description}
    header |= {"training": run.protocol.training} if run.protocol.training else {}
    if origin["epoch"] is not None:
        # of the last stage of the last phase
        epochs = f" of {rows[-1]['epoch']}" if rows else ""
        header["epoch"] = f"{origin['epoch']}{epochs} ({selected(origin)})"
    tasks = [task for phase in run.protocol.phases for task in phase.tests]
    header["sampled"] = "; ".join(dict.fromkeys(task.sampled for task in tasks))
    return header | {"files": str(directory)}
