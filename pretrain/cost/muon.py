"""What Muon's matrices take: operations of all ranks and of the busiest one."""

from functools import lru_cache

from earlybert.kernels.ownership import assign_owners, newton_schulz_flops
from earlybert.pretrain.network.config import NetworkConfig
from earlybert.pretrain.network.parameters import layer_of, network_parameters


def orthogonalised_matrices(config: NetworkConfig) -> list[tuple[int, int]]:
    """Rows and columns of every matrix that Muon orthogonalises; query, key and value are three."""
    matrices = []
    for name, facts in network_parameters(config).items():
        if facts.hidden_matrix:
            rows, columns = facts.shape(config, layer_of(name))
            matrices += [(rows // facts.row_blocks, columns)] * facts.row_blocks
    return matrices


def matrix_elements(config: NetworkConfig) -> int:
    """Parameters that are Muon's."""
    return sum(rows * columns for rows, columns in orthogonalised_matrices(config))


def orthogonalisation_flops(config: NetworkConfig) -> int:
    """Operations to orthogonalise all of them, once a step."""
    return sum(newton_schulz_flops(*shape) for shape in orthogonalised_matrices(config))


@lru_cache
def busiest_rank_flops(config: NetworkConfig, ranks: int) -> int:
    """The share of the rank that has most to do: none has less than one matrix where any has."""
    flops = [newton_schulz_flops(*shape) for shape in orthogonalised_matrices(config)]
    load = [0] * ranks
    for owner, cost in zip(assign_owners(flops, [[0] * len(flops)] * ranks), flops, strict=True):
        load[owner] += cost
    return max(load)
