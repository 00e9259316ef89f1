// What surrounds the grouped products (sorting the tokens, gate, quantisation, weighted sum), for the same one data type.
// Stands in for upstream's cutlass_fused_moe_instantiation.cu, which instantiates every data type.
#include "fused_moe/cutlass_backend/cutlass_fused_moe_kernels.cuh"
#include "moe_kernels.h"

namespace tensorrt_llm::kernels::cutlass_kernels {
template class CutlassMoeFCRunner<__nv_fp8_e4m3, __nv_fp8_e4m3, __nv_bfloat16>;
}
