// Sixteen bytes at a time between memory in fp16, bf16 or fp32 and registers in fp32.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

namespace earlybert {

__device__ __forceinline__ float to_float(float value) { return value; }
__device__ __forceinline__ float to_float(__half value) { return __half2float(value); }
__device__ __forceinline__ float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

template <typename T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) { return value; }
template <>
__device__ __forceinline__ __half from_float<__half>(float value) { return __float2half_rn(value); }
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) { return __float2bfloat16_rn(value); }

// The alignment is what makes the compiler move a pack in one access.
template <typename T, int PACK>
struct alignas(sizeof(T) * PACK) Pack {
  T value[PACK];
};

template <typename T, int PACK>
__device__ __forceinline__ void load(const T* __restrict__ from, float (&to)[PACK]) {
  const Pack<T, PACK> pack = *reinterpret_cast<const Pack<T, PACK>*>(from);
#pragma unroll
  for (int i = 0; i < PACK; ++i) to[i] = to_float(pack.value[i]);
}

template <typename T, int PACK>
__device__ __forceinline__ void store(T* __restrict__ to, const float (&from)[PACK]) {
  Pack<T, PACK> pack;
#pragma unroll
  for (int i = 0; i < PACK; ++i) pack.value[i] = from_float<T>(from[i]);
  *reinterpret_cast<Pack<T, PACK>*>(to) = pack;
}

}  // namespace earlybert
