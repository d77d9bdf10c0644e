// The image operator's CPU implementation.
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

}  // namespace

STABLE_TORCH_LIBRARY_IMPL(ratfast, CPU, library) {
  library.impl("transform_images_", TORCH_BOX(&transform_images_));
}
