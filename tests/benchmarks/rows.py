"""Tables of results whose rows are runs: run with each seed, kept as lines of JSON, and read back.

A row runs once for each of its seeds, by the command line that is kept with its numbers; a run that was cut off goes
on, one that is kept is not run again.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from data.structs import Split
from model.evaluation.evaluator import Evaluator
from model.evaluation.keys import REFERENCE, by_list, short_name
from model.modes.setup import build, prepare
from model.runs.run import Run
from model.training.checkpoints import load_checkpoint

ROOT = Path(__file__).parents[2]
FOLDER = Path(__file__).parent / "results"
SEEDS = (0, 1, 2)
# one core a run, and memory that glibc keeps instead of giving it back
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_TRIM_THRESHOLD_": "2147483647",
    "MALLOC_MMAP_THRESHOLD_": "1073741824",
}


@dataclass(frozen=True)
class Row:
    """A row of a table: its flags, the seeds that it runs with, and the row whose backbone it takes ("": its own)."""

    flags: str
    seeds: tuple[int, ...] = SEEDS
    backbone: str = ""


@dataclass(frozen=True)
class Rows:
    """The rows of one table, by name; `prefix` begins the names of their runs and of the file that keeps them.

    `keeps` tells which metrics are kept, by their keys without `test/`; those of yardsticks begin with `reference/`.
    """

    prefix: str
    common: str
    rows: Mapping[str, Row]
    keeps: Callable[[str], bool] = lambda key: (
        not any(part in f"/{key}" for part in ("/gender/", "/popularity/", f"/{REFERENCE}/"))
    )

    @property
    def file(self) -> Path:
        """Where runs are kept."""
        return FOLDER / f"{self.prefix}.jsonl"

    def run_name(self, row: str, seed: int) -> str:
        """Name the folder of a row's run."""
        plain = "".join(letter if letter.isalnum() or letter in ".-" else "-" for letter in row)
        return f"{self.prefix}-{plain}-seed{seed}".lower()

    def kept(self) -> list[dict]:
        """Read all kept runs."""
        return _lines(self.file, self.file.stat().st_size) if self.file.exists() else []

    def of(self, row: str, name: str = "") -> list[dict[str, float]]:
        """Give the metrics of a row's list `name` ("": the run's one list), one dict for each kept seed."""
        runs = sorted((run for run in self.kept() if run["row"] == row), key=lambda run: run["seed"])
        return [lists_of(run["metrics"])[name] for run in runs]

    def execute(self, row: str, seed: int, dataset_dir: Path, output_dir: Path) -> None:
        """Run one row with one seed, or what is left of it, and keep its numbers."""
        if any((kept["row"], kept["seed"]) == (row, seed) for kept in self.kept()):
            return
        own, flags, name = self.rows[row], self.flags(row, seed), self.run_name(row, seed)
        where = [f"--dataset_dir={dataset_dir}", f"--output_dir={output_dir}", f"--run_name={name}", "--resume"]
        if own.backbone:
            where.append(f"--backbone_checkpoint={output_dir / self.run_name(own.backbone, seed)}")
        with (output_dir / f"{name}.log").open("a") as log:
            command = [sys.executable, "main.py", *shlex.split(flags), *where]
            done = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, env=os.environ | ENVIRONMENT, check=False)
        if done.returncode:
            print(f"{row}, seed {seed}: exit code {done.returncode}, see {output_dir / name}.log")
            return
        self.keep(row, seed, output_dir / name)

    def flags(self, row: str, seed: int) -> str:
        """Give the flags of a row's run, without those that say where files are."""
        return f"{self.common} {self.rows[row].flags} --seed={seed}"

    def keep(self, row: str, seed: int, folder: Path) -> None:
        """Keep the numbers of a row's finished run in `folder`."""
        result, cost = (json.loads((folder / file).read_text()) for file in ("result.json", "cost.json"))
        metrics = {
            key.removeprefix("test/"): round(value, 6)
            for key, value in result["metrics"].items()
            if value is not None and self.keeps(key.removeprefix("test/"))
        }
        backbone = self.rows[row].backbone
        after = f" --backbone_checkpoint=runs/{self.run_name(backbone, seed)}" if backbone else ""
        command = f"python main.py {self.flags(row, seed)}{after}"
        kept = {"row": row, "seed": seed, "command": command, "commit": result["commit"]}
        kept |= {"fingerprint": result["fingerprint"], "epoch": result["epoch"], "epochs": cost["epochs"]}
        kept |= {"train_seconds": round(cost["seconds"]["train"]), "torch": cost["torch"], "metrics": metrics}
        with self.file.open("a") as file:
            file.write(json.dumps(kept) + "\n")
        print(f"{row}, seed {seed}: kept", flush=True)

    def parser(self, description: str) -> argparse.ArgumentParser:
        """Make the parser of the command line."""
        parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
        parser.add_argument("--run", action="store_true")
        parser.add_argument("--rows", nargs="*", default=list(self.rows), choices=list(self.rows))
        parser.add_argument("--seeds", type=int, nargs="*", default=list(SEEDS))
        parser.add_argument("--jobs", type=int, default=1)
        parser.add_argument("--dataset_dir", type=Path, default=Path("datasets"))
        parser.add_argument("--output_dir", type=Path, default=Path("runs"))
        return parser

    def run(self, arguments: argparse.Namespace) -> None:
        """Run the rows that are asked for; those whose backbone others take come first."""
        arguments.output_dir.mkdir(parents=True, exist_ok=True)
        folders = arguments.dataset_dir.absolute(), arguments.output_dir.absolute()
        for first in (True, False):
            asked = [
                (row, seed)
                for seed in arguments.seeds
                for row in arguments.rows
                if seed in self.rows[row].seeds and first == (not self.rows[row].backbone)
            ]
            with ThreadPoolExecutor(arguments.jobs) as pool:
                list(pool.map(lambda pair: self.execute(*pair, *folders), asked))


@functools.cache
def _lines(file: Path, size: int) -> list[dict]:
    """Read the lines of a file, which grows and never changes otherwise: once for each `size`."""
    return [json.loads(line) for line in file.read_text().splitlines()]


def served(run: Path, dataset_dir: Path) -> tuple[Run, Split, Evaluator]:
    """Load a finished run's checkpoint, for probes of its vectors: the run, its split, and its evaluator."""
    config, checkpoint = load_checkpoint(run)
    setting = prepare(replace(config, dataset_dir=dataset_dir, device="cpu", backbone_checkpoint=None))
    backbone, method = build(setting)
    backbone.load_state_dict(checkpoint["backbone"])
    method.load_state_dict(checkpoint["method"])
    split = setting.protocol.phases[0].split
    if split.fingerprint() != checkpoint["fingerprint"]:
        raise ValueError(f"{run}: the data in {dataset_dir} are not those of the run")
    return setting, split, Evaluator(backbone, method, setting.environment)


def lists_of(metrics: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """Give kept metrics by list: its name without `test` -> metric -> value."""
    results = by_list({key if key.startswith(REFERENCE) else f"test/{key}": metrics[key] for key in metrics})
    return {name if name.startswith(REFERENCE) else short_name(name): results[name] for name in results}


def values(runs: list[Mapping[str, float]], keys: list[str]) -> Iterator[np.ndarray]:
    """Give the values over seeds `[S]` of each of `keys`."""
    for key in keys:
        yield np.array([metrics[key] for metrics in runs])


def shown(numbers: np.ndarray, digits: int = 4) -> str:
    """Format mean ± standard deviation over seeds, without the leading zero."""
    text = f"{numbers.mean():.{digits}f}".replace("0.", ".", 1)
    return text + f" ± {numbers.std(ddof=1):.{digits}f}".replace("0.", ".") if len(numbers) > 1 else text
