"""Which rank orthogonalises which matrix, and what that costs it. Needs no PyTorch."""

from collections.abc import Sequence

from earlybert.kernels.sizes import NEWTON_SCHULZ_STEPS


def newton_schulz_flops(rows: int, columns: int) -> int:
    """Operations to orthogonalise one matrix: in each step three products, on its smaller side."""
    small, large = sorted((rows, columns))
    return NEWTON_SCHULZ_STEPS * (4 * small**2 * large + 2 * small**3)


def assign_owners(flops: Sequence[int], held: Sequence[Sequence[int]]) -> list[int]:
    """The rank that orthogonalises each matrix; the same on all ranks.

    Whoever holds most of a matrix takes it, which spares communication, as long as that is no more than an equal share
    of the work. The others go, the dearest first, to the rank with the least work so far.

    Args:
        flops: Of each matrix.
        held: How many of its elements each rank holds, by rank and matrix.
    """
    ranks, share = range(len(held)), sum(flops) / len(held)
    load, owners = [0] * len(held), [-1] * len(flops)

    def give(matrix: int, rank: int) -> None:
        owners[matrix] = rank
        load[rank] += flops[matrix]

    for matrix in range(len(flops)):
        holder = max(ranks, key=lambda rank: held[rank][matrix])
        if load[holder] + flops[matrix] <= share:
            give(matrix, holder)
    for matrix in sorted(range(len(flops)), key=lambda matrix: -flops[matrix]):
        if owners[matrix] < 0:
            give(matrix, min(ranks, key=lambda rank: (load[rank], -held[rank][matrix])))
    return owners
