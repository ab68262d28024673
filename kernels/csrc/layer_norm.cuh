// output = LayerNorm(residual + dropout(hidden)) and its gradients, row-major [rows, columns].
//
// Each thread owns one pack of columns of a row, so a row is threadIdx.x = 0 .. ceil(columns / PACK), rounded up to
// whole warps; blockDim.y rows are worked on at once. The mask is not stored: backward draws it again (scalar.cuh).
#pragma once

#include "pack.cuh"
#include "scalar.cuh"

namespace earlybert {

constexpr int kLayerNormThreads = 512;

// Adds up N numbers over the threads of one row, in the same order every time. Every thread of the block calls it.
template <int N>
__device__ __forceinline__ void sum_over_row(float (&value)[N], float* shared) {
  const int warps = blockDim.x / 32, warp = threadIdx.x / 32;
  float* of_row = shared + threadIdx.y * warps * N;
#pragma unroll
  for (int i = 0; i < N; ++i) {
    for (int offset = 16; offset > 0; offset /= 2) value[i] += __shfl_xor_sync(0xFFFFFFFFu, value[i], offset);
    if (threadIdx.x % 32 == 0) of_row[warp * N + i] = value[i];
  }
  __syncthreads();
#pragma unroll
  for (int i = 0; i < N; ++i) {
    value[i] = 0.0f;
    for (int other = 0; other < warps; ++other) value[i] += of_row[other * N + i];
  }
  __syncthreads();
}

// One block a row. `sum` (what is normalised), `mean` and `inverse_deviation` are for the backward pass.
template <typename T, int PACK>
__global__ void __launch_bounds__(kLayerNormThreads, 1)
    dropout_residual_layer_norm_forward(const T* __restrict__ hidden, const T* __restrict__ residual,
                                        const T* __restrict__ weight, const T* __restrict__ bias,
                                        T* __restrict__ output, T* __restrict__ sum, float* __restrict__ mean,
                                        float* __restrict__ inverse_deviation, int columns, float epsilon,
                                        Dropout dropout) {
  __shared__ float shared[kLayerNormThreads / 32];
  const long long row = blockIdx.x;
  const int column = threadIdx.x * PACK;
  const bool active = column < columns;
  float value[PACK] = {};
  float total[1] = {0.0f};
  if (active) {
    float added[PACK], factor[PACK];
    load(hidden + row * columns + column, value);
    load(residual + row * columns + column, added);
    dropout.factors(row, column, factor);
#pragma unroll
    for (int i = 0; i < PACK; ++i) {
      // Rounded as it is stored: backward must see the numbers that were normalised.
      value[i] = to_float(from_float<T>(value[i] * factor[i] + added[i]));
      total[0] += value[i];
    }
    store(sum + row * columns + column, value);
  }
  sum_over_row(total, shared);
  const float row_mean = total[0] / columns;
  total[0] = 0.0f;
  if (active) {
#pragma unroll
    for (int i = 0; i < PACK; ++i) total[0] += (value[i] - row_mean) * (value[i] - row_mean);
  }
  sum_over_row(total, shared);
  const float scale = rsqrtf(total[0] / columns + epsilon);
  if (threadIdx.x == 0) {
    mean[row] = row_mean;
    inverse_deviation[row] = scale;
  }
  if (active) {
    float multiplier[PACK], shift[PACK];
    load(weight + column, multiplier);
    load(bias + column, shift);
#pragma unroll
    for (int i = 0; i < PACK; ++i) value[i] = (value[i] - row_mean) * scale * multiplier[i] + shift[i];
    store(output + row * columns + column, value);
  }
}

// Adds up one pack a thread over the rows that the block worked on at once, and stores the block's share.
template <int PACK>
__device__ __forceinline__ void store_partial(const float (&value)[PACK], float* shared, float* __restrict__ partial,
                                              int column, int columns) {
  float* mine = shared + (threadIdx.y * blockDim.x + threadIdx.x) * PACK;
#pragma unroll
  for (int i = 0; i < PACK; ++i) mine[i] = value[i];
  __syncthreads();
  if (threadIdx.y == 0 && column < columns) {
    for (int i = 0; i < PACK; ++i) {
      float total = 0.0f;
      for (unsigned row = 0; row < blockDim.y; ++row) total += shared[(row * blockDim.x + threadIdx.x) * PACK + i];
      partial[column + i] = total;
    }
  }
  __syncthreads();
}

// partial[2, gridDim.x, columns]: what each block adds to the gradients of weight and bias.
// `grad_hidden` is null without dropout, where it equals `grad_residual`.
template <typename T, int PACK>
__global__ void __launch_bounds__(kLayerNormThreads, 1)
    dropout_residual_layer_norm_backward(const T* __restrict__ grad_output, const T* __restrict__ sum,
                                         const float* __restrict__ mean, const float* __restrict__ inverse_deviation,
                                         const T* __restrict__ weight, T* __restrict__ grad_hidden,
                                         T* __restrict__ grad_residual, float* __restrict__ partial, long long rows,
                                         int columns, Dropout dropout) {
  __shared__ float shared[kLayerNormThreads * PACK];
  const int column = threadIdx.x * PACK;
  float weight_gradient[PACK] = {}, bias_gradient[PACK] = {};
  const long long step = static_cast<long long>(gridDim.x) * blockDim.y;
  for (long long first = static_cast<long long>(blockIdx.x) * blockDim.y; first < rows; first += step) {
    const long long row = first + threadIdx.y;
    const bool active = row < rows && column < columns;
    float gradient[PACK] = {}, normalised[PACK] = {};
    float totals[2] = {0.0f, 0.0f};
    float scale = 0.0f;
    if (active) {
      float multiplier[PACK];
      load(weight + column, multiplier);
      load(grad_output + row * columns + column, gradient);
      load(sum + row * columns + column, normalised);
      const float row_mean = mean[row];
      scale = inverse_deviation[row];
#pragma unroll
      for (int i = 0; i < PACK; ++i) {
        normalised[i] = (normalised[i] - row_mean) * scale;
        weight_gradient[i] += gradient[i] * normalised[i];
        bias_gradient[i] += gradient[i];
        gradient[i] *= multiplier[i];
        totals[0] += gradient[i];
        totals[1] += gradient[i] * normalised[i];
      }
    }
    sum_over_row(totals, shared);
    if (active) {
      const float mean_gradient = totals[0] / columns, mean_product = totals[1] / columns;
      float factor[PACK];
#pragma unroll
      for (int i = 0; i < PACK; ++i) gradient[i] = scale * (gradient[i] - mean_gradient - normalised[i] * mean_product);
      store(grad_residual + row * columns + column, gradient);
      dropout.factors(row, column, factor);
#pragma unroll
      for (int i = 0; i < PACK; ++i) gradient[i] *= factor[i];
      if (grad_hidden != nullptr) store(grad_hidden + row * columns + column, gradient);
    }
  }
  const long long share = static_cast<long long>(gridDim.x) * columns;
  float* of_block = partial + static_cast<long long>(blockIdx.x) * columns;
  store_partial(weight_gradient, shared, of_block, column, columns);
  store_partial(bias_gradient, shared, of_block + share, column, columns);
}

}  // namespace earlybert
