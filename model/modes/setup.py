"""The parts of a run: data read, protocol applied, backbone and method built; and what the run is, in words."""

from __future__ import annotations

import numpy as np
import torch

from data.datareader import READERS
from data.messages import suggestion, wrapped
from data.options import parse_options
from data.protocols import PROTOCOLS
from data.protocols.base import Protocol, ProtocolSettings
from data.readers.options import DEFAULT_DATASET_DIR, ReadOptions, SyntheticOptions
from data.structs import Group, InteractionData
from model import BACKBONES, METHODS
from model.evaluation.probes import held_out_users
from model.methods.base import Method
from model.runs.config import Config
from model.runs.environment import Environment
from model.runs.processes import ALONE, Processes
from model.runs.run import Run
from model.runs.settings import preset_lines
from model.runs.streams import stream_seeds
from model.runs.surroundings import torchrun_ranks


def _device(name: str) -> torch.device:
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device=cuda: this machine has no CUDA device; use --device=cpu or --device=auto")
    if name == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    local, count = (torchrun_ranks() or {}).get("LOCAL_RANK", 0), torch.cuda.device_count()
    if local >= count:
        raise ValueError(f"process {local} of this machine has none of its {count} GPUs; lower --nproc_per_node")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def reported_groups(data: InteractionData, config: Config) -> dict[str, Group]:
    """Give the user groups that `--user_attribute` names, by attribute; an unknown one is a ValueError."""
    unknown = [name for name in config.user_attribute if name not in data.user_groups]
    if unknown:
        near = suggestion(unknown[0], data.user_groups)
        raise ValueError(f"--user_attribute={','.join(unknown)}: {data.name} has {', '.join(data.user_groups)}{near}")
    return {name: data.user_groups[name] for name in config.user_attribute}


def check_request(config: Config, processes: Processes) -> None:
    """Refuse settings that do not go together, before any data are read (ValueError)."""
    reason = METHODS[config.method].unsupported(config)
    if reason:
        raise ValueError(
            f"--fairness_method={config.method} on --backbone={config.backbone} with --protocol={config.protocol}: "
            f"{reason}"
        )
    if processes.world > 1 and config.upstream_compat and config.synthesis_type == "gru":
        raise ValueError("--upstream_compat with --synthesis_type=gru draws noise row by row: run it in one process")
    for name in sorted(PROTOCOLS[config.protocol].unread):
        if getattr(config, name):
            raise ValueError(
                f"--{name}={getattr(config, name)} has no effect with --protocol={config.protocol}; leave it out"
            )
    if config.rerank_fair and config.rerank_pool < config.eval_k[0]:
        raise ValueError(
            f"--rerank_pool={config.rerank_pool}: re-ranking fills lists of K = {config.eval_k[0]} (the first of "
            "--eval_k) from the pool; raise it to at least K, or lower --eval_k"
        )


def read_data(config: Config, may_download: bool = True) -> InteractionData:
    """Read the data set.

    A missing one is downloaded where it `may_download`, into a folder that exists or the default one, and never by a
    dry run, which writes nothing (Decision 44).
    """
    synthetic = SyntheticOptions(config.synthetic_users, config.synthetic_items, config.synthetic_interactions)
    options = ReadOptions(
        dataset_dir=config.dataset_dir,
        title_encoder=config.title_encoder,
        cache_dir=config.cache_dir,
        max_bad_rows=config.max_bad_rows,
        keep_incomplete_users=config.keep_incomplete_users,
        may_download=may_download and (config.dataset_dir == DEFAULT_DATASET_DIR or config.dataset_dir.is_dir()),
        may_write=not config.dry_run,
        seed=config.seed,
        synthetic=synthetic,
    )
    return READERS[config.dataset](options)


def apply_protocol(config: Config, data: InteractionData, seed: int) -> Protocol:
    """Apply the protocol to `data`; `seed` alone decides its draws. Data without a test item are a ValueError."""
    if max(config.eval_k) > data.num_items:
        raise ValueError(
            f"--eval_k={','.join(map(str, config.eval_k))}: a list cannot be longer than the catalogue of {data.name}, "
            f"{data.num_items} items; lower --eval_k"
        )
    rules = PROTOCOLS[config.protocol]
    settings = ProtocolSettings(
        warm_threshold=config.warm_threshold,
        ks=config.eval_k,
        epochs=config.epochs,
        every=config.eval_every,
        patience=config.patience,
        eval_negatives=config.eval_negatives,
        upstream_compat=config.upstream_compat,
    )
    options = parse_options(rules.Options, config.protocol_option, "protocol_option", config.dataset)
    protocol = rules(data, settings, np.random.default_rng(seed), options)
    if not any(len(task.relevant.item) for phase in protocol.phases for task in phase.tests):
        raise ValueError(
            f"--protocol={config.protocol} finds no test item in {data.name}: leave-one-out needs users with three "
            "interactions, one each to train, validate and test; use more data"
        )
    return protocol


def prepare(config: Config, processes: Processes = ALONE, may_download: bool = True) -> Run:
    """Read the data, apply the protocol, and draw the users that are held out from the adversaries."""
    check_request(config, processes)
    seeds, device = stream_seeds(config.seed), _device(config.device)
    data = read_data(config, may_download)
    groups = reported_groups(data, config)
    protocol = apply_protocol(config, data, seeds["split"])
    if protocol.data is not None:
        data, groups = protocol.data, reported_groups(protocol.data, config)
    held_out = held_out_users(groups[config.attribute].codes, seed=seeds["probe"])
    return Run(data, protocol, Environment(config, groups, held_out, seeds, device, processes))


def describe(run: Run, trains: bool = True) -> None:
    """Print what was read, who is in which group and, of a run that `trains`, the settings that presets filled in."""
    config = run.config
    print("\n".join(map(wrapped, run.data_lines())))
    if not trains:
        return
    print("settings, by where they come from:")
    print("\n".join(wrapped(f"  {line}") for line in preset_lines(config)))


def build(run: Run) -> tuple[torch.nn.Module, Method]:
    """Make the backbone and the method that trains it."""
    backbone = BACKBONES[run.config.backbone].build(run.data, run.config, run.seeds["initialisation"], run.device)
    backbone.begin_phase(run.protocol.phases[0].split)
    with torch.random.fork_rng(devices=[]):
        # networks of the method's own
        torch.manual_seed(run.seeds["initialisation"])
        method = METHODS[run.config.method](backbone, run.environment)
    return backbone, method
