// Streams, events, memory, copies and faults of CUDA devices.

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include "core/allocator.h"
#include "core/cuda/check.h"
#include "core/op_scope.h"
#include "core/stream.h"
#include "core/tensor.h"
#include "tests/support/reference.h"

namespace ergon {
namespace {

const Device kCuda = Device::cuda();
const TensorOptions kOnCuda{.device = kCuda};

std::vector<double> values_of(const Tensor& tensor) { return tensor.to_vector<double>(); }

TEST(Device, CudaIsThereAndDevicesBeyondTheLastAreNot) {
  EXPECT_GE(device_count(DeviceType::cuda), 1);
  const std::string error = test::error_of([] { empty({1}, {.device = Device::cuda(60)}); });
  EXPECT_NE(error.find("device cuda:60 is not available: there "), std::string::npos) << error;
}

TEST(DeviceCopy, GoesToTheDeviceAndBack) {
  for (const DType dtype : {DType::f32, DType::bf16, DType::f16, DType::f64, DType::i8, DType::u8, DType::i32,
                            DType::i64, DType::boolean}) {
    const Tensor host = test::integers({3, 5}, {.dtype = dtype, .low = 0, .high = 2}).to(Device::cpu());
    const Tensor there = host.to(kCuda);
    EXPECT_EQ(there.device(), kCuda);
    EXPECT_TRUE(equal_bits(there.to(Device::cpu()), host)) << name_of(dtype);
  }
}

// Every layout of the destination and the source, every way to convert, against the CPU's copies.
TEST(DeviceCopy, MatchesTheCpuForEveryLayoutAndDtype) {
  const DType dtypes[] = {DType::f32, DType::bf16, DType::f16, DType::f64,    DType::i8,
                          DType::u8,  DType::i32,  DType::i64, DType::boolean};
  for (const DType from : dtypes) {
    for (const DType to : dtypes) {
      const Tensor source = test::uniform({9, 33}, {.dtype = from, .low = 0, .high = 100}).to(Device::cpu());
      const Tensor expected = source.to(to);
      EXPECT_TRUE(equal_bits(source.to(kCuda).to(to), expected)) << name_of(from) << " to " << name_of(to);
    }
  }
  for (const DType dtype : {DType::i8, DType::bf16, DType::f32, DType::f64}) {
    for (const test::Layout from : test::kLayouts) {
      for (const test::Layout to : test::kLayouts) {
        const Tensor source = test::in_layout(test::uniform({2, 40, 24}, {.dtype = dtype}).to(kCuda), from);
        Tensor destination = test::in_layout(zeros({2, 40, 24}, {dtype, kCuda}), to);
        destination.copy_(source);
        EXPECT_TRUE(equal_bits(destination, source)) << test::name_of(from) << " to " << test::name_of(to);
      }
    }
  }
}

TEST(DeviceCopy, ConvertsAndBroadcastsAcrossDevices) {
  const Tensor row = test::uniform({1, 7}, {.dtype = DType::f32}).to(Device::cpu());
  Tensor there = zeros({3, 7}, {DType::f64, kCuda});
  there.copy_(row);
  EXPECT_TRUE(test::near(there, values_of(row.expand({3, 7}))));
  Tensor back = zeros({7, 3}, {DType::bf16}).transpose(0, 1);
  back.copy_(there);
  EXPECT_TRUE(equal_bits(back, row.expand({3, 7}).to(DType::bf16)));
}

TEST(DeviceCopy, CarriesGradientsAcross) {
  Tensor leaf = test::uniform({4}).to(Device::cpu()).set_requires_grad(true);
  const Tensor weights = test::uniform({4}, {.seed = 3}).to(kCuda);
  leaf.to(kCuda).backward(weights);
  EXPECT_EQ(leaf.grad().device(), Device::cpu());
  EXPECT_TRUE(equal_bits(leaf.grad(), weights));
}

TEST(DeviceFill, WritesOnlyTheView) {
  Tensor tensor = zeros({4, 6}, kOnCuda);
  tensor.slice(1, 1, 6, 2).fill_(2.5);
  std::vector<double> expected(24);
  for (std::size_t i = 0; i < 24; ++i) expected[i] = i % 2 == 1 ? 2.5 : 0;
  EXPECT_TRUE(test::near(tensor, expected));
}

TEST(DeviceRandom, TheNumbersAreTheCpus) {
  Generator a(7), b(7);
  EXPECT_TRUE(equal_bits(randn({33}, kOnCuda, a), randn({33}, {}, b)));
}

TEST(PinnedMemory, CopiesBesideTheComputationAndKeepsTheBlockUntilTheyAreDone) {
  const Tensor source = test::uniform({1000}).to(Device::cpu());
  Tensor pinned = source.pin_memory();
  EXPECT_TRUE(pinned.is_pinned());
  EXPECT_FALSE(source.is_pinned());
  const Tensor there = pinned.to(kCuda, true);
  pinned = Tensor();  // its block must not be handed out again before the copy has read it
  const Tensor other = zeros({1000}).pin_memory();
  const Tensor twice = there.clone();  // on the default stream: waits for the copy
  EXPECT_TRUE(equal_bits(twice, source));

  Tensor back = zeros({1000}).pin_memory();
  back.copy_(there, true);
  synchronize(kCuda);
  EXPECT_TRUE(equal_bits(back, source));
}

TEST(Streams, AnEventOrdersTwoOfThem) {
  const Stream first = Stream::create(kCuda), second = Stream::create(kCuda);
  EXPECT_NE(first, second);
  Tensor a, b;
  Event ready;
  {
    StreamGuard guard(first);
    EXPECT_EQ(current_stream(kCuda), first);
    a = full({4096}, 3, kOnCuda);
    ready.record(first);
  }
  EXPECT_EQ(current_stream(kCuda), Stream(kCuda, nullptr));
  {
    StreamGuard guard(second);
    second.wait(ready);
    b = a.to(DType::f64);
    a.record_stream(second);
  }
  second.synchronize();
  EXPECT_TRUE(second.idle());
  EXPECT_TRUE(ready.passed());
  EXPECT_EQ(b.slice(0, 4095, 4096).item<double>(), 3);
}

TEST(DeviceMemory, IsCountedAndGivenBack) {
  const std::int64_t before = memory_stats(kCuda).current;
  reset_peak_memory(kCuda);
  {
    const Tensor a = empty({1000}, kOnCuda);
    const Tensor b = empty({500}, kOnCuda);
    EXPECT_EQ(memory_stats(kCuda).current, before + 6000);
    EXPECT_GE(memory_stats(kCuda).reserved, 6000);
  }
  EXPECT_EQ(memory_stats(kCuda).current, before);
  EXPECT_EQ(memory_stats(kCuda).peak, before + 6000);
}

TEST(DeviceMemory, RunningOutNamesTheLargestHolders) {
  const Tensor held = [] {
    OpScope scope("exp");
    return empty({1000}, kOnCuda);
  }();
  set_memory_limit(memory_stats(kCuda).current + 100, kCuda);
  const std::string error = test::error_of([] { empty({64}, kOnCuda); });
  set_memory_limit(0, kCuda);
  EXPECT_EQ(error.find("out of memory on cuda:0: asked for 256 bytes with "), 0u) << error;
  EXPECT_NE(error.find("exp (4000 bytes in 1 block)"), std::string::npos) << error;

  const std::string too_large = test::error_of([] { empty({std::int64_t{1} << 42}, kOnCuda); });
  EXPECT_NE(too_large.find("free of the device's"), std::string::npos) << too_large;
  EXPECT_EQ(zeros({1}, kOnCuda).item<float>(), 0);  // and the device goes on
}

TEST(DeviceErrors, NameTheOpAndThePlace) {
  const std::string error = test::error_of([] {
    const Tensor x = empty({2, 3}, kOnCuda);
    OpScope scope("softmax", x);
    CUDA_CHECK(cudaSetDevice(99));
  });
  EXPECT_EQ(error.find("[softmax] CUDA error on cuda:0: "), 0u) << error;
  EXPECT_NE(error.find("; operands (2, 3) f32 on cuda:0"), std::string::npos) << error;
  EXPECT_NE(error.find("cudaErrorInvalidDevice) from cudaSetDevice(99) at device_test.cpp:"),
            std::string::npos)
      << error;
}

TEST(DeviceErrors, TensorsOnSeveralDevicesAreNamed) {
  const Tensor here = empty({2, 3}), there = empty({3}, kOnCuda), absent;
  EXPECT_EQ(test::error_of([&] { OpScope scope("add", here, absent, there); }),
            "[add] operands (2, 3) f32 on cpu, (3,) f32 on cuda:0: expected one device");
}

}  // namespace
}  // namespace ergon
