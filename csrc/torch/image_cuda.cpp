// The image operators' CUDA implementation.
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "../cuda/image.h"
#include "image_arguments.h"
#include "stream.h"

namespace {

using namespace ratfast;

void transform_images_(const Tensor& out, Tensors images, const Tensor& boxes, const Tensor& flips,
                       const Tensor& factors, const Tensor& operations, const Tensor& scale,
                       const Tensor& shift, std::int64_t) {
  const ImageArguments arguments(out, images, boxes, flips, factors, operations, scale, shift);
  STD_TORCH_CHECK(out.is_cuda(), "ratfast: expected tensors on a CUDA device");
  if (images.empty()) return;
  const torch::stable::accelerator::DeviceGuard guard(out.get_device_index());
  const std::int64_t room = cuda::image_workspace(arguments.sources, arguments.target);
  const Tensor workspace = torch::stable::new_empty(out, {room}, torch::headeronly::ScalarType::Byte);
  STD_CUDA_CHECK(
      cuda::transform_images(arguments.sources, arguments.target, workspace.data_ptr(), current_stream(out)));
}

void normalise_images_(const Tensor& out, const Tensor& images, const Tensor& scale, const Tensor& shift,
                       std::int64_t) {
  const ImageTarget target = normalise_arguments(out, images, scale, shift);
  STD_TORCH_CHECK(out.is_cuda(), "ratfast: expected tensors on a CUDA device");
  if (out.size(0) == 0) return;
  const torch::stable::accelerator::DeviceGuard guard(out.get_device_index());
  STD_CUDA_CHECK(cuda::normalise_images(static_cast<const std::uint8_t*>(images.data_ptr()), out.size(0),
                                        target, current_stream(out)));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ratfast, CUDA, library) {
  library.impl("transform_images_", TORCH_BOX(&transform_images_));
  library.impl("normalise_images_", TORCH_BOX(&normalise_images_));
}
