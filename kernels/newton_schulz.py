"""Newton-Schulz: a matrix U S V^T becomes about U V^T, in matrix products alone.

With X = matrix / |matrix|, each of five steps is X <- a X + (b A + c A A) X, A = X X^T, on the wide side of the matrix.
The coefficients (Jordan et al. 2024, "Muon: an optimizer for hidden layers in neural networks") pull small singular
values up as fast as possible: they end between about 0.7 and 1.2, not at 1.

Shape suffixes: B matrices of one shape, R rows, C columns, W the smaller of R and C.
"""

import torch
from torch import Tensor

from earlybert.core.devices import half_precision
from earlybert.kernels.sizes import NEWTON_SCHULZ_STEPS

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
# Below this norm a matrix is taken for zero, as in the published optimizers.
SMALLEST_NORM = 1e-7


def product_dtype(device: torch.device, dtype: torch.dtype) -> torch.dtype:
    """What the products are computed in for tensors of this dtype: half precision on GPUs, at least fp32 on CPUs."""
    # Where that is fp16: no element is above 1 here.
    return half_precision(device) if device.type == "cuda" else torch.promote_types(dtype, torch.float32)


def orthogonalized(matrices_BRC: Tensor, dtype: torch.dtype) -> Tensor:
    """The matrices [B, R, C] with all singular values near 1, computed in `dtype`; one of zeros stays so."""
    a, b, c = COEFFICIENTS
    # On CPUs torch adds up fp32 norms in few lanes, and the steps stretch what is small up to 500 times.
    norms_B11 = torch.linalg.vector_norm(matrices_BRC, dim=(1, 2), keepdim=True, dtype=torch.float64)
    norms_B11 = norms_B11.clamp(min=SMALLEST_NORM).to(torch.promote_types(matrices_BRC.dtype, torch.float32))
    x_BRC = (matrices_BRC / norms_B11).to(dtype)
    tall = x_BRC.shape[1] > x_BRC.shape[2]
    x_BWC = x_BRC.mT if tall else x_BRC
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram_BWW = x_BWC @ x_BWC.mT
        factor_BWW = torch.baddbmm(gram_BWW, gram_BWW, gram_BWW, beta=b, alpha=c)
        x_BWC = torch.baddbmm(x_BWC, factor_BWW, x_BWC, beta=a)
    return x_BWC.mT if tall else x_BWC
