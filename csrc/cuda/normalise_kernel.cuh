// The kernel of normalise_images: bytes to floats, four at a time.
#pragma once

#include <type_traits>

#include "../core/image.h"
#include "device.cuh"

namespace ratfast::cuda {

struct NormaliseTable {
  static constexpr int kGroup = 4;     // values that are read as one word, and written as one or two
  static constexpr int kUnrolled = 4;  // groups of a thread that are on their way together
  const std::uint8_t* pixels;
  long long values;
  bool aligned;  // groups, in both tensors
  ImageTarget target;

  __host__ __device__ __forceinline__ long long groups() const { return (values + kGroup - 1) / kGroup; }
  // Chunks of kThreads * kUnrolled groups.
  __host__ __device__ __forceinline__ long long chunks() const {
    return (groups() + kThreads * kUnrolled - 1) / (kThreads * kUnrolled);
  }
};

template <ImageType type>
__global__ void __launch_bounds__(kThreads) normalise_kernel(const __grid_constant__ NormaliseTable table) {
  using Table = NormaliseTable;
  using Number = std::conditional_t<type == ImageType::f32, float, std::uint16_t>;
  const ImageTarget& target = table.target;
  for (long long chunk = blockIdx.x; chunk < table.chunks(); chunk += gridDim.x) {
    const long long first = chunk * (kThreads * Table::kUnrolled) + threadIdx.x;
    alignas(4) unsigned char bytes[Table::kUnrolled][Table::kGroup];
#pragma unroll
    for (int k = 0; k < Table::kUnrolled; ++k) {
      const long long at = (first + k * kThreads) * Table::kGroup;
      if (table.aligned && at + Table::kGroup <= table.values) {
        load_bytes<Table::kGroup>(bytes[k], table.pixels + at);
      } else {
#pragma unroll
        for (int i = 0; i < Table::kGroup; ++i)
          bytes[k][i] = at + i < table.values ? table.pixels[at + i] : 0;
      }
    }
#pragma unroll
    for (int k = 0; k < Table::kUnrolled; ++k) {
      const long long group = first + k * kThreads, at = group * Table::kGroup;
      const int channel =
          static_cast<int>(group % 3);  // of the first value, since a group is one more than three
      alignas(16) Number numbers[Table::kGroup];
#pragma unroll
      for (int i = 0; i < Table::kGroup; ++i) {
        const int c = (channel + i) % 3;
        const float scale = c == 0 ? target.scale[0] : c == 1 ? target.scale[1] : target.scale[2];
        const float shift = c == 0 ? target.shift[0] : c == 1 ? target.shift[1] : target.shift[2];
        const float value = apart(static_cast<float>(bytes[k][i]), scale) + shift;
        if constexpr (type == ImageType::f32)
          numbers[i] = value;
        else
          numbers[i] = float_to_bf16(value);
      }
      Number* to = static_cast<Number*>(target.data) + at;
      if (table.aligned && at + Table::kGroup <= table.values) {
        store_bytes<sizeof(numbers)>(to, reinterpret_cast<const unsigned char*>(numbers));
      } else {
#pragma unroll
        for (int i = 0; i < Table::kGroup; ++i)
          if (at + i < table.values) to[i] = numbers[i];
      }
    }
  }
}

}  // namespace ratfast::cuda
