"""The search: recordings of the fp32 coefficient masters, distances between the masks they give, when to stop.

Shape suffixes: L layers, U units (heads or neurons) of a layer, K recordings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import safetensors.numpy
from numpy.typing import NDArray

from earlybert.core.errors import UserError
from earlybert.core.files import file_hash, open_to_readers, whole_file, write_json
from earlybert.pretrain.network.facts import UNITS, Unit
from earlybert.pretrain.network.parameters import facts_of, layer_of
from earlybert.pretrain.ticket.drawing import draw, keep_mask, mask_distance
from earlybert.pretrain.ticket.ticket import FullShape, Mask, Ratios, Ticket, TicketRule, TicketSource

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """The search for a ticket, on the full network at phase 1's length, batch and learning-rate curve.

    Args:
        steps: optimizer steps at most. Coefficients fall by about the learning rate a step, so the search's rates must
            add up to well below 1: around zero the order of the coefficients is noise (docs/experiments.md).
        lambda_heads: weight of the L1 term on head coefficients.
        lambda_neurons: weight of the L1 term on neuron coefficients.
        snapshot_every: steps between recordings of the coefficients.
        stop_window: stop once the newest mask agrees with this many before it; 0 never stops early.
        stop_threshold: largest mask distance that counts as agreeing, for heads and for neurons.
        stop_nats: nats below guessing by word frequencies that the validation loss of masked tokens must be before the
            masks' agreement stops the search; 0, the default, is the paper's: agreement alone.
    """

    steps: int = 400
    lambda_heads: float = 1e-4
    lambda_neurons: float = 1e-4
    snapshot_every: int = 20
    stop_window: int = 0
    stop_threshold: float = 0.05
    stop_nats: float = 0.0


# What they are: `rankings.py`.
RankingName = Literal["coefficient", "importance", "weights"]


@dataclass(frozen=True, kw_only=True)
class DrawConfig(TicketRule):
    """How a ticket is drawn where a search ends: by which rule, of units in which order.

    Args:
        ranking: what the search records and the rule cuts the smallest of: the magnitude of "coefficient" (the paper),
            first-order "importance" to the loss, or the norm of the "weights".
    """

    ranking: RankingName = "coefficient"

    @property
    def rule(self) -> TicketRule:
        """What every ticket has, also one that was not searched for."""
        return TicketRule(**{field.name: getattr(self, field.name) for field in fields(TicketRule)})


@dataclass(frozen=True)
class Snapshot:
    """What units are ranked by, [L, U] in fp32, after `step` updates: coefficients, or what stands in their place."""

    step: int
    heads_LU: NDArray[np.float32]
    neurons_LU: NDArray[np.float32]

    @classmethod
    def from_masters(cls, step: int, masters: "dict[str, Tensor]") -> "Snapshot":
        """From the numbers of all units, by the name of their coefficients."""
        rows: dict[Unit, dict[int, NDArray[np.float32]]] = {unit: {} for unit in UNITS}
        for name, tensor in masters.items():
            unit = facts_of(name).unit
            assert unit is not None, name
            rows[unit][layer_of(name)] = tensor.numpy().copy()
        return cls(step, *(np.stack([rows[unit][layer] for layer in sorted(rows[unit])]) for unit in UNITS))

    def masks(self, rule: TicketRule) -> dict[str, Mask]:
        """What the rule would keep; without the width multiple, which is a matter of hardware."""
        return {
            "heads": keep_mask(self.heads_LU, rule.head_ratio, rule.head_scope),
            "neurons": keep_mask(self.neurons_LU, rule.neuron_ratio, rule.neuron_scope),
        }


def snapshot_path(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}.safetensors"


def save_snapshot(folder: Path, snapshot: Snapshot) -> None:
    with whole_file(snapshot_path(folder, snapshot.step)) as temporary:
        try:
            safetensors.numpy.save_file({"heads": snapshot.heads_LU, "neurons": snapshot.neurons_LU}, temporary)
            open_to_readers(temporary)
        except safetensors.SafetensorError as error:
            raise OSError(str(error)) from None


def load_snapshot(path: Path) -> Snapshot:
    """Reads one recording; raises UserError."""
    try:
        tensors = safetensors.numpy.load_file(path)
        return Snapshot(int(path.stem.removeprefix("step-")), tensors["heads"], tensors["neurons"])
    except FileNotFoundError:
        steps = recorded_steps(path.parent)
        raise UserError(f"{path}: no coefficients were recorded at this step; recorded are {steps}") from None
    except (KeyError, ValueError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: is not a coefficient recording ({error})") from None


def recorded_steps(folder: Path) -> list[int]:
    """The steps that a search has recorded; other files in its folder, such as copies, are none."""
    steps = (path.stem.removeprefix("step-") for path in folder.glob("step-*.safetensors"))
    return sorted(int(step) for step in steps if step.isdecimal())


class MaskHistory:
    """The masks drawn at each recording so far, all distances between them, and whether they have settled."""

    def __init__(self, folder: Path, rule: TicketRule, search: SearchConfig, up_to_step: int) -> None:
        """Begins with what an interrupted run recorded up to its checkpoint."""
        self.folder, self.rule, self.search = folder, rule, search
        self.steps: list[int] = []
        self.masks: list[dict[str, Mask]] = []
        self._unsaved: list[Snapshot] = []
        # For heads and for neurons the distance of any two recorded masks, symmetric [K, K] (EarlyBERT Figure 1).
        self.matrices: dict[str, list[list[float]]] = {units: [] for units in UNITS}
        for step in recorded_steps(folder):
            if step <= up_to_step:
                self.add(load_snapshot(snapshot_path(folder, step)))
        self._unsaved.clear()

    def add(self, snapshot: Snapshot) -> None:
        self.steps.append(snapshot.step)
        newest = snapshot.masks(self.rule)
        for units, rows in self.matrices.items():
            distances = [mask_distance(masks[units], newest[units]) for masks in self.masks]
            for row, distance in zip(rows, distances, strict=True):
                row.append(distance)
            rows.append([*distances, 0.0])
        self.masks.append(newest)
        self._unsaved.append(snapshot)

    def newest_distances(self) -> dict[str, list[float]]:
        """Distance of the newest mask to each one before it, oldest first."""
        return {units: rows[-1][:-1] for units, rows in self.matrices.items()}

    def settled(self) -> bool:
        """Whether the newest masks agree with all of the window before them (Early-Bird tickets' criterion)."""
        window = self.search.stop_window
        # Before the first update the units may all be equal, and then the mask says nothing.
        if window == 0 or len([step for step in self.steps if step > 0]) <= window:
            return False
        distances = self.newest_distances().values()
        return all(max(of_units[-window:]) <= self.search.stop_threshold for of_units in distances)

    def save(self) -> None:
        """Writes the new recordings and mask_distance.json: the steps, and both symmetric [K, K] matrices.

        Raises OSError on a full disk; what could not be written is tried again at the next call.
        """
        while self._unsaved:
            save_snapshot(self.folder, self._unsaved[0])
            self._unsaved.pop(0)
        write_json(self.folder / "mask_distance.json", {"steps": self.steps, **self.matrices})


def draw_from_snapshot(
    folder: Path,
    step: int | None,
    model: FullShape,
    how: DrawConfig,
    seed: int,
    wider: Sequence[Ratios] = (),
    stage: str = "search",
) -> Ticket:
    """Draws a ticket from a recorded step, the last one when None, of a run with this seed; raises UserError.

    `wider` are the shares that stay pruned at each of its later widenings. `stage` is what the ticket says it is from.
    """
    steps = recorded_steps(folder)
    if not steps:
        raise UserError(f"{folder}: holds no coefficient recordings to draw a ticket from")
    path = snapshot_path(folder, steps[-1] if step is None else step)
    snapshot = load_snapshot(path)
    source = TicketSource(
        kind="search",
        stage=stage,
        step=snapshot.step,
        seed=seed,
        coefficients_sha256=file_hash(path),
        # Tickets by coefficient are as they were before there was a choice.
        ranking=None if how.ranking == "coefficient" else how.ranking,
    )
    return draw(model, snapshot.heads_LU, snapshot.neurons_LU, how.rule, source, wider)
