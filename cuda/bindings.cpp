// The operators of torch.library, whose schemas, shapes and gradients are in ilo_lightning/ops. Compiled twice: into the
// CPU library, and with ILO_CUDA into the CUDA library. Checks what would make a kernel read or write out of bounds.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <torch/library.h>

#include "kernels.h"

#ifdef ILO_CUDA
#include <c10/cuda/CUDAException.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace {

using at::Tensor;
using OptionalTensor = const std::optional<Tensor>&;

// Makes the tensor's device current, and tells its stream.
#ifdef ILO_CUDA
struct On {
  explicit On(const Tensor& x) : guard(x.device()) {}
  ilo::Stream stream() const { return c10::cuda::getCurrentCUDAStream().stream(); }
  void check() const { C10_CUDA_CHECK(cudaGetLastError()); }
  c10::cuda::CUDAGuard guard;
};
#else
struct On {
  explicit On(const Tensor&) {}
  ilo::Stream stream() const { return nullptr; }
  void check() const {}
};
#endif

ilo::Storage storage(const Tensor& x) {
  switch (x.scalar_type()) {
    case at::kFloat: return ilo::Storage::float32;
    case at::kDouble: return ilo::Storage::float64;
#ifdef ILO_CUDA
    case at::kHalf: return ilo::Storage::float16;
    case at::kBFloat16: return ilo::Storage::bfloat16;
#endif
    default: TORCH_CHECK(false, "expected a floating-point tensor that the kernels know, got ", x.scalar_type());
  }
}

void check_alike(const char* name, const Tensor& other, const Tensor& x) {
  TORCH_CHECK(other.scalar_type() == x.scalar_type() && other.device() == x.device(), name, " is ",
              other.scalar_type(), " on ", other.device(), ", x is ", x.scalar_type(), " on ", x.device());
}

// As torch.empty_like lays it out: dense, each element in its place.
Tensor dense(const Tensor& x) { return x.is_non_overlapping_and_dense() ? x : at::empty_like(x).copy_(x); }
Tensor laid_out_as(const Tensor& x, const Tensor& layout) {
  return x.strides() == layout.strides() ? x : at::empty_like(layout).copy_(x);
}

double limit_of(std::optional<double> clamp) { return clamp ? *clamp : NAN; }

Tensor bias_act(const Tensor& input, OptionalTensor bias, int64_t dim, double slope, double gain,
                std::optional<double> clamp) {
  const On on(input);
  const Tensor x = dense(input);
  Tensor y = at::empty_like(x), b;
  int64_t channels = 1, inner = std::max<int64_t>(1, x.numel());
  if (bias) {
    channels = x.size(dim), inner = channels > 1 ? x.stride(dim) : 1;
    check_alike("bias", *bias, x);
    TORCH_CHECK(bias->dim() == 1 && bias->numel() == channels, "bias must be (", channels, "), got ", bias->sizes());
    b = bias->contiguous();
  }
  ilo::bias_act(storage(x), x.const_data_ptr(), bias ? b.const_data_ptr() : nullptr, y.mutable_data_ptr(), x.numel(),
                channels, inner, slope, gain, limit_of(clamp), on.stream());
  on.check();
  return y;
}

Tensor bias_act_backward(const Tensor& grad, const Tensor& output, double slope, double gain,
                         std::optional<double> clamp) {
  const On on(output);
  check_alike("grad", grad, output);
  TORCH_CHECK(grad.sizes() == output.sizes(), "grad must be ", output.sizes(), ", got ", grad.sizes());
  const Tensor y = dense(output), g = laid_out_as(grad, y);
  Tensor out = at::empty_like(y);
  ilo::bias_act_backward(storage(y), g.const_data_ptr(), y.const_data_ptr(), out.mutable_data_ptr(), y.numel(), slope,
                         gain, limit_of(clamp), on.stream());
  on.check();
  return out;
}

Tensor upfirdn2d(const Tensor& input, at::ArrayRef<double> taps, int64_t up, int64_t down,
                 at::IntArrayRef padding, double gain) {  // padding: top, bottom, left, right
  const On on(input);
  const int64_t count = taps.size();
  TORCH_CHECK(input.dim() == 4 && padding.size() == 4 && up >= 1 && down >= 1 && count >= 1 && count <= ilo::max_taps,
              "upfirdn2d: bad arguments");
  const auto format = !input.is_contiguous() && input.is_contiguous(at::MemoryFormat::ChannelsLast)
                          ? at::MemoryFormat::ChannelsLast
                          : at::MemoryFormat::Contiguous;
  const Tensor x = input.contiguous(format);
  const auto axis = [&](int64_t size, int64_t before, int64_t after) {
    const int64_t out = (size * up + before + after - count) / down + 1;
    TORCH_CHECK(size * up + before + after >= count, "upfirdn2d: nothing is left of an axis of ", size);
    return ilo::Axis{size, out, up, down, before, count};
  };
  ilo::Planes planes{x.size(0) * x.size(1), 1, axis(x.size(2), padding[0], padding[1]),
                     axis(x.size(3), padding[2], padding[3])};
  if (format == at::MemoryFormat::ChannelsLast) planes.outer = x.size(0), planes.inner = x.size(1);
  ilo::Taps<double> vertical{}, horizontal{};
  vertical.count = horizontal.count = static_cast<int>(count);
  for (int64_t j = 0; j < count; ++j) vertical.value[j] = taps[j] * gain, horizontal.value[j] = taps[j];
  Tensor y = at::empty({x.size(0), x.size(1), planes.vertical.out, planes.horizontal.out},
                       x.options().memory_format(format));
  if (y.numel() > 0) {
    ilo::upfirdn2d(storage(x), x.const_data_ptr(), y.mutable_data_ptr(), planes, vertical, horizontal, on.stream());
  }
  on.check();
  return y;
}

#ifndef ILO_CUDA
// (B, C, H, W) in channels_last, with what goes with it; null where there is none.
struct Pixels {
  explicit Pixels(const Tensor& x) : x(x) {
    TORCH_CHECK(x.dim() == 4 && x.is_contiguous(at::MemoryFormat::ChannelsLast),
                "expected (B, C, H, W) in channels_last");
    images = x.size(0), channels = x.size(1), pixels = x.size(2) * x.size(3);
  }
  Tensor checked(const char* name, const Tensor& other, at::IntArrayRef size) const {
    check_alike(name, other, x);
    TORCH_CHECK(other.sizes() == size, name, " must be ", size, ", got ", other.sizes());
    return other.contiguous();
  }
  Tensor alike(const char* name, const Tensor& other) const {
    check_alike(name, other, x);
    TORCH_CHECK(other.sizes() == x.sizes(), name, " must be ", x.sizes(), ", got ", other.sizes());
    return other.contiguous(at::MemoryFormat::ChannelsLast);
  }
  Tensor of_images(const char* name, OptionalTensor other) const {
    return other ? checked(name, *other, {images, channels}) : Tensor();
  }
  Tensor of_pixels(const char* name, OptionalTensor other) const {
    return other ? checked(name, *other, {images, 1, x.size(2), x.size(3)}) : Tensor();
  }
  Tensor empty(at::IntArrayRef size) const { return at::empty(size, x.options()); }

  const Tensor& x;
  int64_t images, pixels, channels;
};

const void* data(const Tensor& x) { return x.defined() ? x.const_data_ptr() : nullptr; }

void styled_act_(const Tensor& x, OptionalTensor scale, const Tensor& bias, OptionalTensor noise, double slope,
                 std::optional<double> clamp) {
  const Pixels on(x);
  const Tensor scales = on.of_images("scale", scale), biases = on.checked("bias", bias, {on.channels});
  const Tensor map = on.of_pixels("noise", noise);
  ilo::styled_act(storage(x), x.mutable_data_ptr(), data(scales), data(biases), data(map), on.images, on.pixels,
                  on.channels, slope, limit_of(clamp));
}

std::tuple<Tensor, Tensor, Tensor> styled_act_backward(const Tensor& grad, const Tensor& y, OptionalTensor scale,
                                                       const Tensor& bias, OptionalTensor noise, double slope,
                                                       std::optional<double> clamp) {
  const Pixels on(y);
  const Tensor scales = on.of_images("scale", scale), biases = on.checked("bias", bias, {on.channels});
  const Tensor map = on.of_pixels("noise", noise), g = on.alike("grad", grad);
  Tensor inner = at::empty_like(y), total = on.empty({on.images, on.channels});
  Tensor grad_noise = on.empty({on.images, 1, y.size(2), y.size(3)});
  ilo::styled_act_backward(storage(y), data(g), data(y), data(scales), data(biases), data(map),
                           inner.mutable_data_ptr(), total.mutable_data_ptr(), grad_noise.mutable_data_ptr(),
                           on.images, on.pixels, on.channels, slope, limit_of(clamp));
  return {inner, total, grad_noise};
}

Tensor style_backward_(const Tensor& grad, const Tensor& x, const Tensor& style) {
  const Pixels on(grad);
  const Tensor in = on.alike("x", x), styles = on.checked("style", style, {on.images, on.channels});
  Tensor total = on.empty({on.images, on.channels});
  ilo::style_backward(storage(grad), grad.mutable_data_ptr(), data(in), data(styles), total.mutable_data_ptr(),
                      on.images, on.pixels, on.channels);
  return total;
}
#endif

// (images, n) in float or half, center alike or none, and float64 numbers per image.
struct Rows {
  Tensor x, center;
  int64_t images, n;

  Rows(const Tensor& input, OptionalTensor middle) : x(input.contiguous()) {
    TORCH_CHECK(input.dim() == 2, "expected (images, coordinates), got ", input.sizes());
    images = x.size(0), n = x.size(1);
    if (middle) {
      check_alike("center", *middle, x);
      TORCH_CHECK(middle->sizes() == x.sizes(), "center must be ", x.sizes(), ", got ", middle->sizes());
      center = middle->contiguous();
    }
  }
  const void* x_data() const { return x.const_data_ptr(); }
  const void* center_data() const { return center.defined() ? center.const_data_ptr() : nullptr; }
  bool empty() const { return x.numel() == 0; }
  Tensor doubles(at::IntArrayRef size) const { return at::empty(size, x.options().dtype(at::kDouble)); }
  Tensor workspace() const {
    return at::empty({ilo::l1_workspace_bytes(images, n)}, x.options().dtype(at::kByte));
  }
  Tensor checked(const char* name, const Tensor& values, at::IntArrayRef size) const {
    TORCH_CHECK(values.scalar_type() == at::kDouble && values.device() == x.device() && values.sizes() == size, name,
                " must be float64 ", size, " on ", x.device(), ", got ", values.scalar_type(), " ", values.sizes());
    return values.contiguous();
  }
};

Tensor l1_threshold(const Tensor& x, OptionalTensor center, const Tensor& radius) {
  const On on(x);
  const Rows rows(x, center);
  const Tensor radii = rows.checked("radius", radius, {rows.images});
  Tensor threshold = rows.doubles({rows.images, 2});
  if (rows.empty()) return threshold.fill_(INFINITY);
  Tensor workspace = rows.workspace();
  ilo::l1_threshold(storage(x), rows.x_data(), rows.center_data(), radii.const_data_ptr<double>(),
                    threshold.mutable_data_ptr<double>(), rows.images, rows.n,
                    workspace.numel() ? workspace.mutable_data_ptr() : nullptr, on.stream());
  on.check();
  return threshold;
}

Tensor l1_shrink(const Tensor& x, OptionalTensor center, const Tensor& threshold) {
  const On on(x);
  const Rows rows(x, center);
  const Tensor thresholds = rows.checked("threshold", threshold, {rows.images, 2});
  Tensor z = at::empty_like(rows.x);
  if (rows.empty()) return z;
  ilo::l1_shrink(storage(x), rows.x_data(), rows.center_data(), thresholds.const_data_ptr<double>(),
                 z.mutable_data_ptr(), rows.images, rows.n, on.stream());
  on.check();
  return z;
}

std::tuple<Tensor, Tensor> l1_ball(const Tensor& x, OptionalTensor center, const Tensor& radius) {
  Tensor threshold = l1_threshold(x, center, radius);
  return {l1_shrink(x, center, threshold), threshold};
}

std::tuple<Tensor, Tensor> l1_derivative(const Tensor& v, const Tensor& rho, const Tensor& x, OptionalTensor center,
                                         const Tensor& threshold) {
  const On on(x);
  const Rows rows(x, center);
  check_alike("v", v, x);
  TORCH_CHECK(v.sizes() == x.sizes(), "v must be ", x.sizes(), ", got ", v.sizes());
  const Tensor from = v.contiguous(), rhos = rows.checked("rho", rho, {rows.images});
  const Tensor thresholds = rows.checked("threshold", threshold, {rows.images, 2});
  Tensor out = at::empty_like(rows.x), mean = rows.doubles({rows.images});
  if (rows.empty()) return {out, mean.zero_()};
  Tensor workspace = rows.workspace();
  ilo::l1_derivative(storage(x), rows.x_data(), rows.center_data(), thresholds.const_data_ptr<double>(),
                     from.const_data_ptr(), rhos.const_data_ptr<double>(), out.mutable_data_ptr(),
                     mean.mutable_data_ptr<double>(), rows.images, rows.n,
                     workspace.numel() ? workspace.mutable_data_ptr() : nullptr, on.stream());
  on.check();
  return {out, mean};
}

}  // namespace

#ifdef ILO_CUDA
TORCH_LIBRARY_IMPL(ilo, CUDA, library) {
#else
TORCH_LIBRARY_IMPL(ilo, CPU, library) {
#endif
  library.impl("bias_act", &bias_act);
  library.impl("bias_act_backward", &bias_act_backward);
  library.impl("upfirdn2d", &upfirdn2d);
#ifndef ILO_CUDA
  library.impl("styled_act_", &styled_act_);
  library.impl("styled_act_backward", &styled_act_backward);
  library.impl("style_backward_", &style_backward_);
#endif
  library.impl("l1_threshold", &l1_threshold);
  library.impl("l1_shrink", &l1_shrink);
  library.impl("l1_ball", &l1_ball);
  library.impl("l1_derivative", &l1_derivative);
}
