#pragma once
#include <map>
#include <string>
#include <string_view>

namespace simgpu {

// The PTX that nvcc embedded: `wrapper` is what host code passes to __cudaRegisterFatBinary. Throws PtxError
// that names the compile flag to use when there is none that can be read.
std::string_view extract_ptx(const void* wrapper);
// Registers a thread of each kernel, by mangled name, as ptxas gave them out: where the fat binary holds
// machine code for sm_80 too.
std::map<std::string, int> extract_registers(const void* wrapper);

}  // namespace simgpu
