#pragma once
#include <string>

namespace simgpu {

// The PTX that nvcc embedded: `wrapper` is what host code passes to __cudaRegisterFatBinary. Throws PtxError
// that names the compile flag to use when there is none that can be read.
std::string extract_ptx(const void* wrapper);

}  // namespace simgpu
