// The CUDA kernels on a CPU, callable from Python; launches as in csrc/operators.cu.
#include "cuda_emulation.h"

#include "gelu.cuh"
#include "lamb.cuh"
#include "layer_norm.cuh"

using namespace earlybert;

// dtype: 0 fp16, 1 bf16, 2 fp32; packs as wide as the rows allow.
template <typename Body>
void dispatch(int dtype, long long columns, Body body) {
  const auto with_type = [&](auto zero) {
    constexpr int pack = 16 / sizeof(zero);
    if (columns % pack == 0) {
      body(zero, std::integral_constant<int, pack>{});
    } else {
      body(zero, std::integral_constant<int, 1>{});
    }
  };
  if (dtype == 0) with_type(__half{});
  if (dtype == 1) with_type(__nv_bfloat16{});
  if (dtype == 2) with_type(float{});
}

static unsigned blocks(long long work, long long size) { return static_cast<unsigned>((work + size - 1) / size); }

extern "C" {

void scalar_gelu(const float* input, float* value, float* derivative, long long count) {
  for (long long i = 0; i < count; ++i) {
    value[i] = gelu(input[i]);
    derivative[i] = gelu_derivative(input[i]);
  }
}

void scalar_philox(const unsigned* counter, unsigned key_low, unsigned key_high, unsigned* random) {
  const Philox result = philox({counter[0], counter[1], counter[2], counter[3]}, key_low, key_high);
  for (int i = 0; i < 4; ++i) random[i] = result.word(i);
}

void scalar_lamb(float* numbers, double beta1, double beta2, double decay, double root_scale, double eps,
                 long long count) {
  // Rows of weight, gradient, first, second; the update goes where the gradient was.
  const LambRule rule = LambRule::of(beta1, beta2, decay, root_scale, eps);
  for (long long i = 0; i < count; ++i) {
    float* row = numbers + 4 * i;
    row[1] = rule.advance(row[0], row[1], row[2], row[3]);
  }
}

void run_gelu_forward(int dtype, const void* hidden, const void* bias, void* output, long long rows, int columns,
                      unsigned groups) {
  dispatch(dtype, columns, [&](auto zero, auto pack) {
    using T = decltype(zero);
    emulation::launch({blocks(columns / pack, kGeluThreads), groups}, {kGeluThreads}, [&] {
      bias_gelu_forward<T, pack>((const T*)hidden, (const T*)bias, (T*)output, rows, columns);
    });
  });
}

void run_gelu_backward(int dtype, const void* grad_output, const void* hidden, const void* bias, void* grad_hidden,
                       float* partial, long long rows, int columns, unsigned groups) {
  dispatch(dtype, columns, [&](auto zero, auto pack) {
    using T = decltype(zero);
    emulation::launch({blocks(columns / pack, kGeluThreads), groups}, {kGeluThreads}, [&] {
      bias_gelu_backward<T, pack>((const T*)grad_output, (const T*)hidden, (const T*)bias, (T*)grad_hidden, partial,
                                  rows, columns);
    });
  });
}

void run_norm_forward(int dtype, const void* hidden, const void* residual, const void* weight, const void* bias,
                      void* output, void* sum, float* mean, float* deviation, long long rows, int columns,
                      float epsilon, double probability, unsigned long long seed) {
  dispatch(dtype, columns, [&](auto zero, auto pack) {
    using T = decltype(zero);
    const unsigned threads = blocks(columns / pack, 32) * 32;
    emulation::launch({static_cast<unsigned>(rows)}, {threads}, [&] {
      dropout_residual_layer_norm_forward<T, pack>((const T*)hidden, (const T*)residual, (const T*)weight,
                                                   (const T*)bias, (T*)output, (T*)sum, mean, deviation, columns,
                                                   epsilon, Dropout::of(probability, seed));
    });
  });
}

void run_norm_backward(int dtype, const void* grad_output, const void* sum, const float* mean, const float* deviation,
                       const void* weight, void* grad_hidden, void* grad_residual, float* partial, long long rows,
                       int columns, unsigned groups, double probability, unsigned long long seed) {
  dispatch(dtype, columns, [&](auto zero, auto pack) {
    using T = decltype(zero);
    const unsigned threads = blocks(columns / pack, 32) * 32;
    emulation::launch({groups}, {threads, std::max(1u, 256 / threads)}, [&] {
      dropout_residual_layer_norm_backward<T, pack>((const T*)grad_output, (const T*)sum, mean, deviation,
                                                    (const T*)weight, (T*)grad_hidden, (T*)grad_residual, partial,
                                                    rows, columns, Dropout::of(probability, seed));
    });
  });
}

void run_lamb_stage_one(const Stretch* stretches, const int* chunk_owner, const int* chunk_start, double* partial,
                        double* squares, unsigned chunks, unsigned tensors, double beta1, double beta2, double decay,
                        double root_scale, double eps) {
  const LambRule rule = LambRule::of(beta1, beta2, decay, root_scale, eps);
  emulation::launch({chunks}, {kLambThreads}, [&] {
    lamb_stage_one(stretches, chunk_owner, chunk_start, partial, rule);
  });
  emulation::launch({tensors}, {32}, [&] { lamb_squared_norms(partial, chunk_start, squares); });
}

void run_lamb_stage_two(const Stretch* stretches, const float* factors, const int* chunk_owner, const int* chunk_start,
                        unsigned chunks) {
  emulation::launch({chunks}, {kLambThreads}, [&] { lamb_stage_two(stretches, factors, chunk_owner, chunk_start); });
}

}  // extern "C"
