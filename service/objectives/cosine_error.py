"""The scaled cosine error, by which rows are compared with what they rebuild or predict.

Shapes: M rows, F columns.
"""

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity


def scaled_cosine_error(rebuilt_MF: Tensor, target_MF: Tensor, *, exponent: float) -> Tensor:
    """[M]: (1 - cosine of each row with its target) ** exponent, in at least float32.

    Source: GraphMAE, eq. 2. A row of zeros has cosine 0 with anything, and no gradient: there it has no limit, and one
    seed without a neighbour to see would drown all others. The decoder of such a seed puts out its bias, first 0.
    """
    if rebuilt_MF.dtype in (torch.float16, torch.bfloat16):
        rebuilt_MF = rebuilt_MF.float()
    rebuilt_MF = rebuilt_MF.masked_fill((rebuilt_MF == 0).all(1, keepdim=True), 0.0)
    cosine = cosine_similarity(rebuilt_MF, target_MF.to(rebuilt_MF.dtype), dim=1, eps=1e-12)
    error: Tensor = (1.0 - cosine).clamp(min=0.0)
    return error**exponent
