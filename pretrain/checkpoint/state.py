"""Where a run is: what the training loop counts, and what a checkpoint's state.json holds."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from earlybert.core.errors import UserError


@dataclass(kw_only=True)
class RunState:
    """Every rank holds its own, with the same values.

    Attributes:
        stage: name of the stage, number `stage_index` of the plan.
        step: updates made in the stage.
        position: samples consumed in the stage.
        steps_before: updates made in the stages before.
        finished: whether the stage is.
        optimizer_step: updates since the optimizer last started afresh.
        loss_scale: state of fp16's dynamic loss scale, empty in other precisions.
        ticket_sha256: of the ticket that the network was cut by; None where it was not.
        corpus: fingerprint of what it is trained on.
        optimizer: type and numbers of the optimizer, which a run keeps.
        initial_sha256: of the weights that the run began with; None where those were fresh.
        auto_micro_batch: what the stage's `micro_batch: auto` came to, and in which layout; empty where it is a number.
    """

    stage: str
    stage_index: int
    step: int = 0
    position: int = 0
    steps_before: int = 0
    finished: bool = False
    optimizer_step: int = 0
    loss_scale: Mapping[str, Any] = field(default_factory=dict)
    ticket_sha256: str | None
    corpus: str
    optimizer: Mapping[str, Any]
    initial_sha256: str | None = None
    auto_micro_batch: Mapping[str, Any] = field(default_factory=dict)

    @property
    def global_step(self) -> int:
        """Updates of the run so far."""
        return self.steps_before + self.step

    def content(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"global_step": self.global_step}

    @classmethod
    def from_content(cls, content: Mapping[str, Any], path: Path) -> "RunState":
        """The reverse; raises UserError naming `path` where a field lacks."""
        # Of older versions, whose weights were always fresh, and which did not keep the other.
        content = {"initial_sha256": None, "auto_micro_batch": {}, **content}
        names = [field.name for field in fields(cls)]
        if missing := [name for name in names if name not in content]:
            raise UserError(f"{path}: has no {missing[0]!r}")
        return cls(**{name: content[name] for name in names})
