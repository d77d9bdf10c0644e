// The image passes of csrc/core on the memory of one CUDA device.
#pragma once

#include <cuda_runtime_api.h>

#include <vector>

#include "../core/image.h"

namespace ratfast::cuda {

// Bytes of device memory, on a boundary of 16, that transform_images works in.
long long image_workspace(const std::vector<ImageSource>& sources, const ImageTarget& target);

// See core/image.h; pointers are the device's. Work is queued on the stream.
cudaError_t transform_images(const std::vector<ImageSource>& sources, const ImageTarget& target,
                             void* workspace, cudaStream_t stream);
cudaError_t normalise_images(const std::uint8_t* pixels, long long count, const ImageTarget& target,
                             cudaStream_t stream);

}  // namespace ratfast::cuda
