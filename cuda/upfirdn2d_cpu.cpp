#include <numeric>

#include "parallel.h"

namespace ilo {
namespace {

// out[t] (+)= Σ_j weight[j] · row[j][t] over `count` rows, in one go
template <int count, typename T>
void sum_of(T* out, const T* const* row, const T* weight, int64_t size, bool add) {
  const T* r[count];
  T w[count];
  for (int j = 0; j < count; ++j) r[j] = row[j], w[j] = weight[j];
#pragma GCC ivdep
  for (int64_t t = 0; t < size; ++t) {
    T sum = add ? out[t] : T(0);
    for (int j = 0; j < count; ++j) sum += w[j] * r[j][t];
    out[t] = sum;
  }
}

// The rows that an output sees, and their weights.
template <typename T>
struct Mix {
  int64_t count = 0;
  const T* row[max_taps];
  T weight[max_taps];

  void see(const T* from, T w) { row[count] = from, weight[count++] = w; }
  void sum(T* out, int64_t size) const {
    if (count == 0) std::fill_n(out, size, T(0));
    for (int64_t j = 0; j < count; j += 4) {
      const int64_t some = count - j;
      const auto some_of = some == 1 ? sum_of<1, T> : some == 2 ? sum_of<2, T> : some == 3 ? sum_of<3, T> : sum_of<4, T>;
      some_of(out, row + j, weight + j, size, j > 0);
    }
  }
};

// A strip of an image's columns, row by row: a vertical sum of the rows that it sees, then a horizontal sum of shifted
// copies of that. Outputs m with the same m mod (up / g), g = gcd(up, down), see every (down / g)-th input with the
// same taps, so both sums run over contiguous memory.
template <typename T>
class Strips {
 public:
  Strips(const Planes& planes, const Taps<T>& vertical, const Taps<T>& horizontal)
      : p_(planes), taps_v_(vertical), taps_h_(horizontal) {
    const Axis& h = p_.horizontal;
    const int64_t common = std::gcd(h.up, h.down);
    classes_ = h.up / common;
    step_ = h.down / common;
    // The rows that an output sees shall fit the first-level cache, but what neighbouring strips both see counts twice.
    const int64_t columns_in = std::max<int64_t>(16, 2048 / p_.inner);
    columns_ = std::min(ceil_div(h.out, classes_), ceil_div(columns_in * h.up, h.down * classes_)) * classes_;
  }

  int64_t rows() const { return p_.outer * strips() * p_.vertical.out; }

  void compute(const T* x, T* y, int64_t begin, int64_t end) const {
    const int64_t height = p_.vertical.out;
    while (begin < end) {
      const int64_t stop = std::min(end, (begin / height + 1) * height), strip = begin / height;
      compute_strip(x, y, strip / strips(), strip % strips() * columns_, begin % height, begin % height + stop - begin);
      begin = stop;
    }
  }

 private:
  int64_t strips() const { return ceil_div(p_.horizontal.out, columns_); }

  void compute_strip(const T* x, T* y, int64_t outer, int64_t left, int64_t top, int64_t bottom) const {
    const Axis &v = p_.vertical, &h = p_.horizontal;
    const int64_t inner = p_.inner, right = std::min(left + columns_, h.out);

    // It sees the inputs from, …, from + wide − 1, of which only those from inside_from to inside_to − 1 exist.
    const int64_t from = h.first(left), wide = ceil_div(h.last(right - 1) + 1 - from, step_) * step_;
    const int64_t inside_from = std::min(std::max<int64_t>(from, 0), from + wide);
    const int64_t inside_to = std::max(std::min(h.in, from + wide), inside_from);
    std::vector<T> sum(wide * inner, T(0));
    // The inputs from + s, from + s + step, … side by side.
    const int64_t part = wide / step_;
    std::vector<T> parted(step_ > 1 ? wide * inner : 0), one(classes_ > 1 ? ceil_div(columns_, classes_) * inner : 0);
    const T* source = step_ > 1 ? parted.data() : sum.data();

    std::vector<Mix<T>> mixes(std::min(classes_, right - left));
    for (size_t c = 0; c < mixes.size(); ++c) {
      for (int64_t j = h.first(left + c); j <= h.last(left + c); ++j) {
        const int64_t offset = j - from;
        mixes[c].see(source + (offset % step_ * part + offset / step_) * inner, taps_h_.value[h.tap(left + c, j)]);
      }
    }
    for (int64_t m = top; m < bottom; ++m) {
      Mix<T> vertical;
      for (int64_t i = std::max<int64_t>(v.first(m), 0); i <= std::min(v.last(m), v.in - 1); ++i) {
        vertical.see(x + ((outer * v.in + i) * h.in + inside_from) * inner, taps_v_.value[v.tap(m, i)]);
      }
      vertical.sum(sum.data() + (inside_from - from) * inner, (inside_to - inside_from) * inner);
      if (step_ > 1) {
        for (int64_t s = 0; s < step_; ++s) {
          for (int64_t j = 0; j < part; ++j) {
            for (int64_t k = 0; k < inner; ++k) parted[(s * part + j) * inner + k] = sum[(j * step_ + s) * inner + k];
          }
        }
      }
      T* out = y + ((outer * v.out + m) * h.out + left) * inner;
      if (classes_ == 1) {
        mixes[0].sum(out, (right - left) * inner);
        continue;
      }
      for (size_t c = 0; c < mixes.size(); ++c) {
        const int64_t count = ceil_div(right - left - c, classes_);
        mixes[c].sum(one.data(), count * inner);
        for (int64_t j = 0; j < count; ++j) {
          for (int64_t k = 0; k < inner; ++k) out[(j * classes_ + c) * inner + k] = one[j * inner + k];
        }
      }
    }
  }

  Planes p_;
  Taps<T> taps_v_, taps_h_;
  int64_t classes_, step_, columns_;
};

}  // namespace

void upfirdn2d(Storage storage, const void* x, void* y, const Planes& planes, const Taps<double>& vertical,
               const Taps<double>& horizontal, Stream) {
  with_type(storage, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Strips<T> strips(planes, taps_as<T>(vertical), taps_as<T>(horizontal));
    const int64_t row = std::max<int64_t>(1, planes.inner * planes.horizontal.out * planes.vertical.out * planes.outer /
                                                 std::max<int64_t>(1, strips.rows()));
    parallel(strips.rows(), std::max<int64_t>(1, (1 << 15) / row), [&](int64_t begin, int64_t end) {
      strips.compute(static_cast<const T*>(x), static_cast<T*>(y), begin, end);
    });
  });
}

}  // namespace ilo
