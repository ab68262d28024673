"""Plan, ticket and durations as text, for TensorBoard, reports and the console."""

from collections.abc import Sequence
from typing import Any

from earlybert.pretrain.ticket import Ticket


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table whose first column is text and whose others are aligned to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plan_markdown(plan: dict[str, Any]) -> str:
    """The stages of plan.json, one a row, and how the plan's arithmetic compares with dense training's."""
    header = ("stage", "begins", "steps", "batch", "length", "peak learning rate", "tokens", "parameters", "FLOPs")
    rows = [
        (
            stage["name"],
            stage["begin"],
            f"{stage['steps']:,}",
            f"{stage['global_batch']:,}",
            str(stage["length"]),
            f"{stage['learning_rate']:g}",
            f"{stage['tokens']:,}",
            f"{stage['parameters']:,}",
            f"{stage['flops']:.3g}",
        )
        for stage in plan["stages"]
    ]
    return f"{markdown_table(header, rows)}\n{compared_with_dense(plan)}\n"


def compared_with_dense(plan: dict[str, Any]) -> str:
    """The plan's arithmetic beside that of training the full network for as long; a plan may end with the search."""
    cost = f"This plan takes {plan['flops']:.3g} FLOPs"
    if not plan["dense_flops"]:
        return f"{cost}."
    dense = f"dense training ({plan['dense_parameters']:,} parameters) {plan['dense_flops']:.3g}"
    return f"{cost}, {dense}: {plan['flops'] / plan['dense_flops']:.1%} of that."


def ticket_markdown(ticket: Ticket) -> str:
    """What the ticket keeps, layer by layer, and where it came from."""
    model, source = ticket.model, ticket.source
    origin = {
        "search": f"drawn from the coefficients after {source.step} steps of the {source.stage}",
        "random": f"drawn by chance (seed {source.seed})",
        "all": "everything is kept",
    }[source.kind]
    rows = [
        (str(layer), f"{len(heads)} of {model.num_heads}", ", ".join(map(str, heads)), f"{len(neurons):,}")
        for layer, (heads, neurons) in enumerate(zip(ticket.heads, ticket.neurons, strict=True))
    ]
    pruned = " and ".join(
        f"{ticket.realised[kind]:,} {kind} (asked for {ticket.requested[kind]:,})" for kind in ticket.realised
    )
    table = markdown_table(("layer", "heads", "which", f"neurons of {model.intermediate_size:,}"), rows)
    return f"Ticket `{ticket.sha256[:12]}`, {origin}; it cuts {pruned}.\n\n{table}"


def duration(seconds: float) -> str:
    """Two units of time, e.g. 3 d 4 h, 12 min 5 s, or seconds alone."""
    for unit, size, smaller, rest in (("d", 86400, "h", 3600), ("h", 3600, "min", 60), ("min", 60, "s", 1)):
        if seconds >= size:
            whole, left = divmod(round(seconds / rest), size // rest)
            return f"{whole} {unit} {left} {smaller}"
    return f"{seconds:.1f} s"
