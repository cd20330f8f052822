"""The message-passing primitives: DGL, torch and a dense oracle agree in value and gradient."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from service.message_passing import (
    Kernels,
    Neighbors,
    attend,
    dgl_kernels,
    edge_softmax,
    maximum,
    mean,
    score_edges,
    sum_neighbors,
)
from tests.data import ROOT

NUM_HEADS = 3
WIDTH = 5

needs_dgl = pytest.mark.skipif(not dgl_kernels.is_available("cpu"), reason="dgl does not load here")
KERNELS = [pytest.param("dgl", marks=needs_dgl), "torch", "auto"]
DTYPES = [torch.float32, torch.float64]


def make_neighbors(kernels: Kernels, *, weighted: bool, counts: tuple[int, ...] = (2, 0, 5, 1, 0, 9)) -> Neighbors:
    """Rows without edges, parallel edges, and sources without edges."""
    generator = torch.Generator().manual_seed(1)
    num_edges = sum(counts)
    indptr = torch.tensor([0, *torch.tensor(counts).cumsum(0).tolist()], dtype=torch.int32)
    weight = torch.rand(num_edges, generator=generator)
    if num_edges:
        weight[:2] = 0.0  # the first target has only weights of 0
    return Neighbors(
        num_sources=8,
        indptr=indptr,
        source=torch.randint(0, 7, (num_edges,), generator=generator, dtype=torch.int32),
        weight=weight if weighted else None,
        kernels=kernels,
    )


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.float64, generator=generator).to(dtype).requires_grad_()


def edge_matrix(neighbors: Neighbors, dtype: torch.dtype) -> Tensor:
    """[T, E]: 1 where the edge goes into the target."""
    rows = [
        (torch.arange(neighbors.num_edges) >= neighbors.indptr[row])
        & (torch.arange(neighbors.num_edges) < neighbors.indptr[row + 1])
        for row in range(neighbors.num_targets)
    ]
    return torch.stack(rows).to(dtype)


def assert_same(ours: Tensor, oracle: Tensor, inputs: list[Tensor]) -> None:
    tolerance = 1e-5 if ours.dtype == torch.float32 else 1e-12
    assert torch.allclose(ours, oracle, atol=tolerance)
    direction = random(*ours.shape, dtype=ours.dtype, seed=9).detach()
    for one, other in zip(
        torch.autograd.grad((ours * direction).sum(), inputs),
        torch.autograd.grad((oracle * direction).sum(), inputs),
        strict=True,
    ):
        assert torch.allclose(one, other, atol=tolerance)


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weighted", [False, True])
def test_sum_and_weighted_mean_equal_dense_products(kernels: Kernels, dtype: torch.dtype, weighted: bool) -> None:
    neighbors = make_neighbors(kernels, weighted=weighted)
    x = random(8, WIDTH, dtype=dtype)
    weight = torch.ones(neighbors.num_edges) if neighbors.weight is None else neighbors.weight
    matrix = edge_matrix(neighbors, dtype) * weight.to(dtype)
    assert_same(sum_neighbors(neighbors, x), matrix @ x[neighbors.source.long()], [x])
    total = matrix.sum(1, keepdim=True)
    share = torch.where(total > 0, matrix / total.clamp(min=1e-30), 0.0)
    assert_same(mean(neighbors, x), share @ x[neighbors.source.long()], [x])
    given = random(neighbors.num_edges, dtype=dtype, seed=4).detach()
    by_given = (edge_matrix(neighbors, dtype) * given) @ x[neighbors.source.long()]
    assert_same(sum_neighbors(neighbors, x, weight_E=given), by_given, [x])


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_maximum_equals_a_loop_and_is_zero_without_edges(kernels: Kernels, dtype: torch.dtype) -> None:
    neighbors = make_neighbors(kernels, weighted=False)
    x = random(8, WIDTH, dtype=dtype)
    rows = []
    for row in range(neighbors.num_targets):
        into = neighbors.source[neighbors.indptr[row] : neighbors.indptr[row + 1]].long()
        rows.append(x[into.unique()].max(0).values if len(into) else x.new_zeros(WIDTH))
    assert_same(maximum(neighbors, x), torch.stack(rows), [x])


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_attention_equals_dense_products(kernels: Kernels, dtype: torch.dtype) -> None:
    neighbors = make_neighbors(kernels, weighted=False)
    x = random(8, NUM_HEADS, WIDTH, dtype=dtype)
    attention = random(neighbors.num_edges, NUM_HEADS, dtype=dtype, seed=1)
    matrix = edge_matrix(neighbors, dtype)
    oracle = torch.einsum("te,eh,ehd->thd", matrix, attention, x[neighbors.source.long()])
    assert_same(attend(neighbors, x, attention_EH=attention), oracle, [x, attention])


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_edge_scores_and_softmax_equal_dense_ones(kernels: Kernels, dtype: torch.dtype) -> None:
    neighbors = make_neighbors(kernels, weighted=False)
    source = random(8, NUM_HEADS, dtype=dtype)
    target = random(neighbors.num_targets, NUM_HEADS, dtype=dtype, seed=1)
    matrix = edge_matrix(neighbors, dtype)
    oracle = source[neighbors.source.long()] + matrix.T @ target
    assert_same(score_edges(neighbors, source, target_TH=target), oracle, [source, target])
    logits = random(neighbors.num_edges, NUM_HEADS, dtype=dtype, seed=2)
    power = logits.exp()
    assert_same(edge_softmax(neighbors, logits), power / (matrix.T @ (matrix @ power)), [logits])


def test_softmax_of_huge_logits_is_finite() -> None:
    neighbors = make_neighbors("torch", weighted=False)
    logits = torch.full((neighbors.num_edges, 1), 1e30)
    assert torch.isfinite(edge_softmax(neighbors, logits)).all()


@pytest.mark.parametrize("kernels", KERNELS)
@pytest.mark.parametrize("counts", [(), (0, 0, 0)])
def test_empty_hops_give_zeros_that_carry_zero_gradients(kernels: Kernels, counts: tuple[int, ...]) -> None:
    neighbors = make_neighbors(kernels, weighted=False, counts=counts)
    x, heads = random(8, WIDTH, dtype=torch.float64), random(8, NUM_HEADS, WIDTH, dtype=torch.float64)
    attention = random(0, NUM_HEADS, dtype=torch.float64)
    for out in (sum_neighbors(neighbors, x), mean(neighbors, x), maximum(neighbors, x)):
        assert out.shape == (len(counts), WIDTH)
        assert not out.any()
        assert torch.equal(torch.autograd.grad(out.sum(), x)[0], torch.zeros_like(x))
    out = attend(neighbors, heads, attention_EH=attention)
    assert out.shape == (len(counts), NUM_HEADS, WIDTH)
    for gradient in torch.autograd.grad(out.sum(), [heads, attention]):
        assert not gradient.any()


@pytest.mark.parametrize("kernels", KERNELS)
def test_low_precision_inputs_are_summed_in_float32(kernels: Kernels) -> None:
    neighbors = make_neighbors(kernels, weighted=True)
    x = random(8, WIDTH, dtype=torch.float64).detach()
    functions: list[Callable[[Neighbors, Tensor], Tensor]] = [sum_neighbors, mean, maximum]
    for function in functions:
        assert torch.equal(function(neighbors, x.bfloat16()), function(neighbors, x.bfloat16().float()))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("raise ImportError('no wheel')", "ImportError: no wheel"),
        ("raise OSError('libdgl.so\\nnot found')", "OSError: libdgl.so"),
        ("import torch; torch.no_such_part", "AttributeError: module 'torch' has no attribute 'no_such_part'"),
        ("raise RuntimeError", "RuntimeError"),
        ("", "AttributeError: module 'dgl' has no attribute 'graph'"),
    ],
)
def test_a_dgl_that_does_not_load_stops_only_who_demands_it(text: str, reason: str, tmp_path: Path) -> None:
    (tmp_path / "dgl.py").write_text(text)
    code = (
        "import torch\n"
        "from service.message_passing import Neighbors, dgl_kernels, mean\n"
        "one = torch.zeros(1, dtype=torch.int32)\n"
        "loop = Neighbors(num_sources=1, indptr=torch.arange(2, dtype=torch.int32), source=one)\n"
        "print(mean(loop, torch.ones(1, 1)))\n"
        "dgl_kernels.check('auto')\n"
        "try:\n"
        "    dgl_kernels.check('dgl')\n"
        "except dgl_kernels.BadInput as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr == ""
    assert done.stdout == (
        f"tensor([[1.]])\nencoder.kernels: dgl, which does not load here ({reason}): DGL must be installed and load "
        "beside this torch; install dgl==1.1.3 on Python 3.11, or use kernels=auto or torch, which need no DGL\n"
    )


def test_a_lack_of_memory_while_dgl_loads_is_no_reason_to_do_without_it(tmp_path: Path) -> None:
    (tmp_path / "dgl.py").write_text("raise MemoryError('no memory')")
    code = (
        "from service.interop.packages import load_dgl\n"
        "from service.message_passing import dgl_kernels\n"
        "for load in (load_dgl, lambda: dgl_kernels.is_available('cpu')):\n"
        "    try: load()\n"
        "    except MemoryError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "no memory\n" * 2


@needs_dgl
def test_loading_dgl_prints_nothing_writes_nothing_and_keeps_the_environment(
    tmp_path: os.PathLike[str],
) -> None:
    code = (
        "import os, sys; from service.message_passing import dgl_kernels\n"
        "assert 'dgl' not in sys.modules\n"
        "assert dgl_kernels.is_available('cpu') and 'DGLBACKEND' not in os.environ"
    )
    environment = {key: value for key, value in os.environ.items() if key != "DGLBACKEND"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**environment, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stdout == done.stderr == ""
    assert os.listdir(tmp_path) == []
