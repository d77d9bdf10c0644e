// The loops over the pixels of one image. Compiled several times, each with other instruction-set flags and
// another RATFAST_IMAGE_LEAF. Written in the compiler's own vectors and in loops that it turns into vectors.
#include "image_leaf.h"

#if defined(__SSE2__)
#include <immintrin.h>
#endif

namespace ratfast {
namespace {

// As wide as the machine's registers: vectors in halves are slow to take apart.
#if defined(__AVX512F__)
constexpr int kLanes = 16, kWideLanes = 8;
#elif defined(__AVX2__)
constexpr int kLanes = 8, kWideLanes = 4;
#else
constexpr int kLanes = 4, kWideLanes = 4;
#endif
static_assert(kImageLine / 4 % kLanes == 0);

template <class T, int lanes>
using Vector __attribute__((vector_size(sizeof(T) * lanes))) = T;

#define RATFAST_INLINE static inline __attribute__((always_inline))

#include "leaf_image_colours.h"
#include "leaf_image_output.h"
#include "leaf_image_resize.h"

void transform(const ImageSource& source, const ImageTarget& target, std::int64_t n,
               const ResizeTable& columns, const ResizeTable& rows, const ImageWork& work) {
  const std::int64_t pitch = image_pitch(target.width), used = target.width * std::int64_t{4};
  const ImageColours colours = source.colours;
  resize(source, target, columns, rows, work);
  long long sum = 0;
  for (int y = 0; (colours.operations & (kBrightness | kContrast)) && y < target.height; ++y) {
    std::uint8_t* row = work.resized + y * pitch;
    memset(row + used, 0, static_cast<std::size_t>(pitch - used));
    sum += brighten(colours, row, pitch);
  }
  const int center = contrast_center(sum, static_cast<long long>(target.height) * target.width);
  const std::int64_t values = target.width * std::int64_t{3};
  for (int y = 0; y < target.height; ++y) {
    std::uint8_t* row = work.resized + y * pitch;
    recolour(colours, center, row, pitch);
    pack_row(row, pitch);
    const std::int64_t first = (n * target.height + y) * values;
    if (target.type == ImageType::u8)
      memcpy(static_cast<std::uint8_t*>(target.data) + first, row, static_cast<std::size_t>(values));
    else
      normalise(row, target, first, values);
  }
}

}  // namespace

extern const ImageLeaf RATFAST_IMAGE_LEAF;
const ImageLeaf RATFAST_IMAGE_LEAF = {transform, normalise};

}  // namespace ratfast
