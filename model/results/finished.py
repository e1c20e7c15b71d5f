"""Read what finished runs left behind: the results of one, or of a folder of seeds, a list of recommendations each."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from data.messages import suggestion
from fairness_utils import mean_defined
from model.evaluation.keys import (
    REFERENCE,
    TEST,
    ListKey,
    MetricKey,
    by_list,
    choose_list,
    is_result,
    run_lists,
    short_name,
    split_key,
    yardsticks_of,
)
from model.runs.config import shown_network

USER = "user"
FOLDER_OF_SEEDS = "seeds.json"
# most lists that an error names
SHOWN = 12
NUMBER = re.compile(r"\d[\d.,]*")
# what must be the same for numbers of two runs to be comparable: name in the files -> what it is called
FACTS = {
    "dataset": "data set",
    "fingerprint": "data fingerprint",
    "protocol": "protocol",
    "description": "protocol description",
    "warm_threshold": "--warm_threshold",
}


@dataclass(frozen=True)
class Finished:
    """One list of a finished run, or its mean over `seeds`; `root` is the list's name in the files ("test"), one of the
    run's own `lists` or of a yardstick; `method` is what trained.

    `facts` are by the names of `FACTS`; `metrics` by key without the root; `values` have one row per user (sorted by
    the data set's own id, the index) and a column per metric ("ndcg@10"), means over seeds; `groups` are the same
    users' labels. `yardsticks` are metrics by the name of a yardstick of the list's task, and `warnings` what the run
    warned of (None: it is older than warnings). `folder` holds its files; of seeds, `parts` are the single ones.
    """

    name: str
    label: str
    root: str
    lists: tuple[str, ...]
    method: str
    seeds: tuple[int, ...]
    facts: dict[str, object]
    metrics: dict[str, float]
    values: pd.DataFrame
    groups: pd.DataFrame
    folder: Path
    yardsticks: dict[str, dict[str, float]]
    warnings: tuple[str, ...] | None
    parts: tuple[Finished, ...] = ()

    @property
    def singles(self) -> tuple[Finished, ...]:
        """The run itself, or each seed of it."""
        return self.parts or (self,)

    @property
    def is_yardstick(self) -> bool:
        """Whether the list is a yardstick, and none that the run recommends."""
        return ListKey.parse(self.root).source == REFERENCE

    def codes(self, attribute: str) -> tuple[np.ndarray, list[str]]:
        """Give the users' groups as codes `[T]` (-1: unknown) and their labels, in alphabetical order."""
        codes, labels = pd.factorize(self.groups[attribute], sort=True)
        return codes, list(map(str, labels))

    @property
    def ks(self) -> list[int]:
        """Cut-offs of the per-user metrics, the primary one first."""
        return list(dict.fromkeys(MetricKey.parse(column).k for column in self.values))


def read_json(path: Path) -> dict:
    """Read a JSON file; one that cannot be read is a ValueError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); finish or repeat the run that it belongs to") from error


def read_result(folder: Path) -> dict:
    """Read the result.json of a finished run; undefined metrics become NaN."""
    result = read_json(folder / "result.json")
    numbers = {key: float("nan") if value is None else value for key, value in result["metrics"].items()}
    return result | {"metrics": numbers}


def find(spec: str, output_dir: Path, flag: str = "--runs") -> tuple[Path, str]:
    """Find the folder that an entry of a flag names, and the name of the list behind its colon ("": none).

    An entry is a path, or a name under `output_dir`.
    """
    name, colon, chosen = spec.rpartition(":")
    readings = [(spec, "")] + ([(name, chosen)] if colon and name else [])
    for text, list_name in readings:
        places = [Path(text).expanduser(), output_dir / text]
        for place in places:
            if (place / "result.json").exists() or (place / FOLDER_OF_SEEDS).exists():
                return place, list_name
    for text, _ in readings:
        for place in (Path(text).expanduser(), output_dir / text):
            if place.is_dir():
                raise ValueError(
                    f"{flag}: {place} {_lacks(place)}; pass folders of finished runs (one that was cut off goes on "
                    "with --resume)"
                )
    name = readings[-1][0]
    there = [place.name for place in output_dir.iterdir()] if output_dir.is_dir() else []
    raise ValueError(f"{flag}: there is no {name}, neither here nor in {output_dir}{suggestion(name, there)}")


def _lacks(folder: Path) -> str:
    if (folder / "config.json").exists():
        return "holds a run without result.json, which has not finished"
    if list(folder.glob("seed*/config.json")):
        return f"holds seeds without {FOLDER_OF_SEEDS}, which have not finished"
    return "holds no run"


def load(spec: str, output_dir: Path) -> Finished:
    """Read the run or the folder of seeds that an entry of `--runs` names; what is missing in it is a ValueError."""
    folder, chosen = find(spec, output_dir)
    if (folder / "result.json").exists():
        return _load_one(spec, folder, chosen)
    content = read_json(folder / FOLDER_OF_SEEDS)
    parts = [_load_one(f"{spec}, seed {seed}", folder / f"seed{seed}", chosen) for seed in content["seeds"]]
    return _mean(spec, folder, parts)


def load_lists(spec: str, output_dir: Path, flag: str) -> list[Finished]:
    """Read the list that an entry of a flag names behind a colon, or without one all lists of its run but yardsticks.

    What is missing, and a folder of seeds, is a ValueError.
    """
    folder, chosen = find(spec, output_dir, flag)
    if not (folder / "result.json").exists():
        raise ValueError(f"{flag}: {folder} holds runs of several seeds; name one of them, such as {spec}/seed0")
    files = _read(folder)
    own = [chosen] if chosen else [short_name(root) for root in files.lists]
    return [_of_list(spec, files, one, flag) for one in own]


@dataclass(frozen=True)
class _Files:
    """What is read of a finished run: `result` and `config`, per-user values, and the run's own lists in order."""

    folder: Path
    result: dict
    config: dict
    frame: pd.DataFrame
    lists: tuple[str, ...]


def _read(folder: Path) -> _Files:
    result, config = read_result(folder), read_json(folder / "config.json")
    try:
        frame = pd.read_parquet(folder / "per_user.parquet")
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / 'per_user.parquet'} cannot be read ({error}); repeat the run") from error
    lists = result.get("lists", run_lists(by_list(result["metrics"])))
    return _Files(folder, result, config, frame.set_index(USER).sort_index(), tuple(lists))


def _load_one(name: str, folder: Path, chosen: str) -> Finished:
    return _of_list(name, _read(folder), chosen, "--runs")


def _of_list(name: str, files: _Files, chosen: str, flag: str) -> Finished:
    """Take the list `chosen` ("": the run's one plain list) from the files of the run `name`."""
    result, config, frame = files.result, files.config, files.frame
    measured = {column: split_key(column) for column in frame if is_result(column)}
    root = _chosen_list(name, list(dict.fromkeys(owner for owner, _ in measured.values())), chosen, flag)
    columns = {column: metric for column, (owner, metric) in measured.items() if owner == root}
    results = by_list(result["metrics"])
    # with several tasks a row may be of a user whom this task does not ask
    frame = frame[frame[list(columns)].notna().any(axis=1)]
    parts = [result["method"], "re-ranked" if ListKey.parse(root) == ListKey(reranked=True) else chosen]
    if result.get("epoch") is not None:
        parts[0] += f" on {shown_network(config['backbone'], config['synthesis_type'])}"
    return Finished(
        name=name,
        label=", ".join(part for part in parts if part),
        root=root,
        lists=files.lists,
        method=result["method"],
        seeds=() if result.get("seed") is None else (result["seed"],),
        facts={fact: result.get(fact, config.get(fact)) for fact in FACTS},
        metrics=results.get(root, {}),
        values=frame[list(columns)].rename(columns=columns).astype(np.float64),
        groups=frame[[column for column in frame if column not in measured]],
        folder=files.folder,
        yardsticks={yardstick: results[text] for yardstick, text in yardsticks_of(root, results).items()},
        warnings=tuple(result["warnings"]) if "warnings" in result else None,
    )


def _chosen_list(name: str, lists: list[str], chosen: str, flag: str) -> str:
    """The list that stands after the colon of an entry of `flag`; "" is the one list of a run's test."""
    wanted = choose_list(lists, chosen)
    if wanted is not None:
        return wanted
    # a run's own lists before yardsticks, and no more than can be read
    allowed = sorted((text for text in lists if short_name(text)), key=lambda text: not text.startswith(TEST))
    what = f"has no list {chosen!r}" if chosen else "has several lists"
    few = ", ".join(short_name(text) for text in allowed[:SHOWN])
    others = f" and {len(allowed) - SHOWN} more" if len(allowed) > SHOWN else ""
    raise ValueError(f"{flag}: {name} {what}; name one behind a colon: {few}{others}")


def short_names(specs: Sequence[str], output_dir: Path, flag: str = "--runs") -> list[str]:
    """Give the entries of a flag names without the folders that they lie in, unless two would then be the same."""
    short = []
    for spec in specs:
        # the name of a list may have slashes
        _, chosen = find(spec, output_dir, flag)
        behind = f":{chosen}" if chosen else ""
        short.append(Path(spec.removesuffix(behind)).name + behind)
    return short if len(set(short)) == len(short) and all(short) else list(specs)


def differing_fact(first: Mapping[str, object], other: Mapping[str, object]) -> str | None:
    """Say in words in which of `FACTS` two runs differ; None where in none."""
    for fact, called in FACTS.items():
        if first[fact] != other[fact]:
            return f"{called}: {first[fact]} and {other[fact]}"
    return None


def difference(first: Finished, other: Finished) -> str | None:
    """Say in words what makes two runs' numbers incomparable; None where nothing does."""
    reason = differing_fact(first.facts, other.facts)
    if reason is not None:
        return reason
    if not first.values.index.equals(other.values.index):
        lacking = first.values.index.difference(other.values.index)
        more = other.values.index.difference(first.values.index)
        examples = ", ".join(map(str, [*lacking[:3], *more[:3]]))
        return f"users: {len(lacking):,} only in the first and {len(more):,} only in the second, such as {examples}"
    for attribute in first.groups.columns.intersection(other.groups.columns):
        first_labels, other_labels = first.groups[attribute], other.groups[attribute]
        changed = (first_labels.fillna("") != other_labels.fillna("")).to_numpy()
        if changed.any():
            user = first.groups.index[changed][0]
            labels = f"{first_labels[user]} and {other_labels[user]}"
            return f"{attribute} of {changed.sum():,} users, such as user {user}: {labels}"
    return None


def check_comparable(runs: Iterable[Finished], remedy: str) -> None:
    """Raise a ValueError that shows the difference unless all `runs` may be compared with the first."""
    first, *others = runs
    for other in others:
        reason = difference(first, other)
        if reason:
            raise ValueError(f"{first.name} and {other.name} differ in {reason}; {remedy}")


def _mean(name: str, folder: Path, parts: list[Finished]) -> Finished:
    """The mean over seeds: of each user's values (undefined where one seed's is) and of each metric's defined ones."""
    check_comparable(parts, "seeds of one run are averaged only over the same data and users")
    first = parts[0]
    columns = [column for column in first.values if all(column in part.values for part in parts)]
    total = sum(part.values[columns].to_numpy() for part in parts)
    keys = dict.fromkeys(key for part in parts for key in part.metrics)
    metrics = {key: _mean_of(key, parts) for key in keys}
    return Finished(
        name=name,
        label=first.label,
        root=first.root,
        lists=first.lists,
        method=first.method,
        seeds=tuple(seed for part in parts for seed in part.seeds),
        facts=first.facts,
        metrics=metrics,
        values=pd.DataFrame(total / len(parts), first.values.index, columns),
        groups=first.groups,
        folder=folder,
        yardsticks=first.yardsticks,
        warnings=counted_warnings([part.warnings for part in parts]),
        parts=tuple(parts),
    )


def counted_warnings(of_seeds: Sequence[Sequence[str] | None]) -> tuple[str, ...] | None:
    """List what seeds warned of, each with how many of them did; what differs in its numbers alone is one warning.

    None where no seed knows of warnings.
    """
    if all(warnings is None for warnings in of_seeds):
        return None
    kinds: dict[str, list[str]] = {}
    for warnings in of_seeds:
        for kind, text in {NUMBER.sub("0", text): text for text in warnings or ()}.items():
            kinds.setdefault(kind, []).append(text)
    return tuple(f"{len(texts)} of {len(of_seeds)} seeds: {texts[0]}" for texts in kinds.values())


def _mean_of(key: str, parts: list[Finished]) -> float:
    return mean_defined(np.array([part.metrics.get(key, np.nan) for part in parts], dtype=np.float64))
