// The kernels as PyTorch operators `earlybert::*`, over PyTorch's stable ABI: one binary for every PyTorch from 2.11 on.
//
// Tensors are contiguous and of one dtype unless said otherwise; Python (kernels/*.py) sees to that.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/macros.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <algorithm>
#include <tuple>

#include "gelu.cuh"
#include "lamb.cuh"
#include "layer_norm.cuh"

namespace {

using earlybert::Dropout;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

// As many groups of rows make partial sums of a vector's gradient, on every GPU, so that the bits are the same.
constexpr int64_t kPartialSums = 256;

cudaStream_t current_stream(const Tensor& tensor) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(tensor.get_device_index(), &stream));
  return static_cast<cudaStream_t>(stream);
}

template <typename T>
T* data(const Tensor& tensor) {
  return static_cast<T*>(tensor.data_ptr());
}

// The tensor, or a copy where it does not begin on a 16-byte border: DeepSpeed cuts parameters from flat buffers.
Tensor aligned(Tensor tensor) {
  const bool is_aligned = reinterpret_cast<uintptr_t>(tensor.data_ptr()) % 16 == 0;
  return is_aligned ? tensor : torch::stable::clone(tensor);
}

// Calls body(T{}, pack) with the C++ type of a tensor and PACK = 16 bytes of it, or 1 where rows are no multiple of that.
template <typename Body>
void dispatch(const Tensor& tensor, Body body) {
  const int64_t columns = tensor.size(tensor.dim() - 1);
  const auto with_type = [&](auto zero) {
    constexpr int pack = 16 / sizeof(zero);
    if (columns % pack == 0) {
      body(zero, std::integral_constant<int, pack>{});
    } else {
      body(zero, std::integral_constant<int, 1>{});
    }
  };
  switch (tensor.scalar_type()) {
    case ScalarType::Half: return with_type(__half{});
    case ScalarType::BFloat16: return with_type(__nv_bfloat16{});
    case ScalarType::Float: return with_type(float{});
    default: STD_TORCH_CHECK(false, "earlybert kernels take float16, bfloat16 and float32 tensors only");
  }
}

dim3 gelu_grid(int64_t columns, int pack, int64_t groups) {
  const int64_t blocks = (columns / pack + earlybert::kGeluThreads - 1) / earlybert::kGeluThreads;
  return dim3(static_cast<unsigned>(blocks), static_cast<unsigned>(groups));
}

Tensor bias_gelu_forward(Tensor hidden, Tensor bias) {
  const torch::stable::accelerator::DeviceGuard guard(hidden.get_device_index());
  hidden = aligned(hidden), bias = aligned(bias);
  Tensor output = torch::stable::empty_like(hidden);
  if (hidden.numel() == 0) return output;
  const int64_t columns = bias.numel(), rows = hidden.numel() / columns;
  dispatch(hidden, [&](auto zero, auto pack) {
    using T = decltype(zero);
    const dim3 grid = gelu_grid(columns, pack, std::min<int64_t>(rows, 1024));
    earlybert::bias_gelu_forward<T, pack><<<grid, earlybert::kGeluThreads, 0, current_stream(hidden)>>>(
        data<T>(hidden), data<T>(bias), data<T>(output), rows, static_cast<int>(columns));
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return output;
}

std::tuple<Tensor, Tensor> bias_gelu_backward(Tensor grad_output, Tensor hidden, Tensor bias) {
  const torch::stable::accelerator::DeviceGuard guard(hidden.get_device_index());
  grad_output = aligned(grad_output), hidden = aligned(hidden), bias = aligned(bias);
  const int64_t columns = bias.numel(), rows = columns ? hidden.numel() / columns : 0;
  const int64_t groups = std::min(rows, kPartialSums);
  Tensor grad_hidden = torch::stable::empty_like(hidden);
  Tensor partial = torch::stable::new_empty(hidden, {groups, columns}, ScalarType::Float);
  if (hidden.numel() == 0) return {grad_hidden, partial};
  dispatch(hidden, [&](auto zero, auto pack) {
    using T = decltype(zero);
    const dim3 grid = gelu_grid(columns, pack, groups);
    earlybert::bias_gelu_backward<T, pack><<<grid, earlybert::kGeluThreads, 0, current_stream(hidden)>>>(
        data<T>(grad_output), data<T>(hidden), data<T>(bias), data<T>(grad_hidden), data<float>(partial), rows,
        static_cast<int>(columns));
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {grad_hidden, partial};
}

Dropout dropout_of(double probability, const Tensor& seed) {
  STD_TORCH_CHECK(seed.is_cpu() && seed.scalar_type() == ScalarType::Long && seed.numel() == 1,
                  "the seed must be one int64 on the CPU");
  return Dropout::of(probability, *data<int64_t>(seed));
}

// Threads for one row, each with a pack of columns, in whole warps.
unsigned threads_for_row(int64_t columns, int pack) {
  const int64_t threads = (columns / pack + 31) / 32 * 32;
  STD_TORCH_CHECK(threads <= earlybert::kLayerNormThreads, "LayerNorm over ", columns, " columns is too wide");
  return static_cast<unsigned>(threads);
}

std::tuple<Tensor, Tensor, Tensor, Tensor> dropout_residual_layer_norm_forward(
    Tensor hidden, Tensor residual, Tensor weight, Tensor bias, double probability, Tensor seed, double epsilon) {
  const torch::stable::accelerator::DeviceGuard guard(hidden.get_device_index());
  hidden = aligned(hidden), residual = aligned(residual), weight = aligned(weight), bias = aligned(bias);
  const int64_t columns = weight.numel(), rows = columns ? hidden.numel() / columns : 0;
  Tensor output = torch::stable::empty_like(hidden), sum = torch::stable::empty_like(hidden);
  Tensor mean = torch::stable::new_empty(hidden, {rows}, ScalarType::Float);
  Tensor inverse_deviation = torch::stable::new_empty(hidden, {rows}, ScalarType::Float);
  if (rows == 0) return {output, sum, mean, inverse_deviation};
  dispatch(hidden, [&](auto zero, auto pack) {
    using T = decltype(zero);
    const unsigned threads = threads_for_row(columns, pack);
    earlybert::dropout_residual_layer_norm_forward<T, pack>
        <<<static_cast<unsigned>(rows), threads, 0, current_stream(hidden)>>>(
            data<T>(hidden), data<T>(residual), data<T>(weight), data<T>(bias), data<T>(output), data<T>(sum),
            data<float>(mean), data<float>(inverse_deviation), static_cast<int>(columns),
            static_cast<float>(epsilon), dropout_of(probability, seed));
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {output, sum, mean, inverse_deviation};
}

std::tuple<Tensor, Tensor, Tensor> dropout_residual_layer_norm_backward(Tensor grad_output, Tensor sum, Tensor mean,
                                                                        Tensor inverse_deviation, Tensor weight,
                                                                        double probability, Tensor seed) {
  const torch::stable::accelerator::DeviceGuard guard(sum.get_device_index());
  grad_output = aligned(grad_output), sum = aligned(sum), weight = aligned(weight);
  const int64_t columns = weight.numel(), rows = mean.numel();
  const Dropout dropout = dropout_of(probability, seed);
  Tensor grad_residual = torch::stable::empty_like(sum);
  // Empty where nothing is dropped and the two are the same: results of an operator may not share memory.
  Tensor grad_hidden = dropout.threshold ? torch::stable::empty_like(sum) : torch::stable::new_empty(sum, {0});
  const int64_t groups = std::min(rows, kPartialSums);
  Tensor partial = torch::stable::new_empty(sum, {2, groups, columns}, ScalarType::Float);
  if (rows == 0) return {grad_hidden, grad_residual, partial};
  dispatch(sum, [&](auto zero, auto pack) {
    using T = decltype(zero);
    const unsigned threads = threads_for_row(columns, pack);
    // About 256 threads a block, so that two or three blocks share an SM's registers.
    const dim3 block(threads, std::max(1u, 256 / threads));
    earlybert::dropout_residual_layer_norm_backward<T, pack>
        <<<static_cast<unsigned>(groups), block, 0, current_stream(sum)>>>(
            data<T>(grad_output), data<T>(sum), data<float>(mean), data<float>(inverse_deviation), data<T>(weight),
            dropout.threshold ? data<T>(grad_hidden) : nullptr, data<T>(grad_residual), data<float>(partial), rows,
            static_cast<int>(columns), dropout);
  });
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return {grad_hidden, grad_residual, partial};
}

// stretches: int64 [P, 6], rows of lamb.cuh's Stretch; chunk_owner: int32 [C]; chunk_start: int32 [P + 1]; numbers as
// LambRule::of takes them. Returns float64 [2, P], squared norms of weights and updates.
Tensor lamb_stage_one(Tensor stretches, Tensor chunk_owner, Tensor chunk_start, double beta1, double beta2,
                      double weight_decay, double root_scale, double scaled_eps) {
  const torch::stable::accelerator::DeviceGuard guard(stretches.get_device_index());
  const int64_t chunks = chunk_owner.numel(), tensors = stretches.size(0);
  Tensor partial = torch::stable::new_empty(stretches, {chunks, 2}, ScalarType::Double);
  Tensor squares = torch::stable::new_empty(stretches, {2, tensors}, ScalarType::Double);
  if (tensors == 0) return squares;
  const cudaStream_t stream = current_stream(stretches);
  const earlybert::LambRule rule = earlybert::LambRule::of(beta1, beta2, weight_decay, root_scale, scaled_eps);
  if (chunks > 0) {
    earlybert::lamb_stage_one<<<static_cast<unsigned>(chunks), earlybert::kLambThreads, 0, stream>>>(
        data<earlybert::Stretch>(stretches), data<int>(chunk_owner), data<int>(chunk_start), data<double>(partial), rule);
    STD_CUDA_KERNEL_LAUNCH_CHECK();
  }
  earlybert::lamb_squared_norms<<<static_cast<unsigned>(tensors), 32, 0, stream>>>(
      data<double>(partial), data<int>(chunk_start), data<double>(squares));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
  return squares;
}

// factors: float32 [P]; the other tables as in stage one.
void lamb_stage_two(Tensor stretches, Tensor factors, Tensor chunk_owner, Tensor chunk_start) {
  const torch::stable::accelerator::DeviceGuard guard(stretches.get_device_index());
  if (chunk_owner.numel() == 0) return;
  earlybert::lamb_stage_two<<<static_cast<unsigned>(chunk_owner.numel()), earlybert::kLambThreads, 0,
                              current_stream(stretches)>>>(
      data<earlybert::Stretch>(stretches), data<float>(factors), data<int>(chunk_owner), data<int>(chunk_start));
  STD_CUDA_KERNEL_LAUNCH_CHECK();
}

}  // namespace

// Their schemas: kernels/operators.py.
STABLE_TORCH_LIBRARY_IMPL(earlybert, CUDA, library) {
  library.impl("bias_gelu_forward", TORCH_BOX(&bias_gelu_forward));
  library.impl("bias_gelu_backward", TORCH_BOX(&bias_gelu_backward));
  library.impl("dropout_residual_layer_norm_forward", TORCH_BOX(&dropout_residual_layer_norm_forward));
  library.impl("dropout_residual_layer_norm_backward", TORCH_BOX(&dropout_residual_layer_norm_backward));
  library.impl("lamb_stage_one", TORCH_BOX(&lamb_stage_one));
  library.impl("lamb_stage_two", TORCH_BOX(&lamb_stage_two));
}
