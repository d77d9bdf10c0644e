// The image pass of csrc/cuda, compiled for the host, behind a C interface.
#include "cuda_runtime_api.h"
// After the stand-in for CUDA:
#include "image.cu"

using namespace ratfast;

extern "C" {

// Boxes (top, left, height, width), factors (brightness, contrast, saturation, hue) and strides in bytes,
// image by image. Type 0 is uint8, 1 float32, 2 bfloat16.
int transform(int count, std::uint8_t** images, const long long* strides, const long long* boxes,
              const long long* flips, const float* factors, const long long* operations, void* out, int type,
              int height, int width, const float* scale, const float* shift) {
  std::vector<ImageSource> sources;
  for (int n = 0; n < count; ++n) {
    const long long* box = boxes + 4 * n;
    const float* factor = factors + 4 * n;
    sources.push_back(
        {images[n] + box[0] * strides[n] + box[1] * 3,
         strides[n],
         static_cast<int>(box[2]),
         static_cast<int>(box[3]),
         flips[n] != 0,
         {static_cast<int>(operations[n]), factor[0], factor[1], factor[2], static_cast<int>(factor[3])}});
  }
  const ImageTarget target = {out,   static_cast<ImageType>(type),   height,
                              width, {scale[0], scale[1], scale[2]}, {shift[0], shift[1], shift[2]}};
  // What a kernel forgets to write is not to pass for zero.
  std::vector<std::uint64_t> workspace(cuda::image_workspace(sources, target) / 8 + 1, 0x7fff7fff7fff7fff);
  return cuda::transform_images(sources, target, workspace.data(), nullptr);
}

// -1 after an access that a GPU would refuse.
int normalise(const std::uint8_t* pixels, long long count, void* out, int type, int height, int width,
              const float* scale, const float* shift) {
  const ImageTarget target = {out,   static_cast<ImageType>(type),   height,
                              width, {scale[0], scale[1], scale[2]}, {shift[0], shift[1], shift[2]}};
  misaligned = false;
  const cudaError_t status = cuda::normalise_images(pixels, count, target, nullptr);
  return misaligned ? -1 : status;
}
}
