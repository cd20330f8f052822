"""A standard normal number from 64 random bits, by the inverse of the normal distribution function.

Source: Wichura, "Algorithm AS 241: the percentage points of the normal distribution", Applied Statistics 37(3), 1988,
routine PPND16 (relative error about 1e-16).
"""

import math

import numpy as np

from sampling.keys import UNIT
from storage.jit import kernel

MIDDLE = 0.425
"""|p - 1/2| up to which the central rational function holds"""


@kernel
def normal(word: np.uint64) -> float:
    """The standard normal number of random 64 bits; rises with them."""
    share = (np.float64(np.uint64(word) >> np.uint64(11)) + 0.5) * UNIT
    from_middle = share - 0.5
    if abs(from_middle) <= MIDDLE:
        return from_middle * central(0.180625 - from_middle * from_middle)
    from_end = math.sqrt(-math.log(share if from_middle < 0 else 1.0 - share))
    size = near_tail(from_end - 1.6) if from_end <= 5.0 else far_tail(from_end - 5.0)
    return -size if from_middle < 0 else size


@kernel
def central(r: float) -> float:
    """PPND16's A and B polynomials."""
    above = (
        ((((((2509.0809287301226727 * r + 33430.575583588128105) * r + 67265.770927008700853) * r
            + 45921.953931549871457) * r + 13731.693765509461125) * r + 1971.5909503065514427) * r
            + 133.14166789178437745) * r + 3.387132872796366608
    )  # fmt: skip
    below = (
        ((((((5226.495278852545925 * r + 28729.085735721942674) * r + 39307.89580009271061) * r
            + 21213.794301586595867) * r + 5394.1960214247511077) * r + 687.1870074920579083) * r
            + 42.313330701600911252) * r + 1.0
    )  # fmt: skip
    return above / below


@kernel
def near_tail(r: float) -> float:
    """PPND16's C and D polynomials."""
    above = (
        ((((((7.7454501427834140764e-4 * r + 0.0227238449892691845833) * r + 0.24178072517745061177) * r
            + 1.27045825245236838258) * r + 3.64784832476320460504) * r + 5.7694972214606914055) * r
            + 4.6303378461565452959) * r + 1.42343711074968357734
    )  # fmt: skip
    below = (
        ((((((1.05075007164441684324e-9 * r + 5.475938084995344946e-4) * r + 0.0151986665636164571966) * r
            + 0.14810397642748007459) * r + 0.68976733498510000455) * r + 1.6763848301838038494) * r
            + 2.05319162663775882187) * r + 1.0
    )  # fmt: skip
    return above / below


@kernel
def far_tail(r: float) -> float:
    """PPND16's E and F polynomials."""
    above = (
        ((((((2.01033439929228813265e-7 * r + 2.71155556874348757815e-5) * r + 0.0012426609473880784386) * r
            + 0.026532189526576123093) * r + 0.29656057182850489123) * r + 1.7848265399172913358) * r
            + 5.4637849111641143699) * r + 6.6579046435011037772
    )  # fmt: skip
    below = (
        ((((((2.04426310338993978564e-15 * r + 1.4215117583164458887e-7) * r + 1.8463183175100546818e-5) * r
            + 7.868691311456132591e-4) * r + 0.0148753612908506148525) * r + 0.13692988092273580531) * r
            + 0.59983220655588793769) * r + 1.0
    )  # fmt: skip
    return above / below
