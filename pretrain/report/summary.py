"""The short table that ends a run."""

import shlex

from rich.console import Console
from rich.table import Table

from earlybert.pretrain.network.work import count_parameters
from earlybert.pretrain.report.outcome import Outcome, network_content
from earlybert.pretrain.train.plateau import ADVICE


def why_not_timed(outcome: Outcome) -> str:
    """Why what a run saved in time is not measured, where its layout changed."""
    return f"the {' and the '.join(outcome.changed_layout)} changed, so that times of the stages do not compare"


def print_summary(outcome: Outcome) -> None:
    """Sizes of the full network and of the narrow or otherwise smaller one, steps, losses and what was saved."""
    full, narrow, savings = outcome.plan.full, outcome.narrow, outcome.savings
    if narrow is None and network_content(outcome.network) != network_content(full):
        title, narrow = "at the end", outcome.network
    else:
        title = "narrow"
    table = Table(title="EarlyBERT run", show_header=True, title_justify="left")
    for column in ("", "dense", title):
        table.add_column(column, justify="left" if not column else "right")

    def row(name: str, dense_value: str, narrow_value: str) -> None:
        table.add_row(name, dense_value, narrow_value if narrow else "-")

    row("parameters", f"{count_parameters(full):,}", f"{count_parameters(narrow):,}" if narrow else "-")
    for unit in ("heads", "neurons"):
        dense_value, narrow_value = (
            " ".join(map(str, getattr(network, unit))) if network else "-" for network in (full, narrow)
        )
        row(f"{unit} per layer", dense_value, narrow_value)
    if savings is not None and savings.trained_stage.network == narrow:
        flops = savings.dense_stage.flops_per_step, savings.trained_stage.flops_per_step
        row("FLOPs per step", f"{flops[0]:.3g}", f"{flops[1]:.3g}")
        row("FLOPs, relative", "1", f"{flops[1] / flops[0]:.3f}")
        row(f"step time ({savings.dense_stage.stage.name}, phase 1)", "1", f"{savings.step_time_ratio:.3f}")
    Console().print(table)
    print("steps                  " + ", ".join(f"{stage.name} {stage.steps}" for stage in outcome.stages))
    if outcome.ends_wide:
        print("network at the end     full width again, all heads and neurons")
    if (last := outcome.last_validation) is not None:
        for part in outcome.losses:
            loss, accuracy = (last.scores[f"{part.name}_{score}"] for score in ("loss", "accuracy"))
            print(
                f"validation             {part.title}: loss {loss:.3f} nats (guessing by frequency "
                f"{outcome.guessing(part):.3f}), accuracy {accuracy:.3f}"
            )
        if outcome.level(last) is not None:
            advice = f"; {ADVICE}" if outcome.level(last) == "at word frequencies" else ""
            print(f"level                  {outcome.level(last)}{advice}")
    if outcome.searched_too_soon:
        print("search                 ended at word frequencies, where units differ little: its ticket says little")
    if savings is not None:
        print(f"time saved             {savings.time_saved:.1%} against dense training, all stages included")
    elif outcome.changed_layout:
        print(f"time saved             not measured: {why_not_timed(outcome)}")
    print(f"run directory          {outcome.run_dir}")
    if "tensorboard" in outcome.plan.recipe.trackers:
        print(f"curves                 tensorboard --logdir {shlex.quote(f'{outcome.run_dir}/tensorboard')}")
