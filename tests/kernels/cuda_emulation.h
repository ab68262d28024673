// Runs CUDA kernels on a CPU, thread by thread, so that their own source can be tested without a GPU.
//
// Each thread of a block is a fiber. Barriers and warp shuffles hand over to the next fiber; that all threads of a block
// meet at the same kind of one is checked. Blocks run one after the other, so shared memory may be static.
// It does not show: races between barriers, alignment faults, speed.
#pragma once

#include <ucontext.h>

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <memory>
#include <vector>

#define __shared__ static
#define __launch_bounds__(...)

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#undef __global__
#define __global__ inline
#undef __device__
#define __device__
#undef __forceinline__
#define __forceinline__ inline

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace emulation {

enum class Meeting { kNone, kBarrier, kShuffle };

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  uint3 index;
  bool finished = false;
  Meeting meeting = Meeting::kNone;
};

inline ucontext_t scheduler;
inline std::vector<Fiber> fibers;
inline Fiber* current;
inline std::function<void()> body;
inline double exchanged[1024];

inline void meet(Meeting meeting) {
  current->meeting = meeting;
  swapcontext(&current->context, &scheduler);
}

inline void run_fiber() {
  body();
  current->finished = true;
}

inline void start(Fiber& fiber, unsigned thread) {
  constexpr size_t kStack = 64 * 1024;
  fiber.index = {thread % blockDim.x, thread / blockDim.x, 0};
  fiber.stack = std::make_unique<char[]>(kStack);
  getcontext(&fiber.context);
  fiber.context.uc_stack.ss_sp = fiber.stack.get();
  fiber.context.uc_stack.ss_size = kStack;
  fiber.context.uc_link = &scheduler;
  makecontext(&fiber.context, run_fiber, 0);
}

inline void run_block() {
  fibers = std::vector<Fiber>(blockDim.x * blockDim.y);
  for (unsigned thread = 0; thread < fibers.size(); ++thread) start(fibers[thread], thread);
  for (size_t alive = fibers.size(); alive > 0;) {
    Meeting meeting = Meeting::kNone;
    for (Fiber& fiber : fibers) {
      if (fiber.finished) continue;
      current = &fiber;
      threadIdx = fiber.index;
      swapcontext(&scheduler, &fiber.context);
      if (fiber.finished) {
        --alive;
      } else if (meeting == Meeting::kNone) {
        meeting = fiber.meeting;
      } else if (meeting != fiber.meeting) {
        std::fprintf(stderr, "threads of a block met at different places\n");
        std::abort();
      }
    }
  }
}

// Runs kernel() for every thread of the grid, x and y.
inline void launch(dim3 grid, dim3 block, std::function<void()> kernel) {
  body = std::move(kernel);
  gridDim = grid;
  blockDim = block;
  for (unsigned y = 0; y < grid.y; ++y)
    for (unsigned x = 0; x < grid.x; ++x) {
      blockIdx = {x, y, 0};
      run_block();
    }
}

}  // namespace emulation

inline void __syncthreads() { emulation::meet(emulation::Meeting::kBarrier); }

template <typename T>
T __shfl_xor_sync(unsigned, T value, int offset) {
  const unsigned thread = threadIdx.y * blockDim.x + threadIdx.x;
  emulation::exchanged[thread] = value;
  emulation::meet(emulation::Meeting::kShuffle);
  const T received = static_cast<T>(emulation::exchanged[thread ^ offset]);
  emulation::meet(emulation::Meeting::kShuffle);
  return received;
}

inline float rsqrtf(float value) { return 1.0f / std::sqrt(value); }
