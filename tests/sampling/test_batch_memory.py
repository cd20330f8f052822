"""Memory of batches is used again, and only when nothing refers to it."""

import gc

import numpy as np
import pytest
import torch

from sampling.batch_memory import BatchMemory


@pytest.mark.parametrize("dtype", ["float16", "float32", "uint8", "int8"])
def test_a_tensor_has_the_shape_and_type_asked_for_and_can_be_written(dtype: str) -> None:
    tensor = BatchMemory(max_idle=1).empty(7, 3, dtype)
    tensor.numpy()[...] = np.arange(21).reshape(7, 3)
    assert tensor.shape == (7, 3)
    assert tensor.numpy().dtype == dtype
    assert tensor.sum() == 210


def test_memory_is_used_again_when_the_last_view_is_gone_and_not_before() -> None:
    memory = BatchMemory(max_idle=2)
    first = memory.empty(1000, 100, "float32")
    first.fill_(1.0)
    address = first.data_ptr()
    views = [first[10:20], first.numpy()[5:].T, first.view(torch.int32), first.detach().clone()]
    del first
    gc.collect()
    while len(views) > 1:
        other = memory.empty(1000, 100, "float32")
        assert other.data_ptr() != address
        other.zero_()
        assert all(np.asarray(view).reshape(-1)[0] != 0 for view in views)
        del other
        views.pop(0)
    views.clear()
    gc.collect()
    addresses = {memory.empty(1000, 100, "float32").data_ptr() for _ in range(3)}
    both = [memory.empty(1000, 100, "float32") for _ in range(2)]
    assert address in addresses | {tensor.data_ptr() for tensor in both}


def test_an_empty_table_takes_no_memory() -> None:
    assert BatchMemory(max_idle=1).empty(0, 5, "float32").shape == (0, 5)
