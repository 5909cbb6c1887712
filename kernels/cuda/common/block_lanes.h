#pragma once

// How a block shares its threads among results and the elements of each.

#include <algorithm>
#include <cstdint>

namespace ergon::kernels::cuda {

constexpr int kReduceThreads = 256;

// 2^column_bits results side by side, 2^lane_bits threads for each.
struct BlockLanes {
  // Neighbouring threads work on neighbouring results (else: on neighbouring elements of one result). It is
  // what lies closer in memory.
  bool by_columns = false;
  int column_bits = 0, lane_bits = 0;

  // `results` and `elements` of each: in vectors along the one that lies closer.
  BlockLanes(bool columns_first, std::int64_t results, std::int64_t elements) : by_columns(columns_first) {
    constexpr int kBits = 8;
    static_assert(1 << kBits == kReduceThreads);
    if (by_columns) {
      // Warps of full rows; beyond that no more lanes than there is work of four elements for.
      const auto wanted = bits_for(results);
      lane_bits = kBits - std::min(wanted, 5);
      lane_bits = std::min(lane_bits, std::max(bits_for((elements + 3) / 4), kBits - wanted));
    } else {
      // Full warps first, then four elements a thread before there are more.
      lane_bits = std::min(bits_for(elements), std::max(5, bits_for((elements + 3) / 4)));
      lane_bits = std::min(lane_bits, kBits);
    }
    column_bits = kBits - lane_bits;
  }

  constexpr int columns() const { return 1 << column_bits; }
  constexpr int lanes() const { return 1 << lane_bits; }

#ifdef __CUDACC__
  // Of this thread.
  __device__ __forceinline__ int column() const {
    return by_columns ? threadIdx.x & (columns() - 1) : threadIdx.x >> lane_bits;
  }
  __device__ __forceinline__ int lane() const {
    return by_columns ? threadIdx.x >> column_bits : threadIdx.x & (lanes() - 1);
  }
  // The thread of a column's lane.
  __device__ __forceinline__ int thread(int column, int lane) const {
    return by_columns ? (lane << column_bits) + column : (column << lane_bits) + lane;
  }
#endif

 private:
  static int bits_for(std::int64_t count) {  // the smallest b, up to 8, with 2^b >= count
    int bits = 0;
    while (bits < 8 && (std::int64_t{1} << bits) < count) ++bits;
    return bits;
  }
};

}  // namespace ergon::kernels::cuda
