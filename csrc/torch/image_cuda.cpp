// The image operator's CUDA implementation.
#include <cuda_runtime_api.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/macros.h>

#include "../cuda/image.h"
#include "image_arguments.h"

namespace {

using namespace ratfast;

void transform_images_(const Tensor& out, Tensors images, const Tensor& boxes, const Tensor& flips,
                       const Tensor& factors, const Tensor& operations, const Tensor& scale,
                       const Tensor& shift, std::int64_t) {
  const ImageArguments arguments(out, images, boxes, flips, factors, operations, scale, shift);
  STD_TORCH_CHECK(out.is_cuda(), "ratfast: expected tensors on a CUDA device");
  if (images.empty()) return;
  const torch::stable::accelerator::DeviceGuard guard(out.get_device_index());
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(out.get_device_index(), &stream));
  const std::int64_t room = cuda::image_workspace(arguments.sources, arguments.target);
  const Tensor workspace = torch::stable::new_empty(out, {room}, torch::headeronly::ScalarType::Byte);
  STD_CUDA_CHECK(cuda::transform_images(arguments.sources, arguments.target, workspace.data_ptr(),
                                        static_cast<cudaStream_t>(stream)));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ratfast, CUDA, library) {
  library.impl("transform_images_", TORCH_BOX(&transform_images_));
}
