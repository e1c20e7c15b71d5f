"""Methods that also train backbones which are fitted at once (SLIM)."""

from __future__ import annotations

from data.protocols.base import Phase
from model.methods.base import Method, Schedule
from model.slim import Fit


class Fitted(Method):
    """Training of any backbone: one fitted at once in a single epoch without steps, others by gradient steps."""

    fits_at_once = True

    def schedule(self, stage: str, phase: Phase) -> Schedule:
        """Give the one epoch that fits the backbone; as in `Method` for other backbones."""
        if self.backbone.fitted:
            return Schedule(self.config.batch_size, 1, 1, phase.patience)
        return super().schedule(stage, phase)

    def passes(self, stage: str, epoch: int) -> tuple[str, ...]:
        """Give no pass, as `begin_epoch` fits the backbone; as in `Method` for other backbones."""
        return () if self.backbone.fitted else super().passes(stage, epoch)

    def begin_epoch(self, stage: str, epoch: int) -> None:
        """Fit the backbone, where it is one to fit, and print what came of it."""
        if not self.backbone.fitted:
            return
        fit = self.fit()
        if self.environment.processes.first:
            print(
                f"fitted in {fit.iterations} iterations: objective {fit.objective:.1f}, relative residual "
                f"{fit.residual:.1e}",
                flush=True,
            )

    def fit(self) -> Fit:
        """Fit the backbone anew."""
        return self.backbone.fit(progress=self.environment.processes.first)
