"""Timings and kept results; what the benchmarks share."""

import time
import timeit
from collections.abc import Callable

import torch


def gemm_peak(timer: Callable[[], float] = time.perf_counter) -> float:
    """Measure the FLOPs per second of a large float32 matrix product: the best of several."""
    matrix = torch.randn(2048, 2048)
    return 2 * 2048**3 / min(timeit.repeat(lambda: matrix @ matrix, timer=timer, number=1, repeat=8))
