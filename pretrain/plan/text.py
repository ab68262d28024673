"""A plan as text, for TensorBoard, reports and the console."""

from typing import Any

from earlybert.core.text import markdown_table


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
