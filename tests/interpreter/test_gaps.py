"""With the gaps filled, interpreted kernels compute what numpy does."""

import inspect
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
import triton.language.extra.libdevice as libdevice

from vllm_optimal_sampling.interpreter import gaps, is_interpreting

pytestmark = pytest.mark.skipif(not is_interpreting(), reason="needs TRITON_INTERPRET=1 before Triton is imported")


@pytest.fixture(scope="module", autouse=True)
def filled() -> None:
    gaps.fill()
    gaps.fill()  # twice does no harm


if is_interpreting():

    @triton.jit
    def _elementwise(x_ptr, log_ptr, log1p_ptr, isnan_ptr, SIZE: tl.constexpr):
        index = tl.arange(0, SIZE)
        x = tl.load(x_ptr + index)
        tl.store(log_ptr + index, libdevice.log(x))
        tl.store(log1p_ptr + index, libdevice.log1p(x))
        tl.store(isnan_ptr + index, libdevice.isnan(x).to(tl.int1))

    @triton.jit
    def _scalar(x_ptr, log1p_ptr):
        tl.store(log1p_ptr, libdevice.log1p(tl.load(x_ptr)))

    @triton.jit
    def _as_float32(x_ptr, result_ptr, SIZE: tl.constexpr):
        index = tl.arange(0, SIZE)
        tl.store(result_ptr + index, tl.load(x_ptr + index).to(tl.float32))

    @triton.jit
    def _rows(x_ptr, stride, rows):
        for row in tl.range(tl.program_id(0), rows, tl.num_programs(0)):
            pointer = x_ptr + row.to(tl.int64) * stride
            tl.store(pointer, tl.load(pointer) + row)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_libdevice_equals_numpy(dtype: torch.dtype) -> None:
    inf, nan = float("inf"), float("nan")
    x = torch.tensor(
        [1e-9, -1e-9, 1e-30, 0.0, -0.5, -1.0, 3.0, inf, nan, -2.0, 1e30, 0.1, 0.2, 0.3, 0.4, 1.0], dtype=dtype
    )
    log, log1p, isnan = torch.empty_like(x), torch.empty_like(x), torch.empty(x.shape, dtype=torch.bool)
    _elementwise[(1,)](x, log, log1p, isnan, SIZE=len(x))
    with np.errstate(all="ignore"):
        np.testing.assert_array_equal(log.numpy(), np.log(x.numpy()))
        np.testing.assert_array_equal(log1p.numpy(), np.log1p(x.numpy()))
    np.testing.assert_array_equal(isnan.numpy(), np.isnan(x.numpy()))


def test_log1p_of_a_small_scalar_keeps_its_digits() -> None:
    """log(1 + 1e-9) is 0 in float32."""
    x, result = torch.tensor([1e-9]), torch.zeros(1)
    _scalar[(1,)](x, result)
    assert result[0] == x[0]


def test_every_bfloat16_becomes_the_float32_that_it_is() -> None:
    """Those too small to be normalised too, which Triton takes for others."""
    x = torch.arange(2**16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    result = torch.empty(2**16)
    _as_float32[(1,)](x, result, SIZE=2**16)
    assert torch.equal(result.view(torch.int32), x.view(torch.int16).to(torch.int32) << 16)


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.int32, np.int64, np.uint8])
def test_masks_of_any_type_select_what_is_not_zero(dtype: type) -> None:
    """Straight at the builder: which kernels come with such masks depends on Triton's release."""
    from triton.runtime import interpreter

    source, target = np.arange(6, dtype=np.float32) + 1, np.zeros(6, dtype=np.float32)
    flags = np.array([0, 1, 2, 0, 64, 1]).astype(dtype)
    mask = interpreter.TensorHandle(flags, tl.int64 if flags.itemsize > 1 else tl.int8)
    other = interpreter.TensorHandle(np.full(6, -1, dtype=np.float32), tl.float32)

    def pointers(array: np.ndarray) -> interpreter.TensorHandle:
        address = array.ctypes.data + np.arange(6, dtype=np.uint64) * np.uint64(4)
        return interpreter.TensorHandle(address.astype(np.uint64), tl.pointer_type(tl.float32))

    builder = interpreter.interpreter_builder
    modifiers = [None] * (len(inspect.signature(builder.create_masked_load).parameters) - 3)
    loaded = builder.create_masked_load(pointers(source), mask, other, *modifiers)
    np.testing.assert_array_equal(loaded.data, np.where(flags != 0, source, -1))
    modifiers = [None] * (len(inspect.signature(builder.create_masked_store).parameters) - 3)
    builder.create_masked_store(pointers(target), loaded, mask, *modifiers)
    np.testing.assert_array_equal(target, np.where(flags != 0, source, 0))


@pytest.mark.parametrize("programs", [1, 2])
def test_loop_variables_convert_as_in_a_compiled_kernel(programs: int) -> None:
    x = torch.zeros(5, 3)
    _rows[(programs,)](x, x.stride(0), len(x))
    assert x[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_top_k_and_top_p_equal_the_ones_without_triton() -> None:
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p_pytorch
    from vllm.v1.sample.ops.topk_topp_triton import apply_top_k_top_p_triton

    logits = torch.randn(6, 700, generator=torch.Generator().manual_seed(3)) * 3
    logits[2, 5:] = float("-inf")
    top_k, top_p = (
        torch.tensor([1, 5, 40, 40, 300, 700], dtype=torch.int32),
        torch.tensor([1.0, 0.9, 0.5, 0.3, 0.8, 1.0]),
    )
    for k, p in [(top_k, None), (None, top_p), (top_k, top_p)]:
        expected = apply_top_k_top_p_pytorch(logits.clone(), k, p, allow_cpu_sync=True)
        assert torch.equal(apply_top_k_top_p_triton(logits.clone(), k, p), expected)


def test_does_nothing_unless_interpreting() -> None:
    code = """
from vllm_optimal_sampling.interpreter import gaps, shortcuts
gaps.fill()
import sys
assert "triton" not in sys.modules and not shortcuts.take()
from triton.runtime import interpreter
import triton.language.extra.libdevice as libdevice
print(interpreter.InterpreterBuilder.create_masked_load.__module__, libdevice.log1p.__module__)
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["triton.runtime.interpreter", "triton.language.extra.libdevice"]
