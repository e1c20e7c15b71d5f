"""Read what finished runs left behind: the results of one, or of a folder of seeds, as one list of recommendations."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from data.wording import suggestion
from fairness_utils import mean_defined
from model.results.shown import under
from model.runs.config import shown_network

USER = "user"
FOLDER_OF_SEEDS = "seeds.json"
# what must be the same for numbers of two runs to be comparable: name in the files -> what it is called
FACTS = {
    "dataset": "data set",
    "fingerprint": "data fingerprint",
    "protocol": "protocol",
    "description": "protocol description",
    "warm_threshold": "--warm_threshold",
}
SHORT = {"reranked": "re-ranked"}


@dataclass(frozen=True)
class Finished:
    """One list of a finished run, or the mean over its `seeds`; the list is `root` in the files ("test").

    `facts` by the names of `FACTS`; `metrics` by key without the root; `values` one row per user (sorted by the data
    set's own id, the index) and a column per metric ("ndcg@10"), means over seeds; `groups` the same users' labels.
    """

    name: str
    label: str
    root: str
    seeds: tuple[int, ...]
    facts: dict[str, object]
    metrics: dict[str, float]
    values: pd.DataFrame
    groups: pd.DataFrame

    @property
    def ks(self) -> list[int]:
        """Cut-offs of the per-user metrics, the primary one first."""
        return list(dict.fromkeys(int(column.partition("@")[2]) for column in self.values))


def read_json(path: Path) -> dict:
    """The content of a JSON file; one that cannot be read is a ValueError."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); finish or repeat the run that it belongs to") from error


def read_result(folder: Path) -> dict:
    """The result.json of a finished run, undefined metrics as NaN."""
    result = read_json(folder / "result.json")
    numbers = {key: float("nan") if value is None else value for key, value in result["metrics"].items()}
    return result | {"metrics": numbers}


def find(spec: str, output_dir: Path) -> tuple[Path, str]:
    """The folder that an entry of `--runs` names, a path or a name under `output_dir`, and the list after its colon."""
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
                    f"--runs: {place} {_lacks(place)}; pass folders of finished runs (one that was cut off goes on "
                    "with --resume)"
                )
    name = readings[-1][0]
    there = [place.name for place in output_dir.iterdir()] if output_dir.is_dir() else []
    raise ValueError(f"--runs: there is no {name}, neither here nor in {output_dir}{suggestion(name, there)}")


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
    return _mean(spec, parts)


def _load_one(name: str, folder: Path, chosen: str) -> Finished:
    result, config = read_result(folder), read_json(folder / "config.json")
    try:
        frame = pd.read_parquet(folder / "per_user.parquet")
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder / 'per_user.parquet'} cannot be read ({error}); repeat the run") from error
    frame = frame.set_index(USER).sort_index()
    lists = list(dict.fromkeys(column.rpartition("/")[0] for column in frame if "@" in column))
    root = _root(name, lists, chosen)
    # with several tasks a row may be of somebody whom this one does not ask
    asked = frame[[column for column in frame if column.rpartition("/")[0] == root]].notna().any(axis=1)
    frame = frame[asked]
    columns = {column: column.removeprefix(f"{root}/") for column in frame if column.rpartition("/")[0] == root}
    parts = [result["method"], SHORT.get(chosen, chosen)]
    if result.get("epoch") is not None:
        parts[0] += f" on {shown_network(config['backbone'], config['synthesis_type'])}"
    return Finished(
        name=name,
        label=", ".join(part for part in parts if part),
        root=root,
        seeds=() if result.get("seed") is None else (result["seed"],),
        facts={fact: result.get(fact, config.get(fact)) for fact in FACTS},
        metrics=under(result["metrics"], root, lists),
        values=frame[list(columns)].rename(columns=columns).astype(np.float64),
        groups=frame[[column for column in frame if "@" not in column]],
    )


def _root(name: str, lists: list[str], chosen: str) -> str:
    """The prefix in the files of the list that stands after the colon of an entry of `--runs`."""
    own = [root for root in lists if root == "test" or root.startswith("test/")]
    wanted = [f"test/{chosen}", f"reference/{chosen}"] if chosen else ["test"]
    if not chosen and "test" not in own and len(own) == 1:
        wanted = own
    for root in wanted:
        if root in lists:
            return root
    allowed = [root.partition("/")[2] for root in lists if "/" in root]
    what = f"has no list {chosen!r}" if chosen else "has several lists"
    raise ValueError(f"--runs: {name} {what}; name one behind a colon: {', '.join(allowed)}")


def difference(first: Finished, other: Finished) -> str | None:
    """What makes two runs' numbers incomparable, in words; None where nothing does."""
    for fact, called in FACTS.items():
        if first.facts[fact] != other.facts[fact]:
            return f"{called}: {first.facts[fact]} and {other.facts[fact]}"
    if not first.values.index.equals(other.values.index):
        lacking = first.values.index.difference(other.values.index)
        more = other.values.index.difference(first.values.index)
        examples = ", ".join(map(str, [*lacking[:3], *more[:3]]))
        return f"users: {len(lacking):,} only in the first and {len(more):,} only in the second, such as {examples}"
    for attribute in first.groups.columns.intersection(other.groups.columns):
        one, two = first.groups[attribute], other.groups[attribute]
        changed = (one.fillna("") != two.fillna("")).to_numpy()
        if changed.any():
            user = first.groups.index[changed][0]
            return f"{attribute} of {changed.sum():,} users, such as user {user}: {one[user]} and {two[user]}"
    return None


def check_comparable(runs: Iterable[Finished], remedy: str) -> None:
    """Raise a ValueError that shows the difference unless all `runs` may be compared with the first."""
    first, *others = runs
    for other in others:
        found = difference(first, other)
        if found:
            raise ValueError(f"{first.name} and {other.name} differ in {found}; {remedy}")


def _mean(name: str, parts: list[Finished]) -> Finished:
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
        seeds=tuple(seed for part in parts for seed in part.seeds),
        facts=first.facts,
        metrics=metrics,
        values=pd.DataFrame(total / len(parts), first.values.index, columns),
        groups=first.groups,
    )


def _mean_of(key: str, parts: list[Finished]) -> float:
    return mean_defined(np.array([part.metrics.get(key, np.nan) for part in parts], dtype=np.float64))
