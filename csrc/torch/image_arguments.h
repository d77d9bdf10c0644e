// The arguments of the image operators, checked, as the sources and the target of core/image.h.
#pragma once

#include "../core/image.h"
#include "common.h"

namespace ratfast {

inline ImageType image_type_of(const Tensor& tensor) {
  switch (tensor.scalar_type()) {
    case torch::headeronly::ScalarType::Byte:
      return ImageType::u8;
    case torch::headeronly::ScalarType::Float:
      return ImageType::f32;
    case torch::headeronly::ScalarType::BFloat16:
      return ImageType::bf16;
    default:
      STD_TORCH_CHECK(false, "ratfast: images are made as uint8, float32 or bfloat16");
  }
}

// Of an out of (N, H, W, 3).
inline ImageTarget image_target(const Tensor& out, const Tensor& scale, const Tensor& shift) {
  const auto* scales = numbers<float>(scale, torch::headeronly::ScalarType::Float, 3, "scale");
  const auto* shifts = numbers<float>(shift, torch::headeronly::ScalarType::Float, 3, "shift");
  return {out.data_ptr(),
          image_type_of(out),
          static_cast<int>(out.size(1)),
          static_cast<int>(out.size(2)),
          {scales[0], scales[1], scales[2]},
          {shifts[0], shifts[1], shifts[2]}};
}

inline constexpr std::int64_t kLongestSide = std::int64_t{1} << 20;

inline void check_image_output(const Tensor& out, std::int64_t count) {
  STD_TORCH_CHECK(out.dim() == 4 && out.size(0) == count && out.size(3) == 3 && out.is_contiguous(),
                  "ratfast: out must be a contiguous (", count, ", H, W, 3)");
  STD_TORCH_CHECK(std::max(out.size(1), out.size(2)) < kLongestSide && (count == 0 || out.numel() > 0),
                  "ratfast: sides must lie between 1 and ", kLongestSide);
}

// Those of normalise_images_.
inline ImageTarget normalise_arguments(const Tensor& out, const Tensor& images, const Tensor& scale,
                                       const Tensor& shift) {
  using torch::headeronly::ScalarType;
  STD_TORCH_CHECK(images.dim() == 4 && images.scalar_type() == ScalarType::Byte && images.is_contiguous(),
                  "ratfast: images must be a contiguous uint8 (N, H, W, 3)");
  check_image_output(out, images.size(0));
  STD_TORCH_CHECK(images.size(1) == out.size(1) && images.size(2) == out.size(2) && images.size(3) == 3 &&
                      images.is_cuda() == out.is_cuda() &&
                      images.get_device_index() == out.get_device_index(),
                  "ratfast: images must be of the shape of out, and on its device");
  STD_TORCH_CHECK(out.scalar_type() != ScalarType::Byte, "ratfast: out must be float32 or bfloat16");
  return image_target(out, scale, shift);
}

class ImageArguments {
 public:
  ImageArguments(const Tensor& out, Tensors images, const Tensor& boxes, const Tensor& flips,
                 const Tensor& factors, const Tensor& operations, const Tensor& scale, const Tensor& shift) {
    using torch::headeronly::ScalarType;
    const auto count = static_cast<std::int64_t>(images.size());
    check_image_output(out, count);
    const auto* box = numbers<std::int64_t>(boxes, ScalarType::Long, 4 * count, "boxes");
    const auto* flip = numbers<std::int64_t>(flips, ScalarType::Long, count, "flips");
    const auto* factor = numbers<float>(factors, ScalarType::Float, 4 * count, "factors");
    const auto* operation = numbers<std::int64_t>(operations, ScalarType::Long, count, "operations");
    target = image_target(out, scale, shift);
    for (std::int64_t n = 0; n < count; ++n, box += 4, factor += 4) {
      const Tensor& image = images[static_cast<std::size_t>(n)];
      STD_TORCH_CHECK(image.dim() == 3 && image.size(2) == 3 && image.scalar_type() == ScalarType::Byte &&
                          image.is_cuda() == out.is_cuda() &&
                          image.get_device_index() == out.get_device_index(),
                      "ratfast: image ", n, " must be uint8 (H, W, 3) on the device of out");
      const auto packed = [&](int d, std::int64_t stride) {
        return image.size(d) <= 1 || image.stride(d) == stride;
      };
      STD_TORCH_CHECK(
          packed(2, 1) && packed(1, 3) && (image.size(0) <= 1 || image.stride(0) >= 3 * image.size(1)),
          "ratfast: the pixels of image ", n, " must lie side by side");
      const std::int64_t top = box[0], left = box[1], height = box[2], width = box[3];
      STD_TORCH_CHECK(top >= 0 && left >= 0 && height >= 1 && width >= 1 && height <= image.size(0) &&
                          width <= image.size(1) && top <= image.size(0) - height &&
                          left <= image.size(1) - width && std::max(height, width) < kLongestSide,
                      "ratfast: box ", n, " does not lie in its image");
      const auto* pixels = static_cast<const std::uint8_t*>(image.data_ptr());
      sources.push_back(
          {pixels + top * image.stride(0) + left * 3,
           image.stride(0),
           static_cast<int>(height),
           static_cast<int>(width),
           flip[n] != 0,
           {static_cast<int>(operation[n]), factor[0], factor[1], factor[2], static_cast<int>(factor[3])}});
    }
  }

  std::vector<ImageSource> sources;
  ImageTarget target;
};

}  // namespace ratfast
