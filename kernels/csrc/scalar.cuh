// Arithmetic on single numbers, compiled unchanged by nvcc, NVRTC and g++ (whose result the tests compare with double).
#pragma once

#ifdef __CUDACC__
#define EARLYBERT_HD __host__ __device__ __forceinline__
#else
#include <cmath>
#define EARLYBERT_HD inline
#endif

namespace earlybert {

// GELU with the exact error function (Hendrycks and Gimpel 2016): h * normal_cdf(h).
EARLYBERT_HD float gelu(float h) { return 0.5f * h * (1.0f + erff(h * 0.70710678118654752f)); }

EARLYBERT_HD float gelu_derivative(float h) {
  const float cdf = 0.5f * (1.0f + erff(h * 0.70710678118654752f));
  const float density = 0.39894228040143268f * expf(-0.5f * h * h);
  return cdf + h * density;
}

// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
struct Philox {
  unsigned x, y, z, w;

  // Not an array: an index known only at run time would move it to local memory.
  EARLYBERT_HD unsigned word(int index) const { return index == 0 ? x : index == 1 ? y : index == 2 ? z : w; }
};

EARLYBERT_HD Philox philox(Philox counter, unsigned key_low, unsigned key_high) {
#ifdef __CUDACC__
#pragma unroll
#endif
  for (int round = 0; round < 10; ++round) {
    const unsigned long long first = 0xD2511F53ull * counter.x;
    const unsigned long long second = 0xCD9E8D57ull * counter.z;
    counter = Philox{static_cast<unsigned>(second >> 32) ^ counter.y ^ key_low, static_cast<unsigned>(second),
                     static_cast<unsigned>(first >> 32) ^ counter.w ^ key_high, static_cast<unsigned>(first)};
    key_low += 0x9E3779B9u;
    key_high += 0xBB67AE85u;
  }
  return counter;
}

// Dropout whose mask is a function of (seed, row, column) alone, not of the number format or the launch.
struct Dropout {
  unsigned long long seed;
  unsigned threshold;  // dropped where 16 random bits are below; 0 drops nothing
  float scale;         // of what stays

  EARLYBERT_HD static Dropout of(double probability, unsigned long long seed) {
    const unsigned threshold = static_cast<unsigned>(probability * 65536.0 + 0.5);
    return Dropout{seed, threshold, 65536.0f / static_cast<float>(65536u - threshold)};
  }

  // What multiplies PACK consecutive columns, the first of which is a multiple of PACK; PACK divides 8.
  template <int PACK>
  EARLYBERT_HD void factors(long long row, int column, float (&factor)[PACK]) const {
    if (threshold == 0) {
      for (int i = 0; i < PACK; ++i) factor[i] = 1.0f;
      return;
    }
    // One draw of 128 bits serves eight columns.
    const Philox counter{static_cast<unsigned>(column / 8), static_cast<unsigned>(row),
                         static_cast<unsigned>(row >> 32), 0u};
    const Philox random = philox(counter, static_cast<unsigned>(seed), static_cast<unsigned>(seed >> 32));
#ifdef __CUDACC__
#pragma unroll
#endif
    for (int i = 0; i < PACK; ++i) {
      const int lane = column % 8 + i;
      const unsigned bits = (random.word(lane / 2) >> (16 * (lane % 2))) & 0xFFFFu;
      factor[i] = bits < threshold ? 0.0f : scale;
    }
  }
};

// LAMB's moments and its update without trust ratio (see kernels/lamb.py). The caller folds both bias corrections into
// two numbers: first/c1 / (sqrt(second/c2) + eps) = first / (sqrt(second) * c1/sqrt(c2) + c1*eps).
struct LambRule {
  float first_rate, second_keep, second_rate, weight_decay, root_scale, scaled_eps;

  // Rates are differences of doubles: 1 - 0.999 in fp32 is off by 1.3e-5.
  EARLYBERT_HD static LambRule of(double beta1, double beta2, double weight_decay, double root_scale,
                                  double scaled_eps) {
    return LambRule{static_cast<float>(1.0 - beta1),   static_cast<float>(beta2),
                    static_cast<float>(1.0 - beta2),   static_cast<float>(weight_decay),
                    static_cast<float>(root_scale), static_cast<float>(scaled_eps)};
  }

  EARLYBERT_HD float advance(float weight, float gradient, float& first, float& second) const {
    first += first_rate * (gradient - first);
    second = second_keep * second + second_rate * gradient * gradient;
    return first / (sqrtf(second) * root_scale + scaled_eps) + weight_decay * weight;
  }
};

}  // namespace earlybert
