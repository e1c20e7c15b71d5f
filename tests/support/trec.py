"""Write rankings as a TREC run."""

from __future__ import annotations


def write_trec(path, frame):
    frame.assign(q="Q0", tag="me")[["user", "q", "item", "rank", "score", "tag"]].to_csv(
        path, sep="\t", header=False, index=False
    )
