#include "image.h"

#include <algorithm>
#include <memory>

#include "image_kernel.cuh"
#include "normalise_kernel.cuh"

namespace ratfast::cuda {
namespace {

int most_weights(const std::vector<ImageSource>& sources, const ImageTarget& target) {
  int most = 1;
  for (const auto& source : sources)
    most = std::max(
        {most, resize_axis(source.width, target.width).most, resize_axis(source.height, target.height).most});
  return most;
}

template <class Kernel, class Table>
cudaError_t launch(Kernel* kernel, long long chunks, const Table& table, cudaStream_t stream) {
  int blocks = 0;
  const cudaError_t error = grid_for(kernel, chunks, blocks);
  if (error != cudaSuccess) return error;
  RATFAST_LAUNCH(kernel, blocks, stream, table);
  return cudaGetLastError();
}

}  // namespace

long long image_workspace(const std::vector<ImageSource>& sources, const ImageTarget& target) {
  const long long places = target.width + target.height;
  const long long pixels = static_cast<long long>(target.width) * target.height;
  return ImageTable::kImages * (8 + 4 * pixels + 4 * places * (most_weights(sources, target) + 2));
}

cudaError_t transform_images(const std::vector<ImageSource>& sources, const ImageTarget& target,
                             void* workspace, cudaStream_t stream) {
  const auto table = std::make_unique<ImageTable>();
  table->target = target;
  ImageWorkspace& work = table->work;
  work.luma_sums = static_cast<unsigned long long*>(workspace);
  work.pixels = reinterpret_cast<std::uint32_t*>(work.luma_sums + ImageTable::kImages);
  work.firsts = reinterpret_cast<int*>(work.pixels + ImageTable::kImages * table->pixels());
  work.counts = work.firsts + ImageTable::kImages * table->places();
  work.weights = work.counts + ImageTable::kImages * table->places();
  work.most = most_weights(sources, target);
  const auto count = static_cast<long long>(sources.size());
  for (long long first = 0; first < count; first += ImageTable::kImages) {
    table->first = first;
    table->images = static_cast<int>(std::min<long long>(ImageTable::kImages, count - first));
    std::copy_n(sources.begin() + first, table->images, table->sources);
    const long long chunks = table->images * table->chunks_per_image();
    const long long places = table->images * table->places();
    cudaError_t error = launch(image_weights_kernel, (places + kThreads - 1) / kThreads, *table, stream);
    if (error == cudaSuccess) error = launch(image_resize_kernel, chunks, *table, stream);
    if (error == cudaSuccess) error = launch(image_colour_kernel, chunks, *table, stream);
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t normalise_images(const std::uint8_t* pixels, long long count, const ImageTarget& target,
                             cudaStream_t stream) {
  NormaliseTable table = {pixels, count * target.height * target.width * 3, false, target};
  if (table.values == 0) return cudaSuccess;
  const auto address = [](const void* p) { return reinterpret_cast<std::uintptr_t>(p); };
  table.aligned = address(pixels) % NormaliseTable::kGroup == 0 &&
                  address(target.data) % (NormaliseTable::kGroup * image_item_size(target.type)) == 0;
  return target.type == ImageType::f32
             ? launch(normalise_kernel<ImageType::f32>, table.chunks(), table, stream)
             : launch(normalise_kernel<ImageType::bf16>, table.chunks(), table, stream);
}

}  // namespace ratfast::cuda
