"""Judge the rankings of another program as a run's own: the same task, metrics, yardsticks and files.

A list is what its file says, closed up over the user's items that are no candidates (train and validation) and cut to
the length that metrics and re-ranking read. A user whom the protocol asks and the file lacks has an empty list: nothing
is found, and nothing shown. A user whom it does not ask is ignored. A relevant item's rank is its place in the
closed-up list (Decision 27), and that of one which the list lacks is the size of the catalogue + 1: beyond every K. All
of it is counted, printed, and written to result.json.

A run's own file holds several lists, of which one is chosen by name; ties rank as in the run where its file of ranks
is beside.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from data.files import file_and_list
from data.messages import counted
from data.protocols.base import Phase, Task
from data.rankings import LIST, RankedLists, only_list, read_rankings, with_ranks
from data.structs import Ranking
from model.evaluation.keys import choose_list, flat
from model.evaluation.questions import ask_tests, results_of
from model.evaluation.ranker import Ranker
from model.modes.export_split import SPLIT_FILE, split_fingerprint
from model.modes.setup import describe, prepare
from model.results.tracking import Tracker
from model.results.user_tables import RANKS
from model.results.writer import tables_of, write_results
from model.runs.files import own_run_dir, write_json
from model.runs.processes import Processes
from model.runs.run import Run
from model.runs.settings import Settings
from model.training.progress import Progress


def match_rankings(
    given: RankedLists, task: Task, users: np.ndarray, num_items: int, top: int, longest: int
) -> tuple[Ranking, dict[str, int]]:
    """Turn lists of a file into the ranking of `users [T]` (ascending) in a task, and count what became of the file's
    rows.

    `topk` holds the best `min(top, num_items)` items. Its scores are the file's or, where it has none, or ranks decide
    and scores rise along a list, minus the places. Lists shorter than `longest` (the largest K) count as short.
    """
    lists, excluded, relevant = given.lists, task.excluded, task.relevant.take(users)
    owner = lists.owner
    row_of = np.full(len(lists.indptr) - 1, -1)
    row_of[users] = np.arange(len(users))
    is_asked = row_of[owner] >= 0
    is_left_out = np.isin(owner * num_items + lists.item, excluded.owner * num_items + excluded.item)
    kept = is_asked & ~is_left_out
    row, item = row_of[owner[kept]], lists.item[kept]
    lengths = np.bincount(row, minlength=len(users))
    place = np.arange(len(row)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    score = -(place + 1.0) if given.scores is None else given.scores[kept]
    rises = (np.diff(row) == 0) & (np.diff(score) > 0)

    shape, is_shown = (len(users), min(top, num_items)), place < min(top, num_items)
    topk, scores = np.full(shape, -1), np.full(shape, -np.inf)
    topk[row[is_shown], place[is_shown]] = item[is_shown]
    scores[row[is_shown], place[is_shown]] = (-(place + 1.0) if rises.any() else score)[is_shown]

    ranks = np.full(len(relevant.item), num_items + 1)
    sought = relevant.owner * num_items + relevant.item
    sorter = np.argsort(row * num_items + item)
    keys = (row * num_items + item)[sorter]
    if len(keys):
        at = np.minimum(np.searchsorted(keys, sought), len(keys) - 1)
        counted_as = place + 1 if given.least_ranks is None else np.maximum(place + 1, given.least_ranks[kept])
        ranks = np.where(keys[at] == sought, counted_as[sorter[at]], ranks)
    candidates = num_items - excluded.lengths[users]
    listed = lists.lengths > 0
    counts = {
        "users_asked": len(users),
        "users_without_list": int((~listed[users]).sum()),
        "users_ignored": int((listed & (row_of < 0)).sum()),
        "entries_left_out": int((is_asked & is_left_out).sum()),
        "lists_short": int((listed[users] & (lengths < np.minimum(longest, candidates))).sum()),
        "lists_cut": int((lengths > shape[1]).sum()),
        "lists_scored_by_rank": len(np.unique(row[1:][rises])),
        "relevant_not_listed": int((ranks > num_items).sum()),
    }
    return Ranking(users, relevant, ranks, topk, scores, candidates), counts


def found(counts: dict[str, int], num_items: int, width: int, longest: int) -> list[str]:
    """Say in words what `match_rankings` counted, a finding a line; nothing about what did not occur."""
    words = {
        "users_without_list": "users asked without a list (counted as empty)",
        "users_ignored": "users of the file whom the protocol does not ask (ignored)",
        "entries_left_out": "entries that their user has in train or validation (left out, lists close up)",
        "lists_short": f"lists shorter than the largest K, {longest} (nothing is shown in their last places)",
        "lists_cut": f"lists longer than the {counted(width, 'item')} that are read (cut)",
        "lists_scored_by_rank": "lists whose scores rise along their ranks (places stand for all scores)",
        "relevant_not_listed": f"relevant items in no list (their rank is {num_items + 1:,}, beyond every K)",
    }
    return [f"{text}: {counts[key]:,}" for key, text in words.items() if counts[key]]


class GivenLists(Ranker):
    """Rankings of tasks by lists from a file: there are no weights, and no vectors to probe."""

    def __init__(self, run: Run, given: RankedLists):
        super().__init__(run.environment, run.data.num_items)
        self.given, self.counts = given, {}

    def rank(self, task, histories, split, top, control="", progress=None, users=None) -> Ranking:
        """Give the file's lists as the ranking of `task`; print what was matched and what was not."""
        if task.candidates is not None:
            raise ValueError(
                f"--protocol={self.config.protocol} ranks candidates of its own, which no file can know; pass another "
                "protocol"
            )
        users = np.flatnonzero(task.relevant.lengths > 0) if users is None else users
        longest = max(self.config.eval_k)
        ranking, counts = match_rankings(self.given, task, users, self.num_items, top, longest)
        if counts["users_without_list"] == len(users):
            raise ValueError(
                "the rankings hold none of the users whom the protocol asks: those of test.csv of --export_split"
            )
        self.counts[task.name] = counts
        print(f"rankings, {task.name}: {counted(len(users), 'user')} asked")
        for line in found(counts, self.num_items, ranking.topk.shape[1], longest):
            print(f"  {line}")
        return ranking


def chooser(asked: str) -> Callable[[Path, list[str]], str]:
    """Make the function that finds the list `asked` ("": the run's own) among those of a file."""

    def choose(path: Path, names: list[str]) -> str:
        chosen = only_list(path, names) if len(names) < 2 and not asked else choose_list(names, asked)
        if chosen is None:
            what = f"has no list {asked!r}" if asked else "has several lists"
            remedy = f"name one behind a colon: {', '.join(names)}" if names else f"it has no column {LIST}"
            raise ValueError(f"--rankings: {path} {what}; {remedy}")
        return chosen

    return choose


def check_split(path: Path, phase: Phase) -> str:
    """Say which split the rankings are for, by the export's split.json beside them; another split is a ValueError."""
    beside, fingerprint = path.parent / SPLIT_FILE, phase.split.fingerprint()
    if not beside.exists():
        return f"rankings: no {SPLIT_FILE} beside them; taken to be for fingerprint {fingerprint}"
    made_for = split_fingerprint(beside)
    if made_for != fingerprint:
        raise ValueError(
            f"{beside}: the rankings are for a split of fingerprint {made_for}, these flags and data give "
            f"{fingerprint}; pass the settings of its command, or rank the split of these flags"
        )
    return f"rankings: made for fingerprint {fingerprint}, by {SPLIT_FILE} beside them"


def score_rankings(settings: Settings, started: float, processes: Processes) -> None:
    """Do `--mode=score`: judge `--rankings`, and write what a run writes into a folder of its own."""
    if processes.world > 1:
        raise ValueError("--mode=score runs in one process; start it without torchrun")
    progress, config = Progress.of(None, started), settings.config()
    path, asked = file_and_list(settings.request.rankings)
    run = prepare(config)
    phase = run.protocol.phases[-1]
    describe(run, trains=False)
    print(check_split(path, phase))
    given = read_rankings(path, run.data, chooser(asked))
    listed = int((given.lists.lengths > 0).sum())
    print(f"rankings: {counted(len(given.lists.item), 'row')} of {counted(listed, 'user')} in {path}")
    if given.name:
        print(f"  the list {given.name}")
    if given.name and (path.parent / RANKS).exists():
        given = with_ranks(given, path.parent / RANKS, run.data)
        print(f"  test items rank as {RANKS} beside it says, behind those they tie with")
    if given.note:
        print(f"  {given.note}")
    judge = GivenLists(run, given)
    progress.spend("read")
    answers = ask_tests(run, phase, judge)
    progress.results |= results_of(answers)
    progress.spend("test")
    with own_run_dir(config.output_dir, config.run_name) as directory:
        write_json(directory / "config.json", config.as_json())
        tracker = Tracker.of(config, directory)
        counts = next(iter(judge.counts.values())) if len(judge.counts) == 1 else judge.counts
        origin = {
            "method": f"rankings of {path.name}" + f", list {given.name}" * bool(asked),
            "seed": config.seed,
            "epoch": None,
            "selected_by": None,
            "validation": None,
            "rankings": {"rows": len(given.lists.item), **counts},
        }
        images = write_results(run, directory, progress, origin, answers)
        tracker.finish(flat(progress.results), images, tables_of(run, progress.results))
