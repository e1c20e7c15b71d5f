"""`--backbone_checkpoint`: a backbone that another run trained takes the place of a method's first stage."""

from __future__ import annotations

from typing import Any

from model import BACKBONES
from model.backbone import Backbone
from model.methods.base import Method
from model.runs.config import Config
from model.runs.run import Run
from model.training.checkpoints import load_checkpoint

# the settings that make a network and its inputs what they are
NETWORK_SETTINGS = (
    "backbone", "embedding_dim", "graph_layers", "synthesis_type", "sample_size", "sampling_softmax_temp",
    "attention_heads", "scorer", "user_hidden", "item_hidden", "mask_sensitive_feature", "title_encoder",
    "upstream_compat",
)  # fmt: skip


def stages_to_train(method: Method) -> tuple[str, ...]:
    """Name the stages that a run trains: all, or those after the backbone's where another run trained it."""
    stages = method.stages()
    return stages if method.config.backbone_checkpoint is None else stages[1:]


def load_backbone(run: Run, backbone: Backbone) -> None:
    """Load the weights of `--backbone_checkpoint` into `backbone` (Decision 41).

    Raises ValueError where they are of another network, or were trained on other data than a phase of this run.
    """
    config, path = run.config, run.config.backbone_checkpoint
    shown = f"--backbone_checkpoint={path}"
    trained, content = load_checkpoint(path)
    unread = BACKBONES[config.backbone].unread(config)
    different = [_shown(name, trained, config) for name in NETWORK_SETTINGS if name not in unread]
    different = [line for line in different if line]
    if different:
        raise ValueError(f"{shown} holds another network: {'; '.join(different)}; pass the settings of its run")
    for phase in run.protocol.phases:
        found = phase.split.train_fingerprint()
        if found != content["train_fingerprint"]:
            raise ValueError(
                f"{shown} was trained on data of fingerprint {content['train_fingerprint']}, phase {phase.name} of "
                f"--protocol={config.protocol} trains on {found}; pass the data, the protocol and the seed of its run"
            )
    try:
        backbone.load_state_dict(content["backbone"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{shown}: the weights do not fit the backbone ({reason}); pass a whole checkpoint") from error


def _shown(name: str, trained: Config, config: Config) -> str | None:
    before, now = getattr(trained, name), getattr(config, name)
    return None if before == now else f"--{name} was {_text(before)}, is {_text(now)}"


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
