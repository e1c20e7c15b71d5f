"""`--beside`: lists of finished runs that stand beside a run's own in pictures of accuracy against fairness."""

from __future__ import annotations

from dataclasses import replace

from model.evaluation.keys import short_name as short_list
from model.results.finished import Finished, differing_fact, load_lists, short_names
from model.runs.run import Run

FLAG = "--beside"


def lists_beside(run: Run) -> list[Finished]:
    """Read the lists that `--beside` names, with the short names under which they are drawn.

    A run that is missing, of other data or protocol than `run`, or without its first K or attribute is a ValueError.
    """
    config, found = run.config, []
    facts = {
        "dataset": run.data.name,
        "fingerprint": run.fingerprint,
        "protocol": run.protocol.name,
        "description": run.protocol.description,
        "warm_threshold": config.warm_threshold,
    }
    for spec, name in zip(config.beside, short_names(config.beside, config.output_dir, FLAG), strict=True):
        lists = load_lists(spec, config.output_dir, FLAG)
        for one in lists:
            _check(run, facts, one)
        several = len(lists) > 1
        found += [replace(one, name=f"{name}:{short_list(one.root)}" if several else name) for one in lists]
    return found


def _check(run: Run, facts: dict[str, object], other: Finished) -> None:
    reason = differing_fact(facts, other.facts)
    if reason is not None:
        raise ValueError(f"{FLAG}: this run and {other.name} differ in {reason}; name runs on the same data and split")
    k, attribute = run.config.eval_k[0], run.config.attribute
    again = "judge it again with --mode=evaluate"
    if k not in other.ks:
        raise ValueError(f"{FLAG}: {other.name} has K = {', '.join(map(str, other.ks))}, not {k}; {again} --eval_k={k}")
    if attribute not in other.groups:
        raise ValueError(
            f"{FLAG}: {other.name} reports {', '.join(other.groups)}, not {attribute}; {again} "
            f"--user_attribute={attribute}"
        )
