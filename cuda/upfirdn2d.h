// Up-sample by zero insertion, filter, down-sample, along both axes of a plane: the arithmetic, and its GPU program.
#pragma once

#include "phases.h"

namespace ilo {

constexpr int max_taps = 64;

template <typename W>
struct Taps {
  W value[max_taps];
  int count;
};

// One axis: out[m] = Σ_j f[j] · u[m·down + count − 1 − j − pad], where u[i·up] = in[i] and zero elsewhere.
struct Axis {
  int64_t in, out, up, down, pad, count;

  // The inputs that output m sees are first(m) … last(m), of which those outside 0 … in − 1 are zero.
  ILO_BOTH int64_t first(int64_t m) const { return ceil_div(m * down - pad, up); }
  ILO_BOTH int64_t last(int64_t m) const { return -ceil_div(-(m * down - pad + count - 1), up); }
  // The tap that output m applies to input i.
  ILO_BOTH int64_t tap(int64_t m, int64_t i) const { return m * down - pad + count - 1 - i * up; }
  // An upper bound of the inputs that `outputs` neighbouring outputs see.
  ILO_BOTH int64_t reach(int64_t outputs) const { return ((outputs - 1) * down + count - 1) / up + 1; }
};

template <typename W, typename Input>
ILO_BOTH W filtered(const Taps<W>& taps, const Axis& axis, int64_t m, const Input& input) {
  W sum = 0;
  const int64_t last = axis.last(m);
  for (int64_t i = axis.first(m); i <= last; ++i) sum += taps.value[axis.tap(m, i)] * input(i);
  return sum;
}

// A batch of planes in memory order: (outer, height, width, inner). Contiguous images have inner 1, those in
// channels_last have their channels there.
struct Planes {
  int64_t outer, inner;
  Axis vertical, horizontal;
};

// A block computes a tile of `rows × columns × depth` outputs: it loads the inputs that they see (phase 0), filters
// them vertically (1) and then horizontally (2).
template <typename T>
struct UpFirDn2dProgram {
  using W = Working<T>;

  const T* x;
  T* y;
  Planes planes;
  Taps<W> vertical, horizontal;
  int rows, columns, depth;

  ILO_BOTH int phases() const { return 3; }
  ILO_BOTH int64_t rows_in() const { return planes.vertical.reach(rows); }
  ILO_BOTH int64_t columns_in() const { return planes.horizontal.reach(columns); }
  ILO_BOTH int64_t shared_bytes(int) const { return (rows_in() + rows) * columns_in() * depth * sizeof(W); }
  int64_t blocks() const {
    return planes.outer * ceil_div(planes.vertical.out, rows) * ceil_div(planes.horizontal.out, columns) *
           ceil_div(planes.inner, depth);
  }

  ILO_BOTH void phase(int number, const Where& at, char* shared) const {
    const Axis& v = planes.vertical;
    const Axis& h = planes.horizontal;
    const int64_t slices = ceil_div(planes.inner, depth);
    const int64_t across = ceil_div(h.out, columns);
    const int64_t down = ceil_div(v.out, rows);
    const int64_t slice0 = at.block % slices * depth;
    const int64_t column0 = at.block / slices % across * columns;
    const int64_t row0 = at.block / (slices * across) % down * rows;
    const int64_t outer = at.block / (slices * across * down);
    const int64_t top = v.first(row0), left = h.first(column0);
    const int wide = static_cast<int>(columns_in());
    const int tall = static_cast<int>(rows_in());
    W* loaded = reinterpret_cast<W*>(shared);         // (tall, wide, depth)
    W* halfway = loaded + int64_t(tall) * wide * depth;  // (rows, wide, depth)

    if (number == 0) {
      for (int e = at.thread; e < tall * wide * depth; e += at.threads) {
        const int64_t slice = slice0 + e % depth, j = left + e / depth % wide, i = top + e / depth / wide;
        const bool inside = slice < planes.inner && j >= 0 && j < h.in && i >= 0 && i < v.in;
        loaded[e] = inside ? static_cast<W>(x[((outer * v.in + i) * h.in + j) * planes.inner + slice]) : W(0);
      }
    } else if (number == 1) {
      for (int e = at.thread; e < rows * wide * depth; e += at.threads) {
        const int row = e / depth / wide, beside = e % (wide * depth);
        if (row0 + row >= v.out) continue;
        halfway[e] = filtered(vertical, v, row0 + row,
                              [&](int64_t i) { return loaded[(i - top) * wide * depth + beside]; });
      }
    } else {
      for (int e = at.thread; e < rows * columns * depth; e += at.threads) {
        const int slice = e % depth, column = e / depth % columns, row = e / depth / columns;
        if (slice0 + slice >= planes.inner || column0 + column >= h.out || row0 + row >= v.out) continue;
        const W value = filtered(horizontal, h, column0 + column, [&](int64_t j) {
          return halfway[(int64_t(row) * wide + (j - left)) * depth + slice];
        });
        y[((outer * v.out + row0 + row) * h.out + column0 + column) * planes.inner + slice0 + slice] =
            static_cast<T>(value);
      }
    }
  }
};

template <typename T, typename Launch>
void launch_upfirdn2d(const Launch& launch, const T* x, T* y, const Planes& planes, const Taps<Working<T>>& vertical,
                      const Taps<Working<T>>& horizontal) {
  const int threads = 256;
  const int64_t shared_limit = 48 << 10;  // what every GPU gives without being asked
  const bool flat = planes.inner == 1;
  UpFirDn2dProgram<T> program{x, y, planes, vertical, horizontal, flat ? 16 : 4, flat ? 64 : 8, flat ? 1 : 32};
  while (program.shared_bytes(threads) > shared_limit) {  // long filters, strong down-sampling
    int& longest = program.depth > 1 ? program.depth : program.rows > program.columns ? program.rows : program.columns;
    longest /= 2;
  }
  launch(program, program.blocks(), threads);
}

}  // namespace ilo
