// Tile shapes that upstream's dispatch names and this library leaves out: each throws the exception which upstream takes
// for "not a shape of this device", so they never become tactics (MoeGemmRunner::queryOccupancyForConfig).
#pragma once
#include "cutlass/arch/arch.h"
#include "cutlass_extensions/epilogue_helpers.h"
#include "moe_gemm_kernels.h"
#include "tensorrt_llm/common/assert.h"
#include "tensorrt_llm/kernels/cutlass_kernels/moe_gemm/launchers/moe_gemm_tma_ws_launcher.h"

namespace tensorrt_llm::kernels::cutlass_kernels_oss {

using Input = TmaWarpSpecializedGroupedGemmInput;
using Cluster = cute::Shape<int32_t, int32_t, cute::_1>;

template <typename Arch, typename T, typename WeightType, typename OutputType, typename EpilogueSchedule,
          typename EpilogueTag, Input::EpilogueFusion FUSION, typename TileShape, typename ClusterShape, bool IsMXFPX,
          bool DYNAMIC_CGA, bool BIAS, bool SwapAB>
void tma_warp_specialized_generic_moe_gemm_kernelLauncher(Input, int, int, cudaStream_t, int*, size_t*, Cluster, Cluster) {
  TLLM_THROW("this tile shape is not in the library");
}

}  // namespace tensorrt_llm::kernels::cutlass_kernels_oss

#define LEFT_OUT(FUSION, M, N, K, CLUSTER_M, CLUSTER_N, SWAP)                                                           \
  template void tensorrt_llm::kernels::cutlass_kernels_oss::tma_warp_specialized_generic_moe_gemm_kernelLauncher<       \
      cutlass::arch::Sm90, __nv_fp8_e4m3, __nv_fp8_e4m3, __nv_bfloat16, void,                                           \
      tensorrt_llm::cutlass_extensions::EpilogueOpDefault,                                                              \
      tensorrt_llm::kernels::cutlass_kernels::TmaWarpSpecializedGroupedGemmInput::EpilogueFusion::FUSION,               \
      cute::Shape<cute::Int<M>, cute::Int<N>, cute::Int<K>>,                                                            \
      cute::Shape<cute::Int<CLUSTER_M>, cute::Int<CLUSTER_N>, cute::_1>, false, false, false, SWAP>(                    \
      tensorrt_llm::kernels::cutlass_kernels::TmaWarpSpecializedGroupedGemmInput, int, int, cudaStream_t, int*, size_t*, \
      cute::Shape<int32_t, int32_t, cute::_1>, cute::Shape<int32_t, int32_t, cute::_1>)
