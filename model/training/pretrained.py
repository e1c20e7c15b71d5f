"""`--backbone_checkpoint`: a backbone that another run trained takes the place of a method's first stage."""

from __future__ import annotations

from model import BACKBONES
from model.backbone import Backbone
from model.methods.base import Method
from model.runs.config import UNFAIR, differences
from model.runs.run import Run
from model.training.checkpoints import load_checkpoint


def stages_to_train(method: Method) -> tuple[str, ...]:
    """Name the stages that a run trains: all, or those after the backbone's where another run trained it."""
    stages = method.stages()
    return stages if method.config.backbone_checkpoint is None else stages[1:]


def load_backbone(run: Run, backbone: Backbone) -> None:
    """Load the weights of `--backbone_checkpoint` into `backbone` (Decision 41).

    Raises ValueError where they are a fair run's or of another network, or were trained on other data than a phase of
    this run.
    """
    config, path = run.config, run.config.backbone_checkpoint
    flag = f"--backbone_checkpoint={path}"
    trained, content = load_checkpoint(path)
    if trained.method != UNFAIR:
        raise ValueError(f"{flag} was trained by --fairness_method={trained.method}; pass a run of method {UNFAIR}")
    unread = BACKBONES[config.backbone].unread(config)
    different = differences(trained, config, lambda one: one.network and one.name not in unread)
    if different:
        raise ValueError(f"{flag} holds another network: {'; '.join(different)}; pass the settings of its run")
    for phase in run.protocol.phases:
        found = phase.split.train_fingerprint()
        if found != content["train_fingerprint"]:
            raise ValueError(
                f"{flag} was trained on data of fingerprint {content['train_fingerprint']}, phase {phase.name} of "
                f"--protocol={config.protocol} trains on {found}; pass the data, the protocol and the seed of its run"
            )
    try:
        backbone.load_state_dict(content["backbone"])
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"{flag}: the weights do not fit the backbone ({reason}); pass a whole checkpoint") from error
