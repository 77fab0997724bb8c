// What follows a modulated convolution, forward and backward, each in one pass over the memory. Tensors are in
// channels_last: (images, pixels, channels). For the CPU alone.
#include <cstring>

#include "parallel.h"

namespace ilo {
namespace {

constexpr int64_t band_size = 1 << 14;  // numbers of a tensor, so that results don't depend on the number of threads
constexpr int lanes = 8;

// Runs of neighbouring pixels of one image, worked on in parallel.
class Bands {
 public:
  Bands(int64_t images, int64_t pixels, int64_t channels)
      : images_(images), pixels_(pixels), channels_(channels), size_(std::max<int64_t>(1, band_size / channels)),
        bands_(ceil_div(pixels, size_)) {}

  template <typename Body>
  void each(const Body& body) const {  // body(image, first pixel, last pixel + 1, band)
    parallel(images_ * bands_, 2, [&](int64_t begin, int64_t end) {
      for (int64_t band = begin; band < end; ++band) {
        const int64_t image = band / bands_, first = band % bands_ * size_;
        body(image, image * pixels_ + first, image * pixels_ + std::min(first + size_, pixels_), band);
      }
    });
  }

  int64_t count() const { return images_ * bands_; }

  // Sums per band and channel to sums per image and channel.
  template <typename T>
  void total(const std::vector<T>& sums, T* out) const {
    std::vector<double> total(channels_);
    for (int64_t image = 0; image < images_; ++image) {
      std::fill(total.begin(), total.end(), 0.0);
      for (int64_t band = image * bands_; band < (image + 1) * bands_; ++band) {
        for (int64_t c = 0; c < channels_; ++c) total[c] += sums[band * channels_ + c];
      }
      for (int64_t c = 0; c < channels_; ++c) out[image * channels_ + c] = static_cast<T>(total[c]);
    }
  }

 private:
  int64_t images_, pixels_, channels_, size_, bands_;
};

// Of one pixel each. Functions without aliases, or g++ doesn't vectorise them.
template <typename T>
void act(T* __restrict x, const T* __restrict scale, const T* __restrict bias, T noise, int64_t channels, T slope,
         T limit) {
  for (int64_t c = 0; c < channels; ++c) {
    const T p = x[c] * scale[c] + (bias[c] + noise);
    const T y = p > 0 ? p : p * slope;
    const T capped = y > limit ? limit : y;
    x[c] = capped < -limit ? -limit : capped;
  }
}

template <typename V, typename T>
ILO_BOTH void load(V& value, const T* place) {
  std::memcpy(&value, place, sizeof(V));
}

template <typename V, typename T>
ILO_BOTH void store(T* place, const V& value) {
  std::memcpy(place, &value, sizeof(V));
}

// V: a number of type T, or several of them; g++ would not find by itself how to sum over channels in a fixed order.
template <typename V, typename T>
ILO_BOTH void act_backward_some(const T* grad, const T* y, const T* scale, const T* bias, T noise, T* inner, T* sum,
                                V& over_channels, T slope, T limit) {
  V g, out, factor, shift, products;
  load(g, grad), load(out, y), load(factor, scale), load(shift, bias), load(products, sum);
  const V reached = (out >= limit) | (out <= -limit) ? V{} : g;
  const V low = reached * slope, d = out > 0 ? reached : low;
  products += reached * out - d * (shift + noise);
  over_channels += d;
  store(sum, products);
  store<V>(inner, d * factor);
}

template <typename T>
T act_backward(const T* grad, const T* y, const T* scale, const T* bias, T noise, T* inner, T* sum, int64_t channels,
               T slope, T limit) {
  typedef T Lanes __attribute__((vector_size(lanes * sizeof(T))));
  Lanes lane = {};
  T total = 0;
  int64_t c = 0;
  for (; c + lanes <= channels; c += lanes) {
    act_backward_some(grad + c, y + c, scale + c, bias + c, noise, inner + c, sum + c, lane, slope, limit);
  }
  for (; c < channels; ++c) {
    act_backward_some(grad + c, y + c, scale + c, bias + c, noise, inner + c, sum + c, total, slope, limit);
  }
  for (int k = 0; k < lanes; ++k) total += lane[k];
  return total;
}

template <typename T>
void style_pixel(T* __restrict grad, const T* __restrict x, const T* __restrict style, T* __restrict sum,
                    int64_t channels) {
  for (int64_t c = 0; c < channels; ++c) {
    sum[c] += grad[c] * x[c];
    grad[c] *= style[c];
  }
}

}  // namespace

void styled_act(Storage storage, void* x, const void* scale, const void* bias, const void* noise, int64_t images,
                int64_t pixels, int64_t channels, double slope, double limit) {
  with_type(storage, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const std::vector<T> ones(scale ? 0 : images * channels, T(1));
    const T *s = scale ? static_cast<const T*>(scale) : ones.data(), *n = static_cast<const T*>(noise);
    Bands(images, pixels, channels).each([&](int64_t image, int64_t pixel, int64_t end, int64_t) {
      for (; pixel < end; ++pixel) {
        act(static_cast<T*>(x) + pixel * channels, s + image * channels, static_cast<const T*>(bias),
            n ? n[pixel] : T(0), channels, T(slope), T(limit));
      }
    });
  });
}

void styled_act_backward(Storage storage, const void* grad, const void* y, const void* scale, const void* bias,
                         const void* noise, void* inner, void* total, void* grad_noise, int64_t images, int64_t pixels,
                         int64_t channels, double slope, double limit) {
  with_type(storage, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const std::vector<T> ones(scale ? 0 : images * channels, T(1));
    const T *s = scale ? static_cast<const T*>(scale) : ones.data(), *n = static_cast<const T*>(noise);
    const Bands bands(images, pixels, channels);
    std::vector<T> sums(bands.count() * channels, T(0));
    bands.each([&](int64_t image, int64_t pixel, int64_t end, int64_t band) {
      for (; pixel < end; ++pixel) {
        const int64_t at = pixel * channels;
        static_cast<T*>(grad_noise)[pixel] = act_backward(
            static_cast<const T*>(grad) + at, static_cast<const T*>(y) + at, s + image * channels,
            static_cast<const T*>(bias), n ? n[pixel] : T(0), static_cast<T*>(inner) + at,
            sums.data() + band * channels, channels, T(slope), T(limit));
      }
    });
    bands.total(sums, static_cast<T*>(total));
  });
}

void style_backward(Storage storage, void* grad, const void* x, const void* style, void* total, int64_t images,
                    int64_t pixels, int64_t channels) {
  with_type(storage, [&](auto* type) {
    using T = std::remove_pointer_t<decltype(type)>;
    const Bands bands(images, pixels, channels);
    std::vector<T> sums(bands.count() * channels, T(0));
    bands.each([&](int64_t image, int64_t pixel, int64_t end, int64_t band) {
      for (; pixel < end; ++pixel) {
        style_pixel(static_cast<T*>(grad) + pixel * channels, static_cast<const T*>(x) + pixel * channels,
                    static_cast<const T*>(style) + image * channels, sums.data() + band * channels, channels);
      }
    });
    bands.total(sums, static_cast<T*>(total));
  });
}

}  // namespace ilo
