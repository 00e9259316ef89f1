// C interface of the fused experts: pointers and numbers, for ctypes. It knows neither Python nor torch, so one library
// serves every version of both. library.py mirrors the two structures.
#include <cuda_runtime_api.h>

#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "moe_kernels.h"
#include "tensorrt_llm/common/workspace.h"

namespace experts = tensorrt_llm::kernels::cutlass_kernels;
namespace common = tensorrt_llm::common;

struct Shape {
  int64_t tokens, hidden, width, experts, top_k;
};

struct Call {
  Shape shape;
  void* output;                // [tokens, hidden] bf16
  void const* input;           // [tokens, hidden] e4m3
  int const* ids;              // [tokens, top_k]
  float const* weights;        // [tokens, top_k]
  void const* up_gate;         // [experts, 2 * width, hidden] e4m3
  void const* down;            // [experts, hidden, width] e4m3
  float const* up_gate_scale;  // [experts]
  float const* quantise;       // [experts]
  float const* down_scale;     // [experts]
  void* workspace;             // workspace_bytes(shape), on a multiple of 128
  void* stream;
  int64_t tactic[2];  // of the first product and of the second
};

// Not in the unnamed namespace: a function that takes a type from there is not exported.
struct Handle {
  experts::CutlassMoeFCRunner<__nv_fp8_e4m3, __nv_fp8_e4m3, __nv_bfloat16> runner;
  std::vector<tensorrt_llm::cutlass_extensions::CutlassGemmConfig> tactics;  // the same for both products
};

namespace {

constexpr auto kGate = experts::ActivationType::GegluTanh;
thread_local std::string message;

// No exception may cross into ctypes: -1 stands for one, and experts_error tells which.
template <typename Function>
int64_t guarded(Function function) {
  try {
    return function();
  } catch (std::exception const& error) {
    message = error.what();
    return -1;
  }
}

int64_t runner_bytes(Handle* handle, Shape const& s) {
  return handle->runner.getWorkspaceSize(s.tokens, s.hidden, s.width, s.experts, s.top_k, kGate, {}, false, false, false,
                                         false, false);
}

}  // namespace

extern "C" {

char const* experts_error() { return message.c_str(); }

int64_t experts_open(Handle** handle) {
  return guarded([&] {
    auto opened = std::make_unique<Handle>();
    opened->runner.use_fused_finalize_ = false;  // those kernels are not in the library
    for (auto const& config : opened->runner.getTactics(experts::MoeGemmId::GEMM_1)) {
      if (opened->runner.queryOccupancyForConfig(config) > 0) opened->tactics.push_back(config);
    }
    *handle = opened.release();
    return 0;
  });
}

void experts_close(Handle* handle) { delete handle; }

int64_t experts_tactics(Handle* handle) { return handle->tactics.size(); }

int64_t experts_workspace_bytes(Handle* handle, Shape const* shape) {
  return guarded([&] {
    size_t parts[] = {static_cast<size_t>(runner_bytes(handle, *shape)), shape->tokens * shape->top_k * sizeof(int)};
    return common::calculateTotalWorkspaceSize(parts, 2);
  });
}

int64_t experts_run(Handle* handle, Call const* call) {
  return guarded([&] {
    Shape const& s = call->shape;
    handle->runner.setTactic(handle->tactics.at(call->tactic[0]), handle->tactics.at(call->tactic[1]));
    auto* workspace = static_cast<int8_t*>(call->workspace);
    auto* rows = reinterpret_cast<int*>(common::nextWorkspacePtr(workspace, runner_bytes(handle, s)));
    auto quantisation = experts::QuantParams::FP8(call->up_gate_scale, call->quantise, call->down_scale, nullptr, nullptr,
                                                  /*fc2_use_per_expert_act_scale=*/true);
    tensorrt_llm::kernels::LoraParams lora{};
    experts::MoeMinLatencyParams latency{};
    handle->runner.runMoe(call->input, nullptr, false, call->ids, call->weights, call->up_gate, nullptr,
                          experts::ActivationParams(kGate), call->down, nullptr, quantisation, s.tokens, s.hidden,
                          /*unpadded_hidden_size=*/s.hidden, s.width, s.experts, s.top_k,
                          reinterpret_cast<char*>(workspace), call->output, rows, {}, /*enable_alltoall=*/false,
                          /*use_lora=*/false, lora, false, false, /*min_latency_mode=*/false, latency,
                          /*enable_pdl=*/true, static_cast<cudaStream_t>(call->stream));
    return 0;
  });
}

}  // extern "C"
