// Projection onto the l1 ball: the GPU programs. The arithmetic is in l1_ball.h.
#pragma once

#include "l1_ball.h"
#include "phases.h"

namespace ilo {

// What a block, or all blocks of an image, found in two sums (or a maximum and a sum).
struct Pair {
  double first, second;
};

ILO_BOTH Pair sums(Pair a, Pair b) { return {a.first + b.first, a.second + b.second}; }
ILO_BOTH Pair maximum_and_sum(Pair a, Pair b) {
  return {a.first > b.first ? a.first : b.first, a.second + b.second};
}

// The blocks of a launch: `blocks` for each image. The number of threads is a power of two.
constexpr int l1_threads = 256;
constexpr int l1_levels = 8;

struct Split {
  int64_t n, blocks;

  ILO_BOTH int64_t image(const Where& at) const { return at.block / blocks; }
  ILO_BOTH int64_t first(const Where& at) const { return at.block % blocks * at.threads + at.thread; }
  ILO_BOTH int64_t stride(const Where& at) const { return blocks * at.threads; }

  template <typename Combine>
  ILO_BOTH static void fold(int level, const Where& at, Pair* shared, const Combine& combine) {
    const int half = at.threads >> (level + 1);
    if (at.thread < half) shared[at.thread] = combine(shared[at.thread], shared[at.thread + half]);
  }
  // What this thread has to add up of an image's blocks, in the same order whatever the machine.
  template <typename Combine>
  ILO_BOTH Pair gathered(const Where& at, const Pair* found, const Combine& combine) const {
    Pair all{0, 0};
    for (int64_t i = at.thread; i < blocks; i += at.threads) all = combine(all, found[image(at) * blocks + i]);
    return all;
  }
};

// Largest |d| and l1 norm of every block.
template <typename T>
struct L1MeasureProgram {
  Rows<T> rows;
  Split split;
  Pair* found;

  ILO_BOTH int phases() const { return 1 + l1_levels + 1; }
  ILO_BOTH int64_t shared_bytes(int threads) const { return threads * sizeof(Pair); }

  ILO_BOTH void phase(int number, const Where& at, char* memory) const {
    Pair* shared = reinterpret_cast<Pair*>(memory);
    if (number == 0) {
      Pair mine{0, 0};
      const int64_t start = split.image(at) * rows.n;
      for (int64_t i = split.first(at); i < rows.n; i += split.stride(at)) {
        const double magnitude = std::fabs(rows.distance(start + i));
        mine = maximum_and_sum(mine, {magnitude, magnitude});
      }
      shared[at.thread] = mine;
    } else if (number <= l1_levels) {
      Split::fold(number - 1, at, shared, maximum_and_sum);
    } else if (at.thread == 0) {
      found[at.block] = shared[0];
    }
  }
};

// One step of Newton's method: every block of an image works out the same τ from what all its blocks found before, then
// sums its own coordinates at that τ. What is read and what is written are different buffers.
template <typename T>
struct L1NewtonProgram {
  Rows<T> rows;
  Split split;
  const Search* before;
  const Pair* found_before;
  Search* after;
  Pair* found;
  bool begins;  // what was found before is by L1MeasureProgram

  ILO_BOTH int phases() const { return 2 * l1_levels + 4; }
  ILO_BOTH int64_t shared_bytes(int threads) const { return threads * sizeof(Pair) + sizeof(Search); }

  ILO_BOTH void phase(int number, const Where& at, char* memory) const {
    using W = Working<T>;
    Pair* shared = reinterpret_cast<Pair*>(memory);
    Search* search = reinterpret_cast<Search*>(shared + at.threads);
    const int advance = 1 + l1_levels, pass = advance + 1, write = pass + l1_levels + 1;
    const int64_t image = split.image(at);
    if (number == 0) {
      shared[at.thread] = begins ? split.gathered(at, found_before, maximum_and_sum)
                                 : split.gathered(at, found_before, sums);
    } else if (number < advance) {
      begins ? Split::fold(number - 1, at, shared, maximum_and_sum) : Split::fold(number - 1, at, shared, sums);
    } else if (number == advance) {
      if (at.thread != 0) return;
      *search = before[image];
      begins ? search->begin(shared[0].first, shared[0].second, double(rows.n))
             : search->step(shared[0].first, shared[0].second);
      if (at.block % split.blocks == 0) after[image] = *search;
    } else if (number == pass) {
      Pair mine{0, 0};
      if (!search->done) {
        const Threshold<W> threshold(search->peak, search->gap);
        const int64_t start = image * rows.n;
        for (int64_t i = split.first(at); i < rows.n; i += split.stride(at)) {
          const double e = threshold.excess(std::fabs(rows.distance(start + i)));
          mine = sums(mine, {e, e > 0 ? 1.0 : 0.0});
        }
      }
      shared[at.thread] = mine;
    } else if (number < write) {
      Split::fold(number - pass - 1, at, shared, sums);
    } else if (at.thread == 0) {
      found[at.block] = shared[0];
    }
  }
};

// Before the search: the radii. After it: what is kept of it.
struct L1RadiusProgram {
  const double* radius;
  Search* search;
  int64_t images;

  ILO_BOTH int phases() const { return 1; }
  ILO_BOTH int64_t shared_bytes(int) const { return 0; }
  ILO_BOTH void phase(int, const Where& at, char*) const {
    for (int64_t i = at.first(); i < images; i += at.stride()) search[i] = {radius[i], 0, 0, 0, 0, false};
  }
};

struct L1ResultProgram {
  const Search* search;
  double* threshold;  // (images, 2): peak, gap
  int64_t images;

  ILO_BOTH int phases() const { return 1; }
  ILO_BOTH int64_t shared_bytes(int) const { return 0; }
  ILO_BOTH void phase(int, const Where& at, char*) const {
    for (int64_t i = at.first(); i < images; i += at.stride()) {
      threshold[2 * i] = search[i].peak;
      threshold[2 * i + 1] = search[i].gap;
    }
  }
};

template <typename T>
struct L1ShrinkProgram {
  Rows<T> rows;
  Split split;
  const double* threshold;
  T* z;

  ILO_BOTH int phases() const { return 1; }
  ILO_BOTH int64_t shared_bytes(int) const { return 0; }
  ILO_BOTH void phase(int, const Where& at, char*) const {
    using W = Working<T>;
    const int64_t image = split.image(at), start = image * rows.n;
    const double peak = threshold[2 * image], gap = threshold[2 * image + 1];
    const Threshold<W> soft(peak, gap);
    for (int64_t i = start + split.first(at); i < start + rows.n; i += split.stride(at)) {
      const W center = rows.center ? static_cast<W>(rows.center[i]) : W(0);
      z[i] = gap == INFINITY ? rows.x[i] : static_cast<T>(center + soft.shrink(rows.distance(i)));
    }
  }
};

// sᵀv and |S| of every block, and with them the derivative.
template <typename T>
struct L1DotProgram {
  Rows<T> rows;
  Split split;
  const double* threshold;
  const T* v;
  Pair* found;

  ILO_BOTH int phases() const { return 1 + l1_levels + 1; }
  ILO_BOTH int64_t shared_bytes(int threads) const { return threads * sizeof(Pair); }
  ILO_BOTH void phase(int number, const Where& at, char* memory) const {
    using W = Working<T>;
    Pair* shared = reinterpret_cast<Pair*>(memory);
    if (number == 0) {
      const int64_t image = split.image(at), start = image * rows.n;
      const Threshold<W> soft(threshold[2 * image], threshold[2 * image + 1]);
      Pair mine{0, 0};
      for (int64_t i = start + split.first(at); i < start + rows.n; i += split.stride(at)) {
        const double s = soft.sign(rows.distance(i));
        mine = sums(mine, {s * static_cast<double>(static_cast<W>(v[i])), s == 0 ? 0.0 : 1.0});
      }
      shared[at.thread] = mine;
    } else if (number <= l1_levels) {
      Split::fold(number - 1, at, shared, sums);
    } else if (at.thread == 0) {
      found[at.block] = shared[0];
    }
  }
};

template <typename T>
struct L1DerivativeProgram {
  Rows<T> rows;
  Split split;
  const double* threshold;
  const T* v;
  const double* rho;  // (images)
  const Pair* found;
  T* out;
  double* mean;  // (images)

  ILO_BOTH int phases() const { return 1 + l1_levels + 1; }
  ILO_BOTH int64_t shared_bytes(int threads) const { return threads * sizeof(Pair); }
  ILO_BOTH void phase(int number, const Where& at, char* memory) const {
    using W = Working<T>;
    Pair* shared = reinterpret_cast<Pair*>(memory);
    const int64_t image = split.image(at), start = image * rows.n;
    if (number == 0) {
      shared[at.thread] = split.gathered(at, found, sums);
    } else if (number <= l1_levels) {
      Split::fold(number - 1, at, shared, sums);
    } else {
      const Derivative<W> derivative(threshold[2 * image], threshold[2 * image + 1], shared[0].first,
                                     shared[0].second, rho[image]);
      if (at.thread == 0 && at.block % split.blocks == 0) mean[image] = derivative.mean;
      for (int64_t i = start + split.first(at); i < start + rows.n; i += split.stride(at)) {
        out[i] = static_cast<T>(derivative.value(static_cast<W>(v[i]), rows.distance(i)));
      }
    }
  }
};

inline Split split_of(int64_t images, int64_t n) {
  const int64_t enough = 2048;  // blocks that fill any GPU
  return {n, smaller(ceil_div(n, 16 * l1_threads), images < enough ? enough / images : 1)};
}

// Memory of the search: two buffers of each kind, taken in turn.
struct L1Workspace {
  Search* search[2];
  Pair* found[2];

  static int64_t bytes(int64_t images, int64_t n) {
    return 2 * images * int64_t(sizeof(Search) + split_of(images, n).blocks * sizeof(Pair));
  }
  L1Workspace(void* memory, int64_t images, int64_t n) {
    const int64_t pairs = images * split_of(images, n).blocks;
    found[0] = static_cast<Pair*>(memory);
    found[1] = found[0] + pairs;
    search[0] = reinterpret_cast<Search*>(found[1] + pairs);
    search[1] = search[0] + images;
  }
};

// `all_done` tells from the searches, which lie where the programs run, whether all are; it waits for the GPU, so it is
// asked only every few steps.
template <typename T, typename Launch, typename AllDone>
void launch_l1_threshold(const Launch& launch, const AllDone& all_done, const Rows<T>& rows, const double* radius,
                         double* threshold, void* memory) {
  const Split split = split_of(rows.images, rows.n);
  const int64_t blocks = rows.images * split.blocks, few = blocks_for(rows.images, l1_threads);
  const L1Workspace work(memory, rows.images, rows.n);
  launch(L1RadiusProgram{radius, work.search[0], rows.images}, few, l1_threads);
  launch(L1MeasureProgram<T>{rows, split, work.found[0]}, blocks, l1_threads);
  int now = 0;
  for (int64_t steps = 0; steps == 0 || steps % 6 != 0 || !all_done(work.search[now], rows.images); ++steps) {
    launch(L1NewtonProgram<T>{rows, split, work.search[now], work.found[now], work.search[1 - now],
                              work.found[1 - now], steps == 0},
           blocks, l1_threads);
    now = 1 - now;
  }
  launch(L1ResultProgram{work.search[now], threshold, rows.images}, few, l1_threads);
}

template <typename T, typename Launch>
void launch_l1_shrink(const Launch& launch, const Rows<T>& rows, const double* threshold, T* z) {
  const Split split = split_of(rows.images, rows.n);
  launch(L1ShrinkProgram<T>{rows, split, threshold, z}, rows.images * split.blocks, l1_threads);
}

template <typename T, typename Launch>
void launch_l1_derivative(const Launch& launch, const Rows<T>& rows, const double* threshold, const T* v,
                          const double* rho, T* out, double* mean, void* memory) {
  const Split split = split_of(rows.images, rows.n);
  const int64_t blocks = rows.images * split.blocks;
  Pair* found = static_cast<Pair*>(memory);
  launch(L1DotProgram<T>{rows, split, threshold, v, found}, blocks, l1_threads);
  launch(L1DerivativeProgram<T>{rows, split, threshold, v, rho, found, out, mean}, blocks, l1_threads);
}

}  // namespace ilo
