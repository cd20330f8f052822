"""An encoder that a test holds up wherever it is not in training: in a probe, that is."""

import threading

from torch import Tensor

from service.encoders.hop_graph import HopGraph
from tests.service.own_encoders import MeanEncoder

LIMIT_SECONDS = 60
"""a guard against hangs"""


class HeldEncoder(MeanEncoder):
    """Each forward pass outside training takes a permit first, and waits for one."""

    permits = threading.Semaphore(0)
    """put another in its place before a run"""

    def layer(self, number: int, h: Tensor, hop: HopGraph) -> Tensor:
        if number == 0 and not self.training:
            assert self.permits.acquire(timeout=LIMIT_SECONDS)
        return super().layer(number, h, hop)
