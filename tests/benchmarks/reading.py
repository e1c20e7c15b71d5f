"""Time from raw files to a split, and from the cache, both in one run on one machine, after imports.

    python -m tests.benchmarks.reading --dataset_dir=./datasets [--title_encoder=hash] [--repeats 5]

Every data set found is read, both forms of BookCrossing too. Times are the median of the repeats; the first read,
which fills `--cache_dir` as a run does, is not among them. A model's title vectors come from there on raw reads too;
"hash" makes them anew. Only ratios are worth quoting: the times are this machine's.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from data.datareader import READERS
from data.protocols.base import ProtocolSettings
from data.protocols.loo import leave_one_out
from data.readers.options import ReadOptions
from data.readers.rows import DataError

SOURCES = (("ml", "."), ("bx", "BookCrossing"), ("bx", "BookCrossing-2004"), ("modcloth", "."))
LEAVE_ONE_OUT = ProtocolSettings(warm_threshold=0.2, ks=(10,), epochs=1, patience=1)


def timed(call: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Measure the median seconds of a call; give its last result too."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        result = call()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), result


def measure(name: str, options: ReadOptions, repeats: int) -> list:
    """Make a row of the table: seconds of each stage, rows per second, and how much faster the cache is."""
    reader = READERS[name]
    reader(options)
    raw, _ = timed(lambda: reader.__wrapped__(options), repeats)
    cached, data = timed(lambda: reader(options), repeats)
    split, _ = timed(lambda: leave_one_out(data, LEAVE_ONE_OUT, np.random.default_rng(0)), repeats)
    rows = sum(data.report.rows.values())
    seconds = [f"{value:.3f}" for value in (raw, raw + split, cached, cached + split)]
    ratios = [f"{raw / cached:.1f}", f"{(raw + split) / (cached + split):.1f}"]
    return [", ".join(data.report.rows), f"{rows:,}", *seconds, f"{rows / raw:,.0f}", *ratios]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset_dir", type=Path, default=Path("datasets"))
    parser.add_argument("--title_encoder", default="hash")
    parser.add_argument("--cache_dir", type=Path, default=Path("~/.cache/fabuhs"))
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    cache_dir = arguments.cache_dir.expanduser()
    table = []
    for name, folder in SOURCES:
        if name == "ml" and not (arguments.dataset_dir / "ml-1m").is_dir():
            continue  # its reader would download it
        options = ReadOptions(arguments.dataset_dir / folder, arguments.title_encoder, cache_dir)
        try:
            table.append(measure(name, options, arguments.repeats))
        except DataError as error:
            print(f"left out: {error}")
    columns = ["files", "rows", "raw", "raw -> split", "cached", "cached -> split", "rows/s raw", "x read", "x split"]
    print(tabulate(table, columns, "github", disable_numparse=True))


if __name__ == "__main__":
    main()
