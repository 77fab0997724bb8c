// GPU kernels as programs of phases.
//
// A program is a struct with its arguments and
//
//   int phases() const;                       how many
//   int64_t shared_bytes(int threads) const;  memory that the threads of a block share
//   void phase(int number, const Where& at, char* shared) const;
//
// Between two phases all threads of a block wait for each other, and nothing else orders them. So a program is right if
// it is right for every order of the threads within a phase, which a test can try on a machine without a GPU: it runs
// the phases one by one, thread by thread in a random order. Blocks never wait for each other: what needs the results
// of all blocks is a launch of its own. `Launch` below is a functor (program, blocks, threads): on the GPU `OnStream`.
#pragma once

#include "portable.h"

namespace ilo {

struct Where {
  int64_t block, blocks;
  int thread, threads;

  // This thread's first index, and its stride, when all threads of the grid share a long range.
  ILO_BOTH int64_t first() const { return block * threads + thread; }
  ILO_BOTH int64_t stride() const { return blocks * threads; }
};

// Blocks for a range that the threads go through with `first` and `stride`; enough to fill any GPU.
inline int64_t blocks_for(int64_t size, int threads) { return smaller<int64_t>(ceil_div(size, threads), 1 << 16); }

#ifdef __CUDACC__

template <typename Program>
__global__ void run(const __grid_constant__ Program program) {
  extern __shared__ __align__(16) char shared[];
  const Where at{blockIdx.x, gridDim.x, static_cast<int>(threadIdx.x), static_cast<int>(blockDim.x)};
  for (int number = 0; number < program.phases(); ++number) {
    if (number > 0) __syncthreads();
    program.phase(number, at, shared);
  }
}

struct OnStream {
  cudaStream_t stream;

  template <typename Program>
  void operator()(const Program& program, int64_t blocks, int threads) const {
    if (blocks > 0) run<<<static_cast<unsigned>(blocks), threads, program.shared_bytes(threads), stream>>>(program);
  }
};

#endif

}  // namespace ilo
