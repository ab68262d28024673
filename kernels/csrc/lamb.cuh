// LAMB on many tensors at once, all fp32. Stage one: moments, updates without trust ratio, squared norms of what this
// rank holds of each tensor. (The ranks add them up and make the ratios.) Stage two: weight += factor * update.
#pragma once

#include "scalar.cuh"

namespace earlybert {

constexpr int kLambThreads = 256;
constexpr int kLambChunk = 16384;  // elements a block works on

// Consecutive elements of one tensor, one row of the table that Python fills.
struct Stretch {
  float* weight;
  const float* gradient;
  float* first;
  float* second;
  float* update;
  long long numel;
};

// Where a block finds its work: chunk c is number c - chunk_start[owner] of stretch owner = chunk_owner[c].
struct Chunk {
  Stretch stretch;  // pointers at the chunk's first element, numel of the chunk
  int owner;

  __device__ static Chunk of(const Stretch* stretches, const int* chunk_owner, const int* chunk_start) {
    const int owner = chunk_owner[blockIdx.x];
    const long long start = static_cast<long long>(blockIdx.x - chunk_start[owner]) * kLambChunk;
    const Stretch whole = stretches[owner];
    const long long rest = whole.numel - start;
    return Chunk{{whole.weight + start, whole.gradient + start, whole.first + start, whole.second + start,
                  whole.update + start, rest < kLambChunk ? rest : kLambChunk},
                 owner};
  }
};

// Elements before the first 16-byte border that all pointers share; everything where they share none.
__device__ __forceinline__ int elements_before_border(const Stretch& s) {
  const unsigned long long offset = reinterpret_cast<unsigned long long>(s.weight) % 16;
  const bool shared = reinterpret_cast<unsigned long long>(s.gradient) % 16 == offset &&
                      reinterpret_cast<unsigned long long>(s.first) % 16 == offset &&
                      reinterpret_cast<unsigned long long>(s.second) % 16 == offset &&
                      reinterpret_cast<unsigned long long>(s.update) % 16 == offset;
  const int before = static_cast<int>((16 - offset) % 16 / 4);
  return shared && before < s.numel ? before : static_cast<int>(s.numel);
}

// Calls one(i) for every element outside whole packs and four(i) for the first element of every pack of four.
template <typename One, typename Four>
__device__ __forceinline__ void for_each_element(const Stretch& s, One one, Four four) {
  const int numel = static_cast<int>(s.numel);
  const int before = elements_before_border(s);
  const int packs = (numel - before) / 4;
  const int after = before + packs * 4;
  for (int i = threadIdx.x; i < before; i += kLambThreads) one(i);
  for (int pack = threadIdx.x; pack < packs; pack += kLambThreads) four(before + pack * 4);
  for (int i = after + threadIdx.x; i < numel; i += kLambThreads) one(i);
}

__device__ __forceinline__ float4 load_four(const float* from) { return *reinterpret_cast<const float4*>(from); }
__device__ __forceinline__ void store_four(float* to, float4 value) { *reinterpret_cast<float4*>(to) = value; }

// Adds up over the warp, in the same order every time.
__device__ __forceinline__ double sum_over_warp(double value) {
  for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xFFFFFFFFu, value, offset);
  return value;
}

// partial[chunks, 2]: squared norms of weight and update.
__global__ void __launch_bounds__(kLambThreads, 1)
    lamb_stage_one(const Stretch* __restrict__ stretches, const int* __restrict__ chunk_owner,
                   const int* __restrict__ chunk_start, double* __restrict__ partial, LambRule rule) {
  const Chunk chunk = Chunk::of(stretches, chunk_owner, chunk_start);
  const Stretch& s = chunk.stretch;
  // At most 64 elements a thread, then double: fp32 is exact enough for so few.
  float weight_square = 0.0f, update_square = 0.0f;
  const auto advance = [&](float weight, float gradient, float& first, float& second) {
    const float update = rule.advance(weight, gradient, first, second);
    weight_square += weight * weight;
    update_square += update * update;
    return update;
  };
  for_each_element(
      s, [&](int i) { s.update[i] = advance(s.weight[i], s.gradient[i], s.first[i], s.second[i]); },
      [&](int i) {
        const float4 weight = load_four(s.weight + i), gradient = load_four(s.gradient + i);
        float4 first = load_four(s.first + i), second = load_four(s.second + i), update;
        update.x = advance(weight.x, gradient.x, first.x, second.x);
        update.y = advance(weight.y, gradient.y, first.y, second.y);
        update.z = advance(weight.z, gradient.z, first.z, second.z);
        update.w = advance(weight.w, gradient.w, first.w, second.w);
        store_four(s.first + i, first);
        store_four(s.second + i, second);
        store_four(s.update + i, update);
      });
  __shared__ double shared[2][kLambThreads / 32];
  const double squares[2] = {sum_over_warp(weight_square), sum_over_warp(update_square)};
  if (threadIdx.x % 32 == 0) {
    shared[0][threadIdx.x / 32] = squares[0];
    shared[1][threadIdx.x / 32] = squares[1];
  }
  __syncthreads();
  if (threadIdx.x < 2) {
    double total = 0.0;
    for (int warp = 0; warp < kLambThreads / 32; ++warp) total += shared[threadIdx.x][warp];
    partial[2 * static_cast<long long>(blockIdx.x) + threadIdx.x] = total;
  }
}

// One warp a stretch: squares[2, stretches] from the partial sums of its chunks.
__global__ void __launch_bounds__(32)
    lamb_squared_norms(const double* __restrict__ partial, const int* __restrict__ chunk_start,
                       double* __restrict__ squares) {
  double total[2] = {0.0, 0.0};
  for (int chunk = chunk_start[blockIdx.x] + threadIdx.x; chunk < chunk_start[blockIdx.x + 1]; chunk += 32) {
    total[0] += partial[2 * static_cast<long long>(chunk)];
    total[1] += partial[2 * static_cast<long long>(chunk) + 1];
  }
  for (int kind = 0; kind < 2; ++kind) {
    total[kind] = sum_over_warp(total[kind]);
    if (threadIdx.x == 0) squares[kind * gridDim.x + blockIdx.x] = total[kind];
  }
}

__global__ void __launch_bounds__(kLambThreads, 1)
    lamb_stage_two(const Stretch* __restrict__ stretches, const float* __restrict__ factors,
                   const int* __restrict__ chunk_owner, const int* __restrict__ chunk_start) {
  const Chunk chunk = Chunk::of(stretches, chunk_owner, chunk_start);
  const Stretch& s = chunk.stretch;
  const float factor = factors[chunk.owner];
  for_each_element(
      s, [&](int i) { s.weight[i] += factor * s.update[i]; },
      [&](int i) {
        float4 weight = load_four(s.weight + i);
        const float4 update = load_four(s.update + i);
        weight.x += factor * update.x;
        weight.y += factor * update.y;
        weight.z += factor * update.z;
        weight.w += factor * update.w;
        store_four(s.weight + i, weight);
      });
}

}  // namespace earlybert
