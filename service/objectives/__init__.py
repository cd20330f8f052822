"""Objectives: self-supervised losses over mini-batches."""

from service.objectives.base import LossSum, Objective
from service.objectives.choice import ObjectiveConfig, make_objective

__all__ = ["LossSum", "Objective", "ObjectiveConfig", "make_objective"]
