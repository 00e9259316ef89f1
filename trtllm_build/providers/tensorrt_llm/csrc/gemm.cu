// The grouped products of one data type: e4m3 activations, e4m3 weights, bf16 result.
// Upstream's moe_gemm_kernels_fp8_fp8.cu instantiates four; the other three would only be compiled and never called.
#include "tensorrt_llm/kernels/cutlass_kernels/moe_gemm/moe_gemm_template_dispatch.h"

namespace tensorrt_llm::kernels::cutlass_kernels_oss {

// Upstream's dispatch names kernels for Ada too, a hundred of them, and compiles them whatever the device is.
template <typename GemmOutputType, typename Arch, cutlass::WeightOnlyQuantOp QuantOp, typename EpilogueTag,
          typename ThreadblockShape, typename WarpShape, int Stages>
struct genericMoeGemmKernelLauncher<__nv_fp8_e4m3, __nv_fp8_e4m3, GemmOutputType, Arch, QuantOp, EpilogueTag,
                                    ThreadblockShape, WarpShape, Stages> {
  static void call(GroupedGemmInput<__nv_fp8_e4m3, __nv_fp8_e4m3, GemmOutputType, GemmOutputType>, int) {
    TLLM_THROW("the library holds kernels for Hopper only");
  }
};

}  // namespace tensorrt_llm::kernels::cutlass_kernels_oss

namespace tensorrt_llm::kernels::cutlass_kernels {
template class MoeGemmRunner<__nv_fp8_e4m3, __nv_fp8_e4m3, __nv_bfloat16>;
}
