"""The student: linear maps with ReLU between them, on a node's own features.

    weights     student.safetensors: layers.<i>.weight [out, in], layers.<i>.bias [out]
    how to      student.json: x = features; for each layer x = x @ weight.T + bias, then ReLU but after the last

Training reads features with their mean and scale taken out and writes embeddings in the same way; both are folded into
the first and the last map at the end, so that the saved student reads plain features and gives plain rows.
Shapes: n nodes, F feature columns, D columns of the teacher's rows.
Source: Zhang et al., "Graph-less neural networks", ICLR 2022, section 4; the use of Yang et al., "VQGraph", ICLR 2024.
"""

from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, cross_entropy, mse_loss

from service.distill_rows import Moments
from service.distill_section import DistillSection
from service.distill_teacher import Teacher

WEIGHTS = "student.safetensors"
DESCRIPTION = "student.json"
FORMAT = 1


class Student(nn.Module):
    """An MLP; its weights come from torch's global generator, so seed that first."""

    def __init__(self, in_dim: int, out_dim: int, section: DistillSection) -> None:
        super().__init__()
        widths = [in_dim, *[section.hidden_dim] * (section.num_layers - 1), out_dim]
        self.layers = nn.ModuleList(nn.Linear(width, after) for width, after in pairwise(widths))

    def forward(self, x_NF: Tensor) -> Tensor:
        """[n, D] of features [n, F]."""
        h = x_NF
        for number, layer in enumerate(self.layers):
            h = layer(h if number == 0 else torch.relu(h))
        return h


class StudentLoss(nn.Module):
    """A student in training: what it makes of features, against the teacher's rows."""

    def __init__(self, student: Student, section: DistillSection, *, inputs: Moments, outputs: Moments | None) -> None:
        """`outputs` None where the teacher's rows are probabilities, whose logits are learned as they are."""
        super().__init__()
        self.student = student
        self.loss = section.loss if outputs is not None else "labels"
        self.register_buffer("in_mean", torch.from_numpy(inputs.mean).float(), persistent=False)
        self.in_scale = inputs.scale
        mean = torch.zeros(()) if outputs is None else torch.from_numpy(outputs.mean).float()
        self.register_buffer("out_mean", mean, persistent=False)
        self.out_scale = 1.0 if outputs is None else outputs.scale

    def forward(self, x_NF: Tensor, y_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Mean loss over n rows, and the number of rows whose largest column is the teacher's; scalars."""
        out_ND = self.student((x_NF - self.get_buffer("in_mean")) / self.in_scale)
        rows_ND = out_ND * self.out_scale + self.get_buffer("out_mean")
        agreed = (rows_ND.argmax(1) == y_ND.argmax(1)).sum()
        match self.loss:
            case "labels":
                return cross_entropy(rows_ND, y_ND), agreed
            case "cosine":
                return (1.0 - cosine_similarity(rows_ND, y_ND, dim=1)).mean(), agreed
            case _:
                return mse_loss(out_ND, (y_ND - self.get_buffer("out_mean")) / self.out_scale), agreed


def make_student(in_dim: int, out_dim: int, section: DistillSection) -> Student:
    """A student with first weights of its seed; torch's global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(section.seed)
        return Student(in_dim, out_dim, section)


def fold(student: Student, *, inputs: Moments, outputs: Moments | None) -> None:
    """Change the first and the last map so that plain features give plain rows; in float64."""
    first, last = student.layers[0], student.layers[-1]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        weight = first.weight.double() / inputs.scale
        bias = first.bias.double() - weight @ torch.from_numpy(inputs.mean).to(weight.device)
        first.weight.copy_(weight)
        first.bias.copy_(bias)
        if outputs is not None:
            bias = last.bias.double() * outputs.scale + torch.from_numpy(outputs.mean).to(weight.device)
            last.weight.mul_(outputs.scale)
            last.bias.copy_(bias)


def describe(student: Student, teacher: Teacher) -> dict[str, Any]:
    """`student.json`: how to load and compute a student, and what it learned from."""
    kind = teacher.store.node_type(teacher.node_type)
    count = len(student.layers)
    return {
        "format": FORMAT,
        "weights": WEIGHTS,
        "compute": "x = features as float32; for each layer: x = x @ weight.T + bias, then its activation",
        "layers": [
            {
                "weight": f"layers.{number}.weight",
                "bias": f"layers.{number}.bias",
                "activation": "none" if number == count - 1 else "relu",
            }
            for number in range(count)
        ],
        "input": {"node_type": kind.name, "columns": kind.feature_dim},
        "output": {
            "kind": "embedding" if teacher.nodes is None else "logits",
            "columns": teacher.dim,
            "classes": None if teacher.nodes is None else teacher.nodes.classes.tolist(),
        },
        "teacher": teacher.source,
    }
