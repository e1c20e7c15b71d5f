"""The frozen settings of a run, and the random streams that come from its seed."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path

# a resumed run may have other values of these: what it gives does not depend on them
FREE_SETTINGS = {
    "cache_dir", "checkpoint_every", "dataset_dir", "device", "dry_run", "eval_block_mb", "output_dir", "resume",
    "run_name", "wandb_mode", "wandb_project",
}  # fmt: skip
# what may be chosen anew for weights that are trained already
EVALUATION_SETTINGS = FREE_SETTINGS - {"checkpoint_every", "dry_run", "resume"} | {
    "user_attribute", "rerank_fair", "rerank_alpha", "exposure_floor", "rerank_pool", "rerank_target", "protocol",
    "protocol_option",
    "warm_threshold", "eval_k", "eval_history_draws", "eval_negatives",
}  # fmt: skip


@dataclass(frozen=True)
class Request:
    """What is asked of the program beside a run's settings: `main.py` documents each under the flag of its name."""

    mode: str
    checkpoint: Path | None
    users: tuple[str, ...]
    control: str | None
    recommendations: Path | None
    rankings: Path | None
    runs: tuple[str, ...]
    seeds: tuple[int, ...]
    export_split: Path | None


def network_name(backbone: str, synthesis_type: str) -> str:
    """What tells networks apart in short: the backbone, or SparseNN's synthesis type."""
    return synthesis_type if backbone == "sparsenn" else backbone


def shown_network(backbone: str, synthesis_type: str) -> str:
    """The same in long: the backbone, and SparseNN's synthesis type behind it."""
    return f"{backbone} ({synthesis_type})" if backbone == "sparsenn" else backbone


@dataclass(frozen=True)
class Config:
    """Every setting of a run after presets are filled in; `main.py` documents each under the flag of its name."""

    # data
    dataset: str
    dataset_dir: Path
    cache_dir: Path
    title_encoder: str
    max_bad_rows: float
    keep_incomplete_users: bool
    user_attribute: tuple[str, ...]
    synthetic_users: int
    synthetic_items: int
    synthetic_interactions: int
    # model and history synthesis
    backbone: str
    backbone_checkpoint: Path | None
    embedding_dim: int
    graph_layers: int
    synthesis_type: str
    sample_size: int
    attention_heads: int
    scorer: str
    user_hidden: tuple[int, ...]
    item_hidden: tuple[int, ...]
    sampling_softmax_temp: float
    upstream_compat: bool
    # fairness
    enable_fairness: bool
    fairness_method: str
    method_option: tuple[str, ...]
    fairness_sampling: bool
    fairness_weight: float
    adversarial_lambda_user: float
    adversarial_lambda_item: float
    adversarial_ramp: float
    item_adversary: str
    adversary_input: str
    mask_sensitive_feature: bool
    # re-ranking
    rerank_fair: bool
    rerank_alpha: float
    exposure_floor: float
    rerank_pool: int
    rerank_target: str
    # optimisation
    recipe: str
    epochs: int
    batch_size: int
    lr: float
    num_negatives: int
    in_batch_negatives: int
    loss: str
    l2: float
    weight_decay: float
    patience: int
    sparse_updates: bool
    device: str
    precision: str
    # evaluation
    protocol: str
    protocol_option: tuple[str, ...]
    warm_threshold: float
    eval_k: tuple[int, ...]
    eval_every: int
    eval_history_draws: int
    eval_negatives: int | None
    eval_block_mb: int
    # run
    seed: int
    output_dir: Path
    run_name: str
    resume: bool
    checkpoint_every: str
    wandb_mode: str
    wandb_project: str
    dry_run: bool

    @property
    def method(self) -> str:
        """The method that trains: `none` (the unfair baseline) unless fairness is enabled."""
        return self.fairness_method if self.enable_fairness else "none"

    @property
    def attribute(self) -> str:
        """The sensitive attribute that methods act on; further ones are reported only."""
        return self.user_attribute[0]

    def as_json(self) -> dict:
        """Plain values, ready for JSON, which has no infinity."""
        values = dataclasses.asdict(self)
        return {
            name: str(value) if isinstance(value, Path) or value == math.inf else value
            for name, value in values.items()
        }

    @staticmethod
    def from_json(values: dict) -> Config:
        """The settings that `as_json` wrote."""
        kinds = {field.name: field.type for field in dataclasses.fields(Config)}
        restored = {}
        for name, value in values.items():
            if isinstance(value, list):
                value = tuple(value)
            elif kinds[name].startswith("Path") and value is not None:
                value = Path(value)
            elif kinds[name] == "float":
                value = float(value)
            restored[name] = value
        return Config(**restored)
