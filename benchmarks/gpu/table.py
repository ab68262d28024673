"""The table of what the stages found, and which goals are met."""

import statistics
from typing import Any

# Dense BERT-Large: share of the best matrix product that was measured, by stage.
UTILISATION = {"128 x 32": 0.55, "128 x 128": 0.55, "512 x 8": 0.50}
FLOP_TOLERANCE, AGAINST_COMPILED = 0.05, 2.0


def table(results: dict[str, Any], measured: bool = True) -> str:
    """What came of each stage and, where something was measured, speeds and goals."""
    lines = [f"{'stage':<20}{'status':<14}{'seconds':>8}"]
    lines += [f"{name:<20}{found['status']:<14}{found['seconds']:>8.0f}" for name, found in results.items()]
    if not measured:
        return "\n".join(lines)
    for name, found in results.items():
        if found["found"] and "rows" in found["found"] and "model" in found["found"]:
            lines += ["", *speeds(name, found["found"])]
        elif found["found"] and "printed" in found["found"]:
            lines += ["", found["found"]["printed"].strip()]
    lines += ["", f"{'goal':<58}{'wanted':>10}{'found':>10}"]
    lines += [
        f"{name:<58}{wanted:>10}{found:>10}{'' if met else '  MISSED'}" for name, wanted, found, met in goals(results)
    ]
    return "\n".join(lines)


def speeds(stage: str, found: dict[str, Any]) -> list[str]:
    """Rows of step_speed.py, with what the host and the memory of a GPU took."""
    header = f"{stage:<44}{'ms':>9}{'sequences/s':>13}{'utilisation':>13}{'host ms':>9}{'GiB':>7}"
    return [
        header,
        *(
            f"{row['name'] + ' ' + row['precision']:<44}{milliseconds(row):>9.1f}"
            f"{found['sequences'] / milliseconds(row) * 1e3:>13.1f}{row['utilisation']:>13.1%}"
            f"{statistics.median(row['issued']) * 1e3:>9.1f}{row['step_peak_bytes'] / 2**30:>7.1f}"
            for row in found["rows"]
        ),
    ]


def milliseconds(row: dict[str, Any]) -> float:
    return statistics.median(row["seconds"]) * 1e3


def goals(results: dict[str, Any]) -> list[tuple[str, str, str, bool]]:
    """Name, what is wanted, what was found, whether that is enough; of the stages that have found something."""
    lines = []
    for stage, least in UTILISATION.items():
        found = (results.get(stage) or {}).get("found")
        for row in found["rows"] if found else ():
            if row["name"] == "ours, dense" and row["precision"] != "fp32":
                share = row["utilisation"]
                lines.append((f"dense, {stage}, of the matrix peak", f"{least:.0%}", f"{share:.0%}", share >= least))
        for name, ratio in (found or {}).items():
            if name.startswith("ticket, ") and name != "ticket, fp32":
                over = ratio["time"] / ratio["flops"] - 1
                wanted = f"{FLOP_TOLERANCE:.0%}"
                lines.append(
                    (f"ticket / dense, {stage}, over operations", wanted, f"{over:.1%}", over <= FLOP_TOLERANCE)
                )
    compiled = (results.get("compiled") or {}).get("found")
    if compiled:
        times = {row["name"]: milliseconds(row) for row in compiled["rows"]}
        theirs, ours = times.get("transformers, autocast, torch.compile"), times.get("ours, dense")
        if theirs and ours:
            gain = theirs / ours
            wanted = f"{AGAINST_COMPILED:.1f}x"
            lines.append(("against transformers + torch.compile", wanted, f"{gain:.2f}x", gain >= AGAINST_COMPILED))
    return lines
