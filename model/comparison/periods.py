"""The picture over phases of finished runs: a line for each of them, or for the seeds of one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from data.messages import shown
from data.options import parse_options
from data.protocols import PROTOCOLS
from model import METHODS
from model.comparison.statistics import summarise
from model.evaluation.keys import CHANCE, CHANCE_STD, POPULAR, YARDSTICKS, ListKey, MetricKey, by_list, short_name
from model.results.drawing import attempt
from model.results.finished import Finished, read_json, read_result
from model.results.pages import Picture
from model.results.period_numbers import Periods, Results, Series, intervals_over_users, metrics_by_phase, panels_of
from model.results.period_plots import TITLE, by_phase, how_to_read
from model.runs.config import Config, shown_network

NAME = "periods"
USERS, SEEDS = "users", "seeds"
# setting -> the class of its options under other settings
KINDS: dict[str, Callable[[Config], type]] = {
    "protocol_option": lambda config: PROTOCOLS[config.protocol].Options,
    "method_option": lambda config: METHODS[config.method].Options,
}


def periods_of_runs(runs: Sequence[Finished], k: int, directory: Path) -> list[Picture]:
    """Draw the phases of `runs` at cut-off `k` into `directory`, a line for each run; none where one phase is tested.

    A run that is named with several of its lists has a line for each control.
    """
    periods = Periods.read(read_result(runs[0].singles[0].folder))
    if periods is None:
        return []
    pictures: list[Picture] = []
    with attempt(f"the picture {NAME}"):
        configs = {run.name: _config(run.singles[0].folder) for run in runs}
        metrics = metrics_by_phase(k, configs[runs[0].name].attribute)
        lines = {(run.folder, periods.list_key(run.root)): run for run in reversed(runs)}
        once = [run for run in runs if run in lines.values()]
        labels = labels_of({name_of(run, periods): configs[run.name] for run in once})
        series = {labels[name_of(run, periods)]: _series(run, periods, metrics) for run in once}
        several = [len(run.singles) > 1 for run in once]
        sample = (
            SEEDS if all(several) else f"{SEEDS} of a run that has several, else {USERS}" if any(several) else USERS
        )
        pictures += _drawn(periods, series, metrics, sample, directory)
    return pictures


def periods_of_seeds(
    results: Sequence[Mapping], main_list: str, folder: Path, k: int, directory: Path
) -> list[Picture]:
    """Draw the mean of the `results` of several seeds (as `read_result` gives them) over phases, into `directory`.

    `main_list` is of the control that is drawn, and `folder` is that of one of the seeds.
    """
    periods = Periods.read(results[0])
    if periods is None:
        return []
    pictures: list[Picture] = []
    with attempt(f"the picture {NAME}"):
        metrics, key = metrics_by_phase(k, _config(folder).attribute), periods.list_key(main_list)
        parts = [by_list(result["metrics"]) for result in results]
        keys = {f"mean of {len(parts)} seeds": key, YARDSTICKS[POPULAR]: key.beside(POPULAR)}
        series = {name: over_seeds(one, periods, parts, metrics) for name, one in keys.items()}
        pictures += _drawn(periods, series, metrics, SEEDS, directory)
    return pictures


def over_seeds(key: ListKey, periods: Periods, parts: Sequence[Results], metrics: Sequence[MetricKey]) -> Series:
    """Average the results of several seeds (`parts`), with intervals over these."""
    wanted = [metric.of(part) for metric in metrics for part in ("", CHANCE, CHANCE_STD)]
    summaries = {
        name: {
            str(metric): summarise([part.get(name, {}).get(str(metric), math.nan) for part in parts], metric.bounds)
            for metric in wanted
        }
        for task in periods.tasks
        for name in periods.lists(key, task)
    }
    return Series(
        key,
        {name: {metric: one.mean for metric, one in of_list.items()} for name, of_list in summaries.items()},
        {name: {metric: (one.low, one.high) for metric, one in of_list.items()} for name, of_list in summaries.items()},
    )


def _series(run: Finished, periods: Periods, metrics: Sequence[MetricKey]) -> Series:
    key, parts = periods.list_key(run.root), [by_list(read_result(one.folder)["metrics"]) for one in run.singles]
    if len(parts) > 1:
        return over_seeds(key, periods, parts, metrics)
    return Series(key, parts[0], intervals_over_users(run.singles[0].folder, periods, [key], parts[0], metrics[0]))


def _drawn(
    periods: Periods, series: Mapping[str, Series], metrics: Sequence[MetricKey], sample: str, directory: Path
) -> list[Picture]:
    panels = panels_of(periods, series, metrics)
    if not panels:
        return []
    paths = by_phase(panels, periods.phases, directory / NAME)
    return [Picture(TITLE, how_to_read(panels, sample), tuple(paths))]


def _config(folder: Path) -> Config:
    return Config.from_json(read_json(folder / "config.json"))


def name_of(run: Finished, periods: Periods) -> str:
    """Give the name of a run's line: the run's, and behind it the list without phase and task, where it has a name."""
    behind = short_name(str(periods.list_key(run.root)))
    return ":".join(part for part in (run.name.removesuffix(f":{short_name(run.root)}"), behind) if part)


def labels_of(configs: Mapping[str, Config]) -> dict[str, str]:
    """Put behind each name what its settings differ in: method, backbone, options of protocol and method that any run
    sets."""
    is_set = {
        about: {text.partition("=")[0] for config in configs.values() for text in getattr(config, about)}
        for about in KINDS
    }
    facts = {name: _facts(config, is_set) for name, config in configs.items()}
    order = dict.fromkeys(fact for one in facts.values() for fact in one)
    differing = [fact for fact in order if len({one.get(fact) for one in facts.values()}) > 1]
    told = {name: ", ".join(one[fact] for fact in differing if fact in one) for name, one in facts.items()}
    return {name: f"{name} ({text})" if text else name for name, text in told.items()}


def _facts(config: Config, is_set: Mapping[str, set[str]]) -> dict[tuple[str, str], str]:
    """What a label may tell of a run, by what it is about; of options those that `is_set` names."""
    facts = {
        ("method", ""): config.method,
        ("backbone", ""): shown_network(config.backbone, config.synthesis_type),
    }
    for about, options_of in KINDS.items():
        options = asdict(parse_options(options_of(config), getattr(config, about), about, config.dataset))
        facts |= {(about, name): f"{name}={shown(value)}" for name, value in options.items() if name in is_set[about]}
    return facts
