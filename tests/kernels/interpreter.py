"""Triton's interpreter rounds as the hardware does, and in half the time.

As of Triton 3.8 it rounds halves away and loses the carry into the exponent when it narrows a float, and multiplies
bfloat16 matrices as if they were integers. Both are replaced here by exact ones; kernels stay as they are.

It also puts its own functions into the language before every call of a function within a kernel, though they are there
since the kernel's launch, or since the first call of a function of that module: that takes it longer than the rest.
"""

from typing import Any

import numpy as np
import torch
import triton.language as tl
from triton.runtime import interpreter

_TORCH = {
    tl.float32: torch.float32,
    tl.float16: torch.float16,
    tl.bfloat16: torch.bfloat16,
    tl.float8e4nv: torch.float8_e4m3fn,
    tl.float8e5: torch.float8_e5m2,
}


_SEEN: set[int] = set()


def correct_interpreter() -> None:
    """Replace the two operations and the call, once."""
    interpreter._convert_float = _convert
    interpreter.InterpreterBuilder.create_dot = _dot
    interpreter.InterpretedFunction.__call__ = _call


def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    module = self.fn.__globals__
    if id(module) not in _SEEN:
        interpreter._patch_lang(self.fn)
        _SEEN.add(id(module))
    try:
        return self.rewrite()(*args, **kwargs)
    except Exception as error:
        raise interpreter.InterpreterError(repr(error)) from error


def _convert(data: Any, source: Any, target: Any, _rounding: Any) -> Any:
    bits = np.ascontiguousarray(data).view(f"u{source.primitive_bitwidth // 8}")
    tensor = torch.from_numpy(bits).view(_TORCH[source])
    out = tensor.to(_TORCH[target])
    unsigned = {8: torch.uint8, 16: torch.uint16, 32: torch.uint32}[target.primitive_bitwidth]
    return out.view(unsigned).numpy()


def _dot(self: Any, a: Any, b: Any, d: Any, _precision: Any, _imprecise: Any) -> Any:
    product = np.matmul(_wide(a), _wide(b), dtype=np.float32) + d.data
    return interpreter.TensorHandle(product.astype(d.data.dtype), d.dtype.scalar)


def _wide(handle: Any) -> Any:
    if handle.dtype.scalar in (tl.bfloat16, tl.float8e4nv, tl.float8e5):
        return _convert(handle.data, handle.dtype.scalar, tl.float32, None).view(np.float32)
    return handle.data
