// Programs that cannot be simulated: each is one clear error.
#include <cstring>

#include "module.h"
#include "runtime/fat_binary.h"
#include "support.h"

// What nvcc's host code calls.
extern "C" void** __cudaRegisterFatBinary(void* wrapper);
extern "C" void __cudaRegisterFunction(void** handle, const char* host, char* device, const char* name, int,
                                       uint3*, uint3*, dim3*, dim3*, int*);

namespace {

using simgpu::PtxError;

// A fat binary as nvcc lays it out, with one entry.
struct FatBinary {
  FatBinary(uint16_t kind, uint32_t arch, uint32_t compressed, const std::string& payload) {
    const auto put = [&](auto value) { data.append(reinterpret_cast<const char*>(&value), sizeof value); };
    put(uint32_t{0xba55ed50}), put(uint16_t{1}), put(uint16_t{16}), put(uint64_t{64 + payload.size()});
    put(kind), put(uint16_t{1}), put(uint32_t{64}), put(uint64_t{payload.size()});
    put(compressed), put(uint32_t{0}), put(uint16_t{0}), put(uint16_t{8}), put(arch), put(uint32_t{0}),
        put(uint32_t{0});
    put(uint64_t{0}), put(uint64_t{0}), put(uint64_t{0});
    data += payload;
    wrapper = {0x466243b1, 1, data.data(), nullptr};
  }
  std::string data;
  struct {
    uint32_t magic, version;
    const void* data;
    void* extra;
  } wrapper;
};
std::string error_of(const FatBinary& binary) {
  try {
    simgpu::extract_ptx(&binary.wrapper);
  } catch (const PtxError& e) {
    return e.what();
  }
  return "no error";
}
#define EXPECT_HAS(text, piece) EXPECT_NE(std::string::npos, (text).find(piece)) << (text)

TEST(BadInput, FatBinaries) {
  const FatBinary good(1, 80, 0, ".version 9.0");
  EXPECT_EQ(".version 9.0", simgpu::extract_ptx(&good.wrapper));
  const char* const flags = "-no-compress -gencode arch=compute_80,code=compute_80";
  const std::string machine_code = error_of(FatBinary(2, 80, 0, "ELF")),
                    compressed = error_of(FatBinary(1, 80, 12, "zstd")),
                    newer = error_of(FatBinary(1, 90, 0, ".target sm_90a"));
  EXPECT_HAS(machine_code, "it holds no PTX");
  EXPECT_HAS(compressed, "its PTX is compressed");
  EXPECT_HAS(newer, "compute_90");
  for (const std::string& text : {machine_code, compressed, newer}) EXPECT_HAS(text, flags);
  const FatBinary other(1, 80, 0, "x");
  auto wrapper = other.wrapper;
  wrapper.magic = 7;
  EXPECT_THROW(simgpu::extract_ptx(&wrapper), PtxError);
}

// Registered and launched as host code does it: the message has the kernel's name too.
TEST(BadInput, ALaunchNamesTheKernelAndTheFlags) {
  const FatBinary newer(1, 90, 0, ".target sm_90a");
  static const char stub = 0;
  void** const handle = __cudaRegisterFatBinary(const_cast<void*>(static_cast<const void*>(&newer.wrapper)));
  __cudaRegisterFunction(handle, &stub, nullptr, "_Z3sumPf", -1, nullptr, nullptr, nullptr, nullptr, nullptr);
  testing::internal::CaptureStderr();
  const cudaError_t error = cudaLaunchKernel(&stub, 1, 1, nullptr, 0, nullptr);
  const std::string text = testing::internal::GetCapturedStderr();
  EXPECT_EQ(cudaErrorNoKernelImageForDevice, error);
  EXPECT_HAS(text, "kernel sum(float*)");
  EXPECT_HAS(text, "-gencode arch=compute_80,code=compute_80");
  simgpu::clear_fault();
}

// What ptxas does not let through, or says is slow: mma with `modifier`, a word of metadata in all lanes, and
// a selector.
std::string sparse_error(const char* modifier, const char* metadata, const char* selector) {
  const std::string ptx =
      std::string(".version 9.0\n.target sm_80\n.address_size 64\n.visible .entry multiply()\n{\n"
                  ".reg .f32 %f<5>;\n.reg .b32 %r<3>;\nmov.f32 %f1, 0f00000000;\nmov.u32 %r1, 0;\nmov.u32 %r2, ")
      + metadata + ";\nmma." + modifier
      + ".sync.aligned.m16n8k32.row.col.f32.bf16.bf16.f32 {%f1,%f2,%f3,%f4}, {%r1,%r1,%r1,%r1}, "
        "{%r1,%r1,%r1,%r1}, {%f1,%f1,%f1,%f1}, %r2, "
      + selector + ";\nret;\n}\n";
  const auto module = simgpu::parse_module(ptx, 0);
  simgpu::LaunchConfig config;
  config.grid = {1, 1, 1}, config.block = {32, 1, 1};
  try {
    simgpu::run_kernel(*module->find_kernel("multiply"), config, {});
  } catch (const simgpu::Fault& fault) {
    return fault.what();
  }
  return "no error";
}
TEST(BadInput, SparseSelectorsAndMetadata) {
  EXPECT_HAS(sparse_error("sp::ordered_metadata", "0x44444444", "0x2"),
             "the sparsity selector is 2; this shape has 2; kernel multiply");
  EXPECT_EQ("no error", sparse_error("sp::ordered_metadata", "0x44444444", "0x1"));
  EXPECT_HAS(sparse_error("sp", "0x11111115", "0x0"), "elements 1 and 1 of four, which must differ");
  EXPECT_EQ("no error", sparse_error("sp", "0x11111111", "0x0"));
}

std::string decode_error(const std::string& body) {
  const std::string ptx =
      ".version 9.0\n.target sm_80\n.address_size 64\n.file 1 \"kernels/sum.cu\"\n.visible .entry sum(.param "
      ".u64 out)\n{\n.reg .b32 %r<4>;\n"
      + body + "\nret;\n}\n";
  try {
    const auto module = simgpu::parse_module(ptx, 0);
    simgpu::Kernel* kernel = module->find_kernel("sum");
    if (kernel == nullptr) return "no kernel";
    kernel->local_bytes();  // decodes
  } catch (const PtxError& e) {
    return e.what();
  }
  return "no error";
}
TEST(BadInput, InstructionsAreNamedWithTheirLine) {
  EXPECT_EQ("no error", decode_error("add.u32 %r1, %r1, 1;"));
  const std::string unknown = decode_error(".loc 1 42 3\nwgmma.fence.sync.aligned;");
  EXPECT_HAS(unknown, "wgmma.fence.sync.aligned");
  EXPECT_HAS(unknown, "kernels/sum.cu:42");
  EXPECT_HAS(unknown, "sum");
  // A modifier that is not known is not passed over.
  EXPECT_HAS(decode_error("min.xorsign.abs.f32 %r1, %r1, %r2;"), "modifier .xorsign is not supported");
  EXPECT_HAS(decode_error("fma.rn.oob.f16x2 %r1, %r1, %r2, %r3;"), "modifier .oob");
  EXPECT_HAS(decode_error("mad.hi.sat.s32 %r1, %r1, %r2, %r3;"), "modifier .sat");
  EXPECT_HAS(decode_error("add.bf16x2 %r1, %r1, %r2;"), "add.bf16x2");  // sm_90
  EXPECT_HAS(decode_error("fma.rn.relu.sat.bf16x2 %r1, %r1, %r2, %r3;"), "modifier .sat");
  EXPECT_HAS(decode_error("add.u32 %r1, %r9, 1;"), "%r9");
  EXPECT_NE("no error", decode_error("add.u32 %r1, %r1"));
  EXPECT_NE("no error", decode_error("bra nowhere;"));
}

}  // namespace
