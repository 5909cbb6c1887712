#pragma once

// The kernels of this folder, as the host sees them.

#include "kernels/cuda/gemm/arguments.h"
#include "kernels/cuda/gemm/tile.h"

namespace ergon::kernels::cuda::gemm_detail {

using TensorCoreKernel = void(TensorCoreArguments);

// For kTiles[tile], and a and b with lines along depth (K) or along rows; null where the table has none.
TensorCoreKernel* bf16_kernel(int tile, bool a_depth, bool b_depth);
TensorCoreKernel* f16_kernel(int tile, bool a_depth, bool b_depth);
TensorCoreKernel* tf32_kernel(int tile, bool a_depth, bool b_depth);
TensorCoreKernel* split_tf32_kernel(int tile, bool a_depth, bool b_depth);

// Blocks that a multiprocessor of the current device holds at a time.
int resident_blocks_of(TensorCoreKernel* kernel, const Tile& tile);

void launch_tensor_core(TensorCoreKernel* kernel, const Tile& tile, int blocks,
                        const TensorCoreArguments& arguments);

// Adds up what the splits of a sum have left.
void launch_reduce(const ReduceArguments& arguments);

// Any dtypes and layouts, one thread to an element.
void launch_simt(const GemmParams& params);

}  // namespace ergon::kernels::cuda::gemm_detail
