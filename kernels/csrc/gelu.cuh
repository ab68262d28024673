// output = gelu(hidden + bias) and its gradients, row-major [rows, columns].
//
// A thread owns PACK columns (the bias and the sums of its gradient stay in registers) and walks down the rows.
// Launch: blockDim.x threads over packs of columns, gridDim.y groups of rows.
#pragma once

#include "pack.cuh"
#include "scalar.cuh"

namespace earlybert {

constexpr int kGeluThreads = 128;

template <typename T, int PACK>
__global__ void __launch_bounds__(kGeluThreads)
    bias_gelu_forward(const T* __restrict__ hidden, const T* __restrict__ bias, T* __restrict__ output, long long rows,
                      int columns) {
  const int column = (blockIdx.x * kGeluThreads + threadIdx.x) * PACK;
  if (column >= columns) return;
  float bias_value[PACK];
  load(bias + column, bias_value);
#pragma unroll 2
  for (long long row = blockIdx.y; row < rows; row += gridDim.y) {
    float value[PACK];
    load(hidden + row * columns + column, value);
#pragma unroll
    for (int i = 0; i < PACK; ++i) value[i] = gelu(value[i] + bias_value[i]);
    store(output + row * columns + column, value);
  }
}

// partial[group, columns] holds what each group of rows adds to the bias gradient: a sum in a fixed order, no atomics.
template <typename T, int PACK>
__global__ void __launch_bounds__(kGeluThreads)
    bias_gelu_backward(const T* __restrict__ grad_output, const T* __restrict__ hidden, const T* __restrict__ bias,
                       T* __restrict__ grad_hidden, float* __restrict__ partial, long long rows, int columns) {
  const int column = (blockIdx.x * kGeluThreads + threadIdx.x) * PACK;
  if (column >= columns) return;
  float bias_value[PACK], bias_gradient[PACK] = {};
  load(bias + column, bias_value);
#pragma unroll 2
  for (long long row = blockIdx.y; row < rows; row += gridDim.y) {
    float gradient[PACK], value[PACK];
    load(grad_output + row * columns + column, gradient);
    load(hidden + row * columns + column, value);
#pragma unroll
    for (int i = 0; i < PACK; ++i) {
      gradient[i] *= gelu_derivative(value[i] + bias_value[i]);
      bias_gradient[i] += gradient[i];
    }
    store(grad_hidden + row * columns + column, gradient);
  }
#pragma unroll
  for (int i = 0; i < PACK; ++i) partial[static_cast<long long>(blockIdx.y) * columns + column + i] = bias_gradient[i];
}

}  // namespace earlybert
