import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from trtllm_build.kernels.attention.heads import heads, heads_reference
from trtllm_build.network import pieces
from trtllm_build.network.rope import rotation


def _inputs(rows, count, kv_heads, size, has_v, dtype, seed):
    draw = torch.Generator().manual_seed(seed)
    parts = count + kv_heads * (2 if has_v else 1)
    qkv = torch.randn(rows, parts * size, generator=draw).to(dtype)
    norms = [torch.randn(size, generator=draw).to(dtype) for _ in range(2)]
    angles = rotation(torch.arange(7, 7 + rows), torch.rand(size // 2, generator=draw), torch.float32)
    return qkv, *norms, *angles, count, kv_heads, size, 1e-6


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 4),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    half=st.integers(1, 40),
    has_v=st.booleans(),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    seed=st.integers(0, 99),
)
def test_heads_are_the_references(rows, kv_heads, group, half, has_v, dtype, seed):
    inputs = _inputs(rows, kv_heads * group, kv_heads, 2 * half, has_v, dtype, seed)
    # norms of bfloat16 may land on the neighbouring number, which the rotation then mixes into the other half
    tolerance = 2**-6 if dtype == torch.bfloat16 else 2e-6
    for found, expected in zip(heads(*inputs), heads_reference(*inputs), strict=True):
        assert found.dtype == dtype
        torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


@settings(max_examples=4, deadline=None)
@given(has_v=st.booleans(), seed=st.integers(0, 99))
def test_heads_are_the_networks(has_v, seed):
    qkv, q_norm, k_norm, cos, sin, *shape, eps = _inputs(3, 4, 2, 16, has_v, torch.float32, seed)
    hidden = torch.randn(3, 24, generator=torch.Generator().manual_seed(seed))
    q_proj, k_proj, v_proj = (torch.randn(n * 16, 24) for n in (4, 2, 2))
    values = (v_proj,) if has_v else ()
    expected = pieces.project(
        hidden, cos, sin, torch.ones(24), q_proj, k_proj, q_norm, k_norm, *values, eps=eps, size=16
    )
    x = pieces.rms_norm(hidden, None, eps)
    qkv = x @ torch.cat([q_proj, k_proj, *values]).T
    for found, e in zip(heads(qkv, q_norm, k_norm, cos, sin, *shape, eps), expected, strict=True):
        torch.testing.assert_close(found, e, rtol=1e-5, atol=1e-5)
