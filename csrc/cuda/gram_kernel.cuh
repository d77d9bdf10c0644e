// The kernels of gram, and the table that describes their work.
#pragma once

#include "device.cuh"

namespace ratfast::cuda {

constexpr int kGramGroup = 4;    // a thread holds the products of 4 x 4 models in registers
constexpr int kGramSide = 16;    // models along each side of a tile, where there are more than kGramAlone
constexpr int kGramAlone = 20;   // models that make one tile: 15 pairs of groups for 16 teams of threads
constexpr int kGramRoom = 4096;  // numbers of a tile in shared memory, 32 KiB

// All of it is a kernel argument, as in mix. A tensor is cut into `parts` of `length` elements, which depends
// on its size and the number of models alone: so does the result, whatever the device.
struct GramTable {
  static constexpr int kSegments = 256;
  static constexpr int kPointers = 2048;
  int segments;
  int sources;
  int tiles;  // pairs of tiles of models
  long long numel[kSegments];
  long long length[kSegments];
  long long part_end[kSegments];  // the parts of all tensors are numbered in a row
  const void* pointers[kPointers];
  DType types[kPointers];
  bool aligned[kSegments];
  double* partial;  // (parts, sources, sources)
  double* result;   // (segments, sources, sources)

  __host__ __device__ __forceinline__ long long parts() const {
    return segments == 0 ? 0 : part_end[segments - 1];
  }
  __device__ __forceinline__ long long part_begin(int segment) const {
    return segment == 0 ? 0 : part_end[segment - 1];
  }
  __device__ __forceinline__ int find(long long part) const {
    int low = 0, high = segments - 1;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (part_end[middle] > part)
        high = middle;
      else
        low = middle + 1;
    }
    return low;
  }
};
static_assert(sizeof(GramTable) <= 32764);

// The place of `index` among the pairs (0, 0), (0, 1), ..., (1, 1), ... of so many things.
__host__ __device__ __forceinline__ void unrank_pair(int index, int count, int& row, int& column) {
  row = 0;
  while (index >= count - row) index -= count - row++;
  column = row + index;
}

// One tile of models: the models that its rows and columns stand for, and how its pairs of groups and the
// elements are divided among the threads.
struct GramTile {
  int first_row, first_column;  // models
  int rows, columns;            // how many; on the diagonal the columns are the rows
  int groups;                   // of rows; columns of another tile begin at group kGramSide / kGramGroup
  bool diagonal;
  int width_log2;  // elements that are in shared memory at a time
  int lanes_log2;  // threads of a team

  __device__ __forceinline__ GramTile(const GramTable& table, int place) {
    if (table.sources <= kGramAlone) {
      first_row = first_column = 0;
      rows = columns = table.sources;
      diagonal = true;
    } else {
      int row, column;
      unrank_pair(place, (table.sources + kGramSide - 1) / kGramSide, row, column);
      first_row = row * kGramSide;
      first_column = column * kGramSide;
      rows = table.sources - first_row < kGramSide ? table.sources - first_row : kGramSide;
      columns = table.sources - first_column < kGramSide ? table.sources - first_column : kGramSide;
      diagonal = row == column;
    }
    groups = (rows + kGramGroup - 1) / kGramGroup;
    const int held = diagonal ? groups : 2 * kGramSide / kGramGroup;
    int slots_log2 = 0, teams_log2 = 0;
    while ((1 << slots_log2) < held) ++slots_log2;
    while ((1 << teams_log2) < pairs()) ++teams_log2;
    width_log2 = 10 - slots_log2;
    lanes_log2 = 8 - teams_log2;
  }

  __device__ __forceinline__ int pairs() const {
    return diagonal ? groups * (groups + 1) / 2 : kGramSide / kGramGroup * (kGramSide / kGramGroup);
  }
  // The groups that a team multiplies, as rows of shared memory.
  __device__ __forceinline__ void pair(int team, int& a, int& b) const {
    if (diagonal)
      unrank_pair(team, groups, a, b);
    else
      a = team / (kGramSide / kGramGroup), b = kGramSide / kGramGroup + team % (kGramSide / kGramGroup);
  }
  // The model of a row of shared memory, or -1 if none is there.
  __device__ __forceinline__ int model(int row) const {
    if (diagonal || row < kGramSide) return row < rows ? first_row + row : -1;
    return row - kGramSide < columns ? first_column + row - kGramSide : -1;
  }
};
static_assert(kThreads == 1 << 8 && kGramRoom == kGramGroup << 10);

// Sums over the parts. Every model of the tile is read once per block; the pairs meet in shared memory, where
// the numbers lie as doubles, in which the products of all narrower types are exact. A team of threads
// multiplies one pair of groups, each thread of it on every `lanes`-th element. Four words of 16 bytes per
// thread are on their way.
__global__ void __launch_bounds__(kThreads, 2) gram_kernel(const __grid_constant__ GramTable table) {
  __shared__ double numbers[kGramRoom];  // [row][element]; the sums of the teams in the end
  const int thread = threadIdx.x;
  for (long long work = blockIdx.x; work < table.parts() * table.tiles; work += gridDim.x) {
    // Tiles of one part are neighbours: what one of them read is in the cache for the next.
    const long long part = work / table.tiles;
    const GramTile tile(table, static_cast<int>(work % table.tiles));
    const int segment = table.find(part);
    const int first = segment * table.sources;
    const long long begin = (part - table.part_begin(segment)) * table.length[segment];
    const long long until = begin + table.length[segment];
    const long long end = until < table.numel[segment] ? until : table.numel[segment];
    const int width = 1 << tile.width_log2, quads_log2 = tile.width_log2 - 2, lanes = 1 << tile.lanes_log2;
    const int team = thread >> tile.lanes_log2, lane = thread & (lanes - 1);
    const bool busy = team < tile.pairs();
    int a = 0, b = 0;
    if (busy) tile.pair(team, a, b);
    double sums[kGramGroup][kGramGroup] = {};

    for (long long start = begin; start < end; start += width) {
      Elements<4> raw[4];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int item = thread + i * kThreads;
        const int model = tile.model(item >> quads_log2);
        const long long index = start + 4 * (item & ((1 << quads_log2) - 1));
        if (model >= 0 && table.aligned[segment] && index + 4 <= end)
          raw[i].load(table.types[first + model], table.pointers[first + model], index);
      }
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int item = thread + i * kThreads;
        const int row = item >> quads_log2, quad = item & ((1 << quads_log2) - 1);
        const int model = tile.model(row);
        const long long index = start + 4 * quad;
        // The elements of a quad lie apart, so that neighbouring threads write to neighbouring banks.
        double* target = numbers + (row << tile.width_log2) + quad;
        if (model >= 0 && table.aligned[segment] && index + 4 <= end) {
          double values[4];
          raw[i].convert(table.types[first + model], values);
#pragma unroll
          for (int j = 0; j < 4; ++j) target[j << quads_log2] = values[j];
        } else {
#pragma unroll 1
          for (int j = 0; j < 4; ++j)
            target[j << quads_log2] = model >= 0 && index + j < end
                                          ? load_scalar<double>(table.types[first + model],
                                                                table.pointers[first + model], index + j)
                                          : 0.0;
        }
      }
      __syncthreads();
      if (busy) {
        const double* at_a = numbers + ((a * kGramGroup) << tile.width_log2);
        const double* at_b = numbers + ((b * kGramGroup) << tile.width_log2);
        for (int element = lane; element < width; element += lanes) {
          double left[kGramGroup], right[kGramGroup];
#pragma unroll
          for (int i = 0; i < kGramGroup; ++i) {
            left[i] = at_a[(i << tile.width_log2) + element];
            right[i] = at_b[(i << tile.width_log2) + element];
          }
#pragma unroll
          for (int i = 0; i < kGramGroup; ++i)
#pragma unroll
            for (int j = 0; j < kGramGroup; ++j) sums[i][j] = fma(left[i], right[j], sums[i][j]);
        }
      }
      __syncthreads();
    }

    // The lanes of each team are added as a tree.
#pragma unroll
    for (int i = 0; i < kGramGroup * kGramGroup; ++i)
      numbers[i * kThreads + thread] = sums[i / kGramGroup][i % kGramGroup];
    for (int half = lanes / 2; half > 0; half /= 2) {
      __syncthreads();
      if (lane < half)
        for (int i = 0; i < kGramGroup * kGramGroup; ++i)
          numbers[i * kThreads + thread] += numbers[i * kThreads + thread + half];
    }
    if (busy && lane == 0) {
      double* target = table.partial + part * table.sources * table.sources;
      for (int i = 0; i < kGramGroup * kGramGroup; ++i) {
        const int row = tile.model(a * kGramGroup + i / kGramGroup);
        const int column = tile.model(b * kGramGroup + i % kGramGroup);
        if (row >= 0 && column >= row) target[row * table.sources + column] = numbers[i * kThreads + thread];
      }
    }
    __syncthreads();
  }
}

// Adds the parts of each pair: eight pairs per block, 32 threads each, which then add their sums as a tree.
__global__ void __launch_bounds__(kThreads) gram_parts_kernel(const __grid_constant__ GramTable table) {
  constexpr int lanes = 32;
  constexpr int teams = kThreads / lanes;
  __shared__ double numbers[kThreads];
  const int thread = threadIdx.x, lane = thread % lanes;
  const long long square = static_cast<long long>(table.sources) * table.sources;
  const long long pairs = table.segments * square;
  for (long long work = blockIdx.x; work * teams < pairs; work += gridDim.x) {
    const long long place = work * teams + thread / lanes;
    const int segment = static_cast<int>(place / square);
    const int row = static_cast<int>(place % square / table.sources);
    const int column = static_cast<int>(place % table.sources);
    const bool busy = place < pairs && column >= row;
    double sum = 0;
    if (busy) {
      const double* from = table.partial + static_cast<long long>(row) * table.sources + column;
#pragma unroll 4
      for (long long part = table.part_begin(segment) + lane; part < table.part_end[segment]; part += lanes)
        sum += from[part * square];
    }
    numbers[thread] = sum;
    for (int half = lanes / 2; half > 0; half /= 2) {
      __syncthreads();
      if (lane < half) numbers[thread] += numbers[thread + half];
    }
    if (busy && lane == 0) {
      double* target = table.result + segment * square;
      target[static_cast<long long>(row) * table.sources + column] = numbers[thread];
      target[static_cast<long long>(column) * table.sources + row] = numbers[thread];
    }
    __syncthreads();
  }
}

}  // namespace ratfast::cuda
