"""`--seeds`: one run per seed, each in its own process, side by side where cores allow, and their summary."""

from __future__ import annotations

import dataclasses
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from data.messages import wrapped
from model.comparison.seeds_page import write_seeds_page
from model.comparison.seeds_summary import Seeds, folder_name, terminal_summary, write_summary
from model.evaluation.evaluator import Evaluator
from model.modes.dry_run import estimate
from model.modes.export_split import export_split
from model.modes.setup import build, describe, prepare
from model.results.finished import FOLDER_OF_SEEDS, read_json, read_result
from model.results.pages import typed_command
from model.runs.config import Config, differences
from model.runs.files import lock_run_dir, reserve_run_dir
from model.runs.processes import ALONE, Processes
from model.runs.settings import Settings
from model.training.progress import EPOCH_MARKS
from model.training.signals import Stopped, resume_command

MAIN = Path(__file__).parents[2] / "main.py"
# what a run prints that is shown while it runs
NEWS = re.compile(r"epoch \d+/|resumed |no better ")


@dataclasses.dataclass(frozen=True)
class Plan:
    """Which seeds to run, how many at a time, with how many threads each (None: as torch chooses, on a GPU)."""

    settings: Settings
    config: Config
    seeds: tuple[int, ...]
    at_once: int
    threads: int | None

    @property
    def directory(self) -> Path:
        """The folder of the seeds' run folders."""
        return self.config.output_dir / self.config.run_name

    def folder(self, seed: int) -> Path:
        """Give the run folder of one seed."""
        return self.directory / folder_name(seed)

    def has_finished(self, seed: int) -> bool:
        """Tell whether the run of one seed has finished."""
        return (self.folder(seed) / "result.json").exists()

    def on_host(self, seed: int) -> Config:
        """Give the settings of one seed for work of the parent process, which leaves a GPU to the seeds."""
        device = self.config.device if self.threads is not None else "cpu"
        return dataclasses.replace(self.config, seed=seed, device=device)

    def command(self, seed: int) -> list[str]:
        """Give the command line of one seed's run."""
        changes = {"seed": seed, "output_dir": self.directory, "run_name": folder_name(seed)}
        return [sys.executable, str(MAIN), *self.settings.arguments({"seeds", "config"}, changes)]

    def shown(self) -> str:
        """Give the plan in a line."""
        each = "" if self.threads is None else f", {self.threads} thread{'s' * (self.threads > 1)} each"
        return f"{len(self.seeds)} seeds, {self.at_once} at a time{each}; folders and logs in {self.directory}"

    def environment(self) -> dict[str, str]:
        """Give the environment of a seed's process."""
        threads = {} if self.threads is None else {"OMP_NUM_THREADS": str(self.threads)}
        return {**os.environ, **threads, "PYTHONUNBUFFERED": "1"}


def plan(settings: Settings) -> Plan:
    """Share the machine out: threads times processes are at most its cores; on a GPU seeds take turns."""
    config, seeds = settings.config(), settings.request.seeds
    if config.device != "cpu" and torch.cuda.is_available():
        return Plan(settings, config, seeds, 1, None)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    given_threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    threads = int(given_threads) if given_threads.isdecimal() and int(given_threads) else max(1, cores // len(seeds))
    return Plan(settings, config, seeds, max(1, min(len(seeds), cores // threads)), threads)


def run_seeds(settings: Settings, processes: Processes) -> None:
    """Run every one of `--seeds` in a process of its own, then write and print their mean and spread.

    A seed that fails does not stop the others: the ValueError that names it comes after the summary of the rest.
    """
    if processes.world > 1:
        raise ValueError("--seeds starts processes of its own; start it without torchrun")
    work = plan(settings)
    config, seeds, directory = work.config, work.seeds, work.directory
    if config.dry_run:
        _estimate(work)
        return
    # this also finds errors in settings or data once, and fills the caches that all seeds read
    drawn, expected = _fingerprints(work)
    reserve_run_dir(config.output_dir, config.run_name, config.resume, FOLDER_OF_SEEDS)
    used = [folder_name(seed) for seed in seeds if work.folder(seed).exists()]
    if used and not config.resume:
        raise ValueError(
            f"{directory} already holds {', '.join(used)}; pass another --run_name, go on with --resume, or delete them"
        )
    with lock_run_dir(directory):
        print(wrapped(work.shown()), flush=True)
        print(EPOCH_MARKS, flush=True)
        failed = Children(work).run(_kept(work, expected))
        results = {seed: read_result(work.folder(seed)) for seed in seeds if seed not in failed}
        _check(work, results, expected)
        if results:
            _summarise(directory, Seeds(results, failed, drawn, config.eval_k[0]))
    if failed:
        each = "; ".join(f"seed {seed}: {reason}" for seed, reason in failed.items())
        raise ValueError(
            f"{len(failed)} of {len(seeds)} seeds failed ({each}); logs are in {directory}, and the same command with "
            f"--resume and --run_name={config.run_name} tries them again"
        )


def _summarise(directory: Path, seeds: Seeds) -> None:
    """Write what the seeds gave together, and print it."""
    write_summary(directory, seeds)
    write_seeds_page(directory, seeds, typed_command())
    print(terminal_summary(seeds))
    print(f"\nEvery metric is in {directory}: seeds.json, seeds.csv, seeds.tex, report.html", flush=True)


def _estimate(work: Plan) -> None:
    """Print what the first of the seeds would do and cost, and how many there are; export its split if asked."""
    run = prepare(work.on_host(work.seeds[0]))
    describe(run)
    folder = work.settings.request.export_split
    if folder is not None:
        export_split(run, folder)
    backbone, method = build(run)
    estimate(run, backbone, method, Evaluator(backbone, method, run.environment))
    print(wrapped(work.shown()))


def _fingerprints(work: Plan) -> tuple[bool, dict[int, str]]:
    """Tell whether the seed draws the data or their split, and give the fingerprints that are known before any run."""

    def of(seed: int, aloud: bool = False) -> str:
        run = prepare(work.on_host(seed))
        if aloud:
            describe(run)
        return run.fingerprint

    first, *rest = work.seeds
    known = {first: of(first, aloud=True)} | {seed: of(seed) for seed in rest[:1]}
    if len(set(known.values())) == 1:
        return False, dict.fromkeys(work.seeds, known[first])
    # the data of seeds that ran before may have changed since
    return True, known | {seed: of(seed) for seed in rest[1:] if work.has_finished(seed)}


def _kept(work: Plan, expected: Mapping[int, str]) -> list[int]:
    """List the seeds that have finished before; one with other settings or other data is a ValueError."""
    kept = [seed for seed in work.seeds if work.has_finished(seed)]
    for seed in kept:
        then = type(work.config).from_json(read_json(work.folder(seed) / "config.json"))
        changed = differences(then, work.config, lambda one: not one.free and one.name != "seed")
        if changed:
            raise ValueError(
                f"cannot go on beside {work.folder(seed)}: {'; '.join(changed)}. Pass what it was run with, or another "
                "--run_name"
            )
    _check(work, {seed: read_result(work.folder(seed)) for seed in kept}, expected)
    return kept


def _check(work: Plan, results: Mapping[int, dict], expected: Mapping[int, str]) -> None:
    for seed, result in results.items():
        fingerprint = result["fingerprint"]
        if fingerprint != expected.get(seed, fingerprint):
            raise ValueError(
                f"{work.folder(seed)} is of data with fingerprint {fingerprint}, and the data have {expected[seed]} "
                "now: no mean over both; pass the data that it was run on, or another --run_name"
            )


class Children:
    """The processes of the seeds: started in turn, watched, and sent the signals that their parent gets."""

    def __init__(self, work: Plan):
        self.work = work
        self._running: dict[int, subprocess.Popen] = {}
        self._number = 0
        self._speech = threading.Lock()

    def run(self, kept: list[int]) -> dict[int, str]:
        """Run all seeds but those `kept`; give why each that failed did. A signal ends in `Stopped`."""
        for seed in kept:
            self._say(f"seed {seed}  kept: it has finished before")
        waiting = [seed for seed in self.work.seeds if seed not in kept]
        previous = {number: signal.signal(number, self._pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            with ThreadPoolExecutor(self.work.at_once) as pool:
                reasons = dict(zip(waiting, pool.map(self._one, waiting), strict=True))
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
        failed = {seed: reason for seed, reason in reasons.items() if reason is not None}
        if self._number and failed:
            raise Stopped(self._number, resume_command(self.work.config, ALONE))
        return failed

    def _pass_on(self, number: int, frame) -> None:
        self._number = number
        for process in list(self._running.values()):
            process.send_signal(number)

    def _say(self, text: str) -> None:
        with self._speech:
            print(text, flush=True)

    def _one(self, seed: int) -> str | None:
        """Run one seed to its end, with its output in its log; say why it failed, or None where it did not."""
        if self._number:
            return "not started"
        last, shown = "", False
        # a session of its own: a terminal's Ctrl-C reaches the parent alone, which passes it on once
        with (
            open(self.work.folder(seed).with_suffix(".log"), "a", encoding="utf-8") as log,
            subprocess.Popen(
                self.work.command(seed),
                env=self.work.environment(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            ) as process,
        ):
            self._running[seed] = process
            if self._number:
                process.send_signal(self._number)
            for line in process.stdout:
                log.write(line)
                log.flush()
                last = line.strip() or last
                # an indented line goes on with the one before it
                shown = bool(NEWS.match(line)) or (shown and line.startswith(" "))
                if shown:
                    self._say(wrapped(f"seed {seed}  {line.rstrip()}"))
        del self._running[seed]
        return self._ended(seed, process.returncode, last)

    def _ended(self, seed: int, code: int, last: str) -> str | None:
        if code == 0:
            result = read_result(self.work.folder(seed))
            by, value = result["selected_by"], result["validation"]
            chosen = by if value is None else f"validation {by} {value:.4f}"
            self._say(f"seed {seed}  finished: epoch {result['epoch']}, {chosen}")
            return None
        if code < 0:
            last = f"killed by {signal.Signals(-code).name}, last line: {last or 'none'}"
        last = last.removeprefix("error: ")
        self._say(f"seed {seed}  {'' if self._number else 'failed: '}{last}")
        return last
