// The image operators' CPU implementation.
#include "../core/parallel.h"
#include "image_arguments.h"

namespace {

using namespace ratfast;

// On threads of its own: torch's would start a second set of them where a loader's thread calls.
void transform_images_(const Tensor& out, Tensors images, const Tensor& boxes, const Tensor& flips,
                       const Tensor& factors, const Tensor& operations, const Tensor& scale,
                       const Tensor& shift, std::int64_t num_threads) {
  const ImageArguments arguments(out, images, boxes, flips, factors, operations, scale, shift);
  STD_TORCH_CHECK(out.is_cpu(), "ratfast: expected tensors on the CPU");
  transform_images(arguments.sources, arguments.target, threads(static_cast<int>(num_threads)));
}

void normalise_images_(const Tensor& out, const Tensor& images, const Tensor& scale, const Tensor& shift,
                       std::int64_t num_threads) {
  const ImageTarget target = normalise_arguments(out, images, scale, shift);
  STD_TORCH_CHECK(out.is_cpu(), "ratfast: expected tensors on the CPU");
  normalise_images(static_cast<const std::uint8_t*>(images.data_ptr()), out.size(0), target,
                   threads(static_cast<int>(num_threads)));
}

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ratfast, CPU, library) {
  library.impl("transform_images_", TORCH_BOX(&transform_images_));
  library.impl("normalise_images_", TORCH_BOX(&normalise_images_));
}
