"""An operator over processes ("ranks") that each hold a part of the data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from landscape.curvature.linear import Operator
from landscape.objective import NonFiniteLossError, tensors_sha256
from sam_core import ranks


class MeanOverRanks(Operator):
    """The mean of the ranks' operators, weighted by the total weights of their objectives: sum_r n_r A_r / sum_r n_r.

    With every rank's objective on its own part of the data this is the operator of all the data. A product costs one message of n + 1
    numbers. Every rank must ask for the same products: algorithms do so from the same seed, as they see the same bits.

    Args:
        operator: this rank's, of an objective.
        group: process group; None for all ranks.

    Raises:
        ValueError: there are no ranks, the operator belongs to no objective, or the ranks' operators differ in size or point.
    """

    def __init__(self, operator: Operator, group: Any | None = None) -> None:
        if not ranks.meeting():
            raise ValueError("MeanOverRanks needs an initialised torch.distributed: start with torchrun and call init_process_group")
        if operator.objective is None or operator.point is None:
            raise ValueError(f"operator must belong to an objective, whose data weigh it; got {operator}")
        super().__init__(operator.size, operator.dtype, operator.device, operator.objective)
        self.operator, self.group, self.point = operator, group, operator.point
        self.weight = operator.objective.total_weight
        # A part of a hash, and its square: the mean of squares is the square of the mean only if all are equal. Exact in float64.
        mark = float(int(tensors_sha256(self.point)[:6], 16))
        total, squares, count = ranks.sum_(torch.tensor([mark, mark**2, 1.0], dtype=torch.float64, device=self.device), group).tolist()
        if count * squares != total**2:
            raise ValueError("the ranks must hold operators of the same size at the same point: their parameters differ")

    def matvec(self, vector: Tensor) -> Tensor:
        """Return the product with a vector (n,); if a rank fails, all do."""
        return self.matmat(vector[:, None])[:, 0]

    def matmat(self, vectors: Tensor) -> Tensor:
        """Return the products with the columns of a matrix (n, k); if a rank fails, all do."""
        failure: Exception | None = None
        try:
            local = self.operator.matmat(vectors) * self.weight
        except Exception as error:  # whatever it is: the others wait for a message
            failure = error
            local = torch.full((self.size, vectors.shape[1]), torch.nan, dtype=self.dtype, device=self.device)
        message = torch.cat([local.reshape(-1), local.new_tensor([self.weight])])
        ranks.sum_(message, self.group)
        if failure is not None:
            raise failure
        total = (message[:-1] / message[-1]).view(self.size, -1)
        if not bool(torch.isfinite(total).all()):
            raise NonFiniteLossError("the product is not finite on another rank; that rank says where")
        return total
