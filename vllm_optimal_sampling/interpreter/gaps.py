"""What Triton's interpreter lacks for the kernels of vLLM's Model Runner V2. `fill()` repairs it in this process."""

from collections.abc import Callable
from functools import wraps
from typing import Any

from vllm_optimal_sampling.interpreter import is_interpreting

_MARK = "filled_by_vllm_optimal_sampling"


def fill() -> None:
    """Repair the gaps, once; do nothing unless Triton interprets.

    To be called in every process before its first kernel runs. It holds for all kernels of the process; what worked
    before computes the same as before.
    """
    if not is_interpreting():
        return
    import numpy as np  # heavy, and needed only here
    import triton.language as tl
    import triton.language.extra.libdevice as libdevice
    from triton.runtime import interpreter

    builder = interpreter.InterpreterBuilder
    if hasattr(builder, _MARK):
        return

    def boolean(mask: Any) -> Any:
        if mask is None or mask.data.dtype == np.bool_:
            return mask
        return interpreter.TensorHandle(mask.data.astype(np.bool_), tl.int1)

    # A mask of integers (`mask=flag` with a flag that was loaded) is read as bytes of a boolean one, and so misread.
    load, store = builder.create_masked_load, builder.create_masked_store

    @wraps(load)
    def create_masked_load(self: Any, ptrs: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        return load(self, ptrs, boolean(mask), *rest, **named)

    @wraps(store)
    def create_masked_store(self: Any, ptrs: Any, value: Any, mask: Any, *rest: Any, **named: Any) -> Any:
        return store(self, ptrs, value, boolean(mask), *rest, **named)

    builder.create_masked_load, builder.create_masked_store = create_masked_load, create_masked_store

    # The numbers that bfloat16 cannot normalise come out as others. All others are the upper halves of float32 as well.
    cast = builder.cast_impl

    @wraps(cast)
    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        if src.dtype.scalar != tl.bfloat16 or dst_type.scalar != tl.float32:
            return cast(self, src, dst_type)
        bits = src.data.astype(np.uint32)
        return interpreter.TensorHandle(np.left_shift(bits, 16, out=bits).view(np.float32), tl.float32)

    builder.cast_impl = cast_impl

    # Functions of libdevice have no body outside a compiler and silently return None.
    def elementwise(function: Callable[[Any], Any], result: Any = None) -> Callable[..., Any]:
        def computed(x: Any, **_: Any) -> Any:
            x = interpreter.interpreter_semantic.to_tensor(x)
            dtype = result or x.dtype
            with np.errstate(all="ignore"):  # masked lanes hold anything
                handle = interpreter.TensorHandle(function(x.handle.data), dtype)
            return tl.tensor(handle, tl.block_type(dtype, x.type.shape) if x.type.is_block() else dtype)

        return computed

    libdevice.log = elementwise(np.log)
    libdevice.log1p = elementwise(np.log1p)  # not log(1 + x), which loses every digit of a small x
    # libdevice answers with an integer, and vLLM converts it: keep the type.
    libdevice.isnan = elementwise(lambda x: np.isnan(x).astype(np.int32), tl.int32)

    # The variable of a loop over tl.range is a plain int, without the `.to` of a compiled kernel (vLLM's top-k, top-p).
    class Index(int):
        def to(self, dtype: Any) -> Any:
            return interpreter.interpreter_semantic.to_tensor(int(self)).to(dtype)

    patch_lang_core = interpreter._patch_lang_core

    @wraps(patch_lang_core)
    def patch_lang_core_and_range(lang: Any, scope: Any) -> None:
        patch_lang_core(lang, scope)
        plain_range = lang.range
        scope.set_attr(lang, "range", lambda *args, **named: map(Index, plain_range(*args, **named)))

    interpreter._patch_lang_core = patch_lang_core_and_range

    setattr(builder, _MARK, True)
