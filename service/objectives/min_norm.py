"""The shortest convex combination of vectors, from their inner products alone.

Shapes: K vectors.
"""

import numpy as np
from numpy.typing import NDArray

MAX_ITERATIONS = 250
TOLERANCE = 1e-14
"""duality gap, for vectors of length about 1, at which the search ends"""


def min_norm_weights(gram_KK: NDArray[np.float64]) -> NDArray[np.float64]:
    """float64 [K] on the simplex (>= 0, sum 1): weights w whose combination sum_k w_k v_k is shortest.

    Frank-Wolfe with exact line search in its pairwise form: a step moves weight from the worst vector that has some
    to the best one, so that it ends on a face of the simplex without zigzag. Two vectors take one step, which is the
    closed form. Of vectors that are not finite all weights are 1 / K.

    Args:
        gram_KK: inner products v_i v_j.

    Sources: Sener and Koltun, "Multi-task learning as multi-objective optimization", NeurIPS 2018, algorithm 2;
    pairwise steps: Lacoste-Julien and Jaggi, "On the global linear convergence of Frank-Wolfe optimization variants",
    NeurIPS 2015, section 2.
    """
    num_vectors = gram_KK.shape[0]
    weights = np.full(num_vectors, 1.0 / num_vectors)
    if not np.isfinite(gram_KK).all():
        return weights
    for _ in range(MAX_ITERATIONS):
        slope = gram_KK @ weights
        best = int(np.argmin(slope))
        worst = int(np.argmax(np.where(weights > 0.0, slope, -np.inf)))
        if weights @ slope - slope[best] <= TOLERANCE:
            break
        curvature = gram_KK[best, best] + gram_KK[worst, worst] - 2.0 * gram_KK[best, worst]
        gain = slope[worst] - slope[best]
        if gain >= curvature * weights[worst]:
            weights[best] += weights[worst]
            weights[worst] = 0.0
        else:
            step = gain / curvature
            weights[best] += step
            weights[worst] -= step
    return weights
