"""The split as files for other programs, with the data set's own ids; `--mode=score` judges the rankings they make."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from data.messages import shown
from data.protocols.base import Phase, Task
from data.rankings import COLUMNS, TREC_FIELDS
from data.structs import InteractionData, ItemLists
from model.runs.config import Config
from model.runs.files import make_folder, write_frame, write_json
from model.runs.run import Run
from model.runs.setting import declared
from model.runs.settings import is_read

SPLIT_FILE = "split.json"
SETS = ("train.csv", "valid.csv", "test.csv")
# what makes a split and its groups, and so the task of `--mode=score`
SPLIT_SETTINGS = [
    one for one in declared(Config).values() if "score" in one.modes and not one.free and one.group != "Re-ranking"
]


def export_split(run: Run, folder: Path) -> None:
    """Write each phase's split into `folder`; several phases each have a folder of their name in it.

    `train.csv`, `valid.csv`, `test.csv` (user, item, rating and, where there are times, timestamp in seconds; each
    user's in time order), `items.csv`, `users.csv` and, last, `split.json`, which says what the split is and how to
    hand rankings back. A test task that asks other items than `test.csv`, or bars items of none of these files, has
    files of its own. Raises ValueError for a folder that cannot be written or holds other files of these names, and
    for candidates other than those of `--mode=score`.
    """
    phases = run.protocol.phases
    if run.config.upstream_compat or any(task.candidates is not None for phase in phases for task in phase.tests):
        raise ValueError(
            "--export_split: --mode=score ranks the full catalogue minus train and validation items; leave "
            "--eval_negatives and --upstream_compat out"
        )
    folders = [folder / phase.name if len(phases) > 1 else folder for phase in phases]
    for phase, place in zip(phases, folders, strict=True):
        _check_folder(place, phase.split.fingerprint(), [*_sets(phase), "items.csv", "users.csv"])
    for phase, place in zip(phases, folders, strict=True):
        sets = _interactions(run.data, phase)
        for name, frame in {**sets, "items.csv": _items(run.data, phase), "users.csv": _users(run.data)}.items():
            write_frame(place / name, frame)
        rows = {name: len(frame) for name, frame in sets.items()}
        write_json(place / SPLIT_FILE, _description(run, phase, rows))
        print(
            f"split of {phase.name} in {place}: " + ", ".join(f"{name} {count:,} rows" for name, count in rows.items())
        )


def _check_folder(folder: Path, fingerprint: str, names: list[str]) -> None:
    remedy = "pass another --export_split, or delete it"
    make_folder(folder, remedy)
    path = folder / SPLIT_FILE
    if not path.exists():
        taken = [name for name in names if (folder / name).exists()]
        if taken:
            raise ValueError(f"{folder} holds {', '.join(taken)} but no {SPLIT_FILE} of an export; {remedy}")
    elif split_fingerprint(path) != fingerprint:
        raise ValueError(
            f"{folder} holds an export of fingerprint {split_fingerprint(path)}, this split has {fingerprint}; {remedy}"
        )


def split_fingerprint(path: Path) -> str:
    """Read the fingerprint in the `split.json` of an export; another file is a ValueError."""
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))["fingerprint"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the {SPLIT_FILE} of an export; move it away") from error


def _keys(lists: ItemLists, num_items: int) -> np.ndarray:
    return lists.owner * num_items + lists.item


def _sets(phase: Phase) -> dict[str, ItemLists]:
    """Give train, validation and test items by file name, and what test tasks ask or exclude beside them."""
    split, num_items = phase.split, phase.split.num_items
    sets: dict[str, ItemLists] = dict(zip(SETS, (split.train, split.valid, split.test), strict=True))
    for task in phase.tests:
        if not np.array_equal(*(np.sort(_keys(lists, num_items)) for lists in (task.relevant, split.test))):
            sets[f"test_{task.name}.csv"] = task.relevant
        covered = [_keys(sets[name], num_items) for name in _barred(sets, task, num_items)]
        if not np.isin(_keys(task.excluded, num_items), np.concatenate([[-1], *covered])).all():
            sets[f"barred_{task.name}.csv"] = task.excluded
    return sets


def _barred(sets: Mapping[str, ItemLists], task: Task, num_items: int) -> list[str]:
    """List the files none of whose items may be recommended in `task`."""
    barred = _keys(task.excluded, num_items)
    files = {name: sets[name] for name in (*SETS, f"barred_{task.name}.csv") if name in sets}
    return [name for name, lists in files.items() if len(lists.item) and np.isin(_keys(lists, num_items), barred).all()]


def _interactions(data: InteractionData, phase: Phase) -> dict[str, pd.DataFrame]:
    """Tables of interactions by file name."""
    keys = data.user_id * data.num_items + data.item_id
    order = np.argsort(keys, kind="stable")
    frames = {}
    for name, lists in _sets(phase).items():
        user = lists.owner
        row = order[np.searchsorted(keys, _keys(lists, data.num_items), sorter=order)]
        if data.time is not None:
            # a stable sort: equal times keep the split's order
            by_time = np.lexsort((data.time[row], user))
            user, row = user[by_time], row[by_time]
        columns = {
            "user": data.original_user_ids[user],
            "item": data.original_item_ids[data.item_id[row]],
            "rating": data.rating[row],
        }
        frames[name] = pd.DataFrame(columns if data.time is None else columns | {"timestamp": data.time[row]})
    return frames


def _items(data: InteractionData, phase: Phase) -> pd.DataFrame:
    popularity = phase.split.item_groups["popularity"]
    return pd.DataFrame(
        {
            "item": data.original_item_ids,
            "title": data.item_titles,
            "popularity": np.array(popularity.labels, dtype=object)[popularity.codes],
            "train_degree": phase.split.degree,
        }
    )


def _users(data: InteractionData) -> pd.DataFrame:
    columns = {"user": data.original_user_ids}
    for name, group in data.user_groups.items():
        # an unknown group has code -1, which reads None: an empty cell
        columns[name] = np.array([*group.labels, None], dtype=object)[group.codes]
    return pd.DataFrame(columns)


def _description(run: Run, phase: Phase, rows: Mapping[str, int]) -> dict:
    sets, num_items = _sets(phase), phase.split.num_items
    test_files = {task.name: f"test_{task.name}.csv" for task in phase.tests}
    asked = phase.tests if phase.valid is None else (phase.valid, *phase.tests)
    return {
        "dataset": run.data.name,
        "protocol": run.protocol.name,
        "phase": phase.name,
        "description": run.protocol.description,
        "fingerprint": phase.split.fingerprint(),
        "train_fingerprint": phase.split.train_fingerprint(),
        "seed": run.config.seed,
        "ks": list(run.protocol.ks),
        "rows": rows,
        "ids": "those of the data set; read the columns user and item as text, or leading zeros are lost",
        "relevant": {task: name if name in sets else "test.csv" for task, name in test_files.items()},
        "not_recommended": {task.name: _barred(sets, task, num_items) for task in asked},
        "rankings": {
            "columns": COLUMNS,
            "formats": (
                "parquet, CSV or TSV with user, item, and rank or score; or a TREC run: "
                f"{' '.join(TREC_FIELDS)}; all but parquet may be gzipped"
            ),
            "users": "those of the files under relevant",
            "items_per_user": max(run.protocol.ks),
            "command": _command(run.config),
            "check": f"a copy of this {SPLIT_FILE} beside the rankings is compared with the split that is scored",
        },
    }


def _command(config: Config) -> str:
    """The command that scores rankings of this split."""
    settings = ["--dataset_dir=DIR"] if is_read("dataset_dir", config) else []
    for setting in sorted(SPLIT_SETTINGS, key=lambda setting: setting.name):
        value = getattr(config, setting.name)
        if value is False or value == () or not is_read(setting.name, config):
            continue
        settings += [f"--{setting.name}={shown(part)}" for part in (value if setting.flag_each else [value])]
    return shlex.join(["python", "main.py", "--mode=score", "--rankings=FILE", *settings])
