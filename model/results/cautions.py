"""What a colleague would say about a run before anybody quotes it: one sentence each, with numbers and a remedy.

A caution is about one run. Those that are known before training are also what a dry run says.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np

from data.datareader import MADE_FOR
from data.messages import WIDTH, counted
from data.protocols.base import BLOCKS, Phase
from data.structs import Group
from model import BACKBONES
from model.evaluation.keys import POPULAR, TEST, ListKey, MetricKey, list_keys, validation_key
from model.evaluation.metric_kinds import HEADLINE
from model.evaluation.metric_table import shown_in
from model.evaluation.questions import Answer
from model.results.metric_text import cell, chance_cell, chance_of, name_of, parsed
from model.runs.presets import in_effect
from model.runs.run import Run
from model.runs.settings import is_read

FEW_USERS, FEW_HITS, FEW_HELD_OUT = 100, 30, 30
# the largest batch, as a share of the train interactions
LARGE_BATCH = 0.1
# data have another size than those that presets are made for where one is so many times the other
OTHER_SIZE = 2
# an epoch in the last part of training
LAST_PART = 0.05
# the share of users whose exposure floor may be out of reach
OUT_OF_REACH = 0.01
# so many of a kind are named, the others counted
NAMED = 2

Results = Mapping[str, Mapping[str, float]]


def caution_text(cautions: Sequence[str]) -> str:
    """Write cautions as a block of text for the console; nothing where there is none."""
    lines = [textwrap.fill(text, WIDTH, initial_indent="- ", subsequent_indent="  ") for text in cautions]
    return "\n".join(["\nWarnings:", *lines]) if lines else ""


def before_training(run: Run) -> list[str]:
    """Give the cautions that are known before a run is trained."""
    return [*batch_of_the_data(run), *presets_of_other_data(run), *small_groups(run), *few_held_out(run)]


def cautions_of(
    run: Run,
    results: Results,
    rows: Sequence[Mapping[str, Any]],
    answers: Sequence[Answer],
    trained: bool,
) -> list[str]:
    """Give the cautions about `results` (list -> metric -> value) of a run.

    `rows` are those of `metrics.jsonl`, `answers` those of the last phase; a run that this program did not train has
    neither epochs nor vectors.
    """
    of_training = [*cut_short(run, rows), *batch_of_the_data(run), *presets_of_other_data(run)] if trained else []
    return [
        *below_most_popular(run, results, trained),
        *of_training,
        *floor_out_of_reach(run, results),
        *small_groups(run, hits_by_group(run, answers)),
        *(few_held_out(run) if trained else []),
        *within_chance(run, results),
    ]


# --- Accuracy ---


def below_most_popular(run: Run, results: Results, trained: bool) -> list[str]:
    """Find lists that are less accurate than the most popular items are, in NDCG at the first K or what selected."""
    names = dict.fromkeys((f"ndcg@{run.config.eval_k[0]}", run.protocol.phases[-1].metric))
    metrics = [key for key in parsed(names) if key.judged_by.better == "higher"]
    lists = [key for key in _lists_of(run, results) if not key.reranked]
    below: dict[ListKey, list[str]] = {}
    for key in lists:
        own, popular = results[str(key)], results.get(str(key.beside(POPULAR)), {})
        below[key] = [
            f"{name_of(metric)} {cell(metric, own[str(metric)])} against {cell(metric, popular[str(metric)])}"
            for metric in metrics
            if own.get(str(metric), math.nan) < popular.get(str(metric), math.nan)
        ]
    found = [key for key in lists if below[key]]
    if not found:
        return []
    where = f" in {len(found)} of {len(lists)} lists, as {_label(found[0])}" if len(lists) > 1 else ""
    remedy = "train longer, or tune --lr and --batch_size" if trained else "check the file's ids and its order"
    return [f"This is below the most popular items{where}: {', '.join(below[found[0]])}; {remedy}."]


def cut_short(run: Run, rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Find a best epoch among the last ones, where neither early stopping nor a published schedule ended training."""
    effective = in_effect(vars(run.config))
    published = "epochs" in effective and effective["epochs"].of_protocol and not presets_of_other_data(run)
    if published or BACKBONES[run.config.backbone].fitted:
        return []
    stages: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        stages.setdefault((row["phase"], row["stage"]), []).append(row)
    phases = {phase.name: phase for phase in run.protocol.phases}
    found = []
    for (phase, stage), part in stages.items():
        if phase not in phases:  # weights may be judged by another protocol than trained them
            continue
        best, last = _best_epoch(phases[phase], part), part[-1]["epoch"]
        if best is not None:
            where = f" of {phase}, {stage}" if len(stages) > 1 else ""
            found.append(f"the best epoch{where} is {best} of {last}")
    if not found:
        return []
    more = f", and so in {len(found) - 1} more" if len(found) > 1 else ""
    return [f"Training may have been cut short: {found[0]}{more}; raise --epochs until validation falls."]


def _best_epoch(phase: Phase, rows: Sequence[Mapping[str, Any]]) -> int | None:
    """Give the best epoch of a stage where it is one of the last; None where it is not."""
    key, last = validation_key(phase.metric), rows[-1]["epoch"]
    values = {row["epoch"]: row[key] for row in rows if row.get(key) is not None and not math.isnan(row[key])}
    if phase.valid is None or not values:
        return None
    best = max(values, key=values.get)
    late = best > (1 - LAST_PART) * last or best == max(values)
    return best if late and last - best < phase.patience else None


# --- Settings ---


def batch_of_the_data(run: Run) -> list[str]:
    """Find batches that are a large part of the data, where the protocol does not cut them."""
    batch = run.config.batch_size
    rows = min((phase.num_rows for phase in run.protocol.phases if phase.order != BLOCKS), default=math.inf)
    if batch <= LARGE_BATCH * rows or not is_read("batch_size", run.config):
        return []
    steps = math.ceil(rows / batch)
    return [
        f"The batch of {batch:,} is more than a tenth of the {rows:,} train interactions ({counted(steps, 'step')} an "
        f"epoch); train with --batch_size={max(2, int(LARGE_BATCH * rows))} or less."
    ]


def presets_of_other_data(run: Run) -> list[str]:
    """Find presets in effect that are made for another data set, or for data of another size (Decision 50)."""
    effective = in_effect(vars(run.config))
    strange: dict[str, list[str]] = {}
    for name, layer in effective.items():
        made_for, size = MADE_FOR[layer.dataset]
        ratio = len(run.data.user_id) / size
        same = layer.dataset == run.config.dataset and 1 / OTHER_SIZE <= ratio <= OTHER_SIZE
        if not same and is_read(name, run.config):
            strange.setdefault(f"{made_for} ({size:,})", []).append(f"--{name}={layer.values[name]}")
    return [
        f"Presets do not adapt: {', '.join(settings)} for {made_for}, not these {len(run.data.user_id):,} "
        "interactions; tune them."
        for made_for, settings in strange.items()
    ]


def floor_out_of_reach(run: Run, results: Results) -> list[str]:
    """Find re-ranked lists in which many users lack the tail items for the exposure floor."""
    asked = {
        (phase.name if run.protocol.many_phases else "", task.name if run.protocol.many_tasks else ""): int(
            (task.relevant.lengths > 0).sum()
        )
        for phase in run.protocol.phases
        for task in phase.tests
    }
    found = {}
    for key in _lists_of(run, results):
        infeasible, users = results[str(key)].get("infeasible_users", 0), asked.get((key.phase, key.task), math.inf)
        if infeasible > OUT_OF_REACH * users:
            found[key] = (int(infeasible), users)
    if not found:
        return []
    infeasible, users = max(found.values(), key=lambda pair: pair[0] / pair[1])
    config = run.config
    return [
        f"--exposure_floor={config.exposure_floor} is out of reach for {infeasible:,} of {users:,} users "
        f"({100 * infeasible / users:.1f} %); lower it, or raise --rerank_pool={config.rerank_pool}."
    ]


# --- Groups ---


def hits_by_group(run: Run, answers: Sequence[Answer]) -> dict[str, np.ndarray]:
    """Count the hits of each group `[G]` in the first list that is the run's own, at the first K; none without one."""
    own = next((answer for answer in answers if answer.key.source == TEST and not answer.key.reranked), None)
    if own is None:
        return {}
    ranking = own.ranking
    users = ranking.users[ranking.relevant.owner[ranking.ranks <= run.config.eval_k[0]]]
    return {name: _members(group, users) for name, group in run.groups.items()}


def small_groups(run: Run, hits: Mapping[str, np.ndarray] = MappingProxyType({})) -> list[str]:
    """Find user groups with few tested users or, where `hits [G]` by attribute are known, few hits."""
    users = np.flatnonzero(run.protocol.phases[-1].tests[0].relevant.lengths > 0)
    found = []
    for name, group in run.groups.items():
        counts, few = _members(group, users), {}
        for code in (code for code in np.argsort(counts, kind="stable") if counts[code]):
            numbers = {"user": int(counts[code])} | ({"hit": int(hits[name][code])} if name in hits else {})
            if numbers["user"] < FEW_USERS or numbers.get("hit", FEW_HITS) < FEW_HITS:
                few[group.labels[code]] = ", ".join(counted(number, noun) for noun, number in numbers.items())
        if few:
            named = _named(f"{label} ({words})" for label, words in few.items())
            found.append(f"Small groups by {name}: {named}; read gap and EO beside chance.")
    return found


def few_held_out(run: Run) -> list[str]:
    """Find user groups of whom few are held out for the probe of leakage."""
    found = []
    for name, group in run.groups.items():
        held_out, members = _members(group, np.flatnonzero(run.held_out)), group.counts()
        few = [
            f"{group.labels[code]} ({held_out[code]})"
            for code in np.argsort(held_out, kind="stable")
            if members[code] and held_out[code] < FEW_HELD_OUT
        ]
        if few:
            found.append(
                f"Leakage by {name} is tested on fewer than {FEW_HELD_OUT} users of {_named(few)}; rest no claim on "
                "its AUC."
            )
    return found


def within_chance(run: Run, results: Results) -> list[str]:
    """Find parity figures of the headline that labels permuted among the users reach as well."""
    headline, k = {row.name for row in shown_in(HEADLINE)}, run.config.eval_k[0]
    found = []
    for key in _lists_of(run, results):
        metrics = results[str(key)]
        figures = [one for one in parsed(metrics) if one.by_groups and not one.part and one.k in (None, k)]
        for one in figures:
            chance = chance_of(metrics, one) if (one.spread or one.name) in headline else None
            if chance is not None and chance.within:
                shown = f"{cell(one, metrics[str(one)])} (chance {chance_cell(metrics, one)})"
                found.append(f"{_figure(one, key)} {shown}")
    return [f"Within chance: {_named(found)}; claim nothing on {'it' if len(found) == 1 else 'them'}."] if found else []


# --- Words ---


def _lists_of(run: Run, results: Results) -> list[ListKey]:
    return list_keys(results, run.protocol.many_phases, run.protocol.many_tasks)


def _label(key: ListKey) -> str:
    return f"{key.task}, {key.label}" if key.task else key.label


def _figure(one: MetricKey, of: ListKey) -> str:
    name = name_of(one) if one.spread else f"{one.metric.head} by {one.group}"
    return name if of == ListKey() else f"{name}, {_label(of)},"


def _members(group: Group, users: np.ndarray) -> np.ndarray:
    """Count `users [n]` by group: [G], those of unknown group left out."""
    codes = group.codes[users]
    return np.bincount(codes[codes >= 0], minlength=group.num_groups)


def _named(words: Iterable[str]) -> str:
    words = list(words)
    more = f" and {len(words) - NAMED} more" if len(words) > NAMED else ""
    return ", ".join(words[:NAMED]) + more
