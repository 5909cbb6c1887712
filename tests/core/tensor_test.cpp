#include "core/tensor.h"

#include <algorithm>
#include <cmath>
#include <sstream>

#include <gtest/gtest.h>

#include "core/half.h"
#include "core/op_scope.h"
#include "core/tensor_impl.h"

namespace ergon {
namespace {

std::string error_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

TEST(Tensor, ViewsShareStorageAndCopiesDoNot) {
  Tensor x = arange(0, 12).view({3, 4});
  Tensor row = x.select(0, 1);
  row.fill_(7);
  EXPECT_EQ(x.to_vector<std::int64_t>(), (std::vector<std::int64_t>{0, 1, 2, 3, 7, 7, 7, 7, 8, 9, 10, 11}));
  Tensor copy = x.clone();
  copy.fill_(0);
  EXPECT_EQ(x.select(0, 2).to_vector<std::int64_t>(), (std::vector<std::int64_t>{8, 9, 10, 11}));
}

TEST(Tensor, TransposeSliceAndPermuteWalkTheRightElements) {
  const Tensor x = arange(0, 24).view({2, 3, 4});
  EXPECT_EQ(x.transpose(0, 2).shape(), (Shape{4, 3, 2}));
  EXPECT_EQ(x.transpose(0, 2).slice(0, 1, 2).to_vector<std::int64_t>(),
            (std::vector<std::int64_t>{1, 13, 5, 17, 9, 21}));
  EXPECT_EQ(x.permute({1, 2, 0}).select(0, 2).select(0, -1).to_vector<std::int64_t>(),
            (std::vector<std::int64_t>{11, 23}));
  EXPECT_EQ(x.slice(2, -3, -1).select(0, 0).select(0, 0).to_vector<std::int64_t>(),
            (std::vector<std::int64_t>{1, 2}));
  EXPECT_EQ(x.slice(2, 0, 4, 3).select(0, 1).select(0, 1).to_vector<std::int64_t>(),
            (std::vector<std::int64_t>{16, 19}));
}

TEST(Tensor, ViewOfStridedTensorsWhereItIsPossible) {
  const Tensor x = arange(0, 24).view({2, 3, 4});
  const Tensor heads = x.transpose(0, 1);  // (3, 2, 4), strides (4, 12, 1)
  EXPECT_EQ(heads.view({3, 2, 2, 2}).shape(), (Shape{3, 2, 2, 2}));
  EXPECT_EQ(heads.view({3, 2, 2, 2}).reshape({24}).to_vector<std::int64_t>(),
            heads.to_vector<std::int64_t>());
  EXPECT_EQ(error_of([&] {
              heads.view({6, 4});
            }),
            "[view] shape (3, 2, 4) with strides (4, 12, 1) cannot be viewed as (6, 4): use reshape");
  EXPECT_EQ(heads.reshape({6, 4}).to_vector<std::int64_t>(), heads.to_vector<std::int64_t>());
  EXPECT_EQ(x.reshape({-1, 8}).shape(), (Shape{3, 8}));
}

TEST(Tensor, EveryStridedCopyMatchesAnIndexLoop) {
  for (const std::int64_t rows : {1, 31, 33, 100}) {
    for (const std::int64_t cols : {1, 32, 65}) {
      const Tensor x = arange(0, rows * cols * 2).view({2, rows, cols});
      const std::vector<std::int64_t> got = x.transpose(1, 2).contiguous().to_vector<std::int64_t>();
      for (std::int64_t b = 0; b < 2; ++b) {
        for (std::int64_t c = 0; c < cols; ++c) {
          for (std::int64_t r = 0; r < rows; ++r) {
            ASSERT_EQ(got[static_cast<std::size_t>((b * cols + c) * rows + r)], (b * rows + r) * cols + c)
                << rows << "x" << cols;
          }
        }
      }
    }
  }
}

TEST(Tensor, ConversionsBetweenAllDtypes) {
  constexpr DType kAll[] = {DType::f32, DType::bf16, DType::f16, DType::f64,    DType::i8,
                            DType::u8,  DType::i32,  DType::i64, DType::boolean};
  for (DType from : kAll) {
    for (DType to : kAll) {
      const Tensor x = from_vector<double>({0, 1, 3}, {3}).to(from).to(to);
      const bool through_bool = from == DType::boolean || to == DType::boolean;
      EXPECT_EQ(x.to_vector<double>(), (std::vector<double>{0, 1, through_bool ? 1.0 : 3.0}))
          << name_of(from) << " to " << name_of(to);
    }
  }
}

TEST(Tensor, HalfConversionRoundsToNearestEven) {
  // 1 + 2^-8 lies between two bf16 numbers: the tie goes to the even one, below; 1 + 3 * 2^-8 to the one
  // above.
  const Tensor x = from_vector<double>({1 + 0x1p-8, 1 + 3 * 0x1p-8}, {2}, {DType::f32});
  EXPECT_EQ(x.to(DType::bf16).to_vector<double>(), (std::vector<double>{1, 1 + 0x1p-6}));
  EXPECT_TRUE(std::isinf(full({}, 70000.0).to(DType::f16).item<float>()));
  EXPECT_TRUE(std::isnan(full({}, NAN).to(DType::bf16).item<float>()));
}

TEST(Tensor, CopyBroadcasts) {
  Tensor x = zeros({2, 3});
  x.copy_(from_vector<float>({1, 2, 3}, {3}));
  EXPECT_EQ(x.to_vector<float>(), (std::vector<float>{1, 2, 3, 1, 2, 3}));
  EXPECT_EQ(error_of([&] { x.copy_(zeros({4})); }),
            "[copy_] shapes (2, 3) and (4,) do not broadcast: sizes 3 and 4 at dimension 1 from the end");
  EXPECT_EQ(error_of([&] {
              x.copy_(zeros({5, 2, 3}));
            }),
            "[copy_] a source of shape (5, 2, 3) does not broadcast to (2, 3)");
}

TEST(Tensor, PiecesSideBySideAreJoinedInPlace) {
  const Tensor x = randn({2, 6, 2}).slice(1, 1, 6);
  const std::vector<Tensor> pieces = split(x, {1, 3, 1}, 1);
  const Tensor joined = detail::joined_in_place(pieces, 1);
  EXPECT_EQ(joined.data_ptr(), x.data_ptr());
  EXPECT_TRUE(equal_bits(joined, x));
  EXPECT_TRUE(equal_bits(detail::joined_in_place(std::span(pieces).subspan(1), -2), x.slice(1, 1, 5)));

  const auto joins = [](const std::vector<Tensor>& tensors) {
    return detail::joined_in_place(tensors, 1).defined();
  };
  EXPECT_FALSE(joins({}));
  EXPECT_FALSE(joins({pieces[1], pieces[0]}));                      // another order
  EXPECT_FALSE(joins({pieces[0], pieces[2]}));                      // a gap
  EXPECT_FALSE(joins({pieces[0], Tensor()}));                       // no tensor
  EXPECT_FALSE(joins({pieces[0].clone(), pieces[1].clone()}));      // apart
  EXPECT_FALSE(joins({pieces[0], pieces[1].slice(0, 0, 1)}));       // other sizes elsewhere
  EXPECT_FALSE(joins({pieces[0], pieces[1].transpose(0, 2)}));      // other strides
  EXPECT_FALSE(joins({x.slice(1, 0, 4, 2), x.slice(1, 2, 4, 2)}));  // interleaved
}

TEST(Tensor, EmptyTensorsAreFine) {
  const Tensor x = zeros({0, 4});
  EXPECT_EQ(x.numel(), 0);
  EXPECT_EQ(cat({x, ones({2, 4})}, 0).shape(), (Shape{2, 4}));
  EXPECT_EQ(x.transpose(0, 1).contiguous().shape(), (Shape{4, 0}));
  EXPECT_EQ(zeros({3}).slice(0, 2, 1).shape(), (Shape{0}));
}

TEST(Tensor, ErrorsNameOperationExpectedAndActual) {
  const Tensor x = zeros({2, 3});
  EXPECT_EQ(error_of([&] { x.select(1, 3); }),
            "[select] index 3 of dimension 1 of shape (2, 3): expected one in [-3, 3)");
  EXPECT_EQ(error_of([&] { x.transpose(0, 2); }), "[transpose] dimension 2: expected one in [-2, 2)");
  EXPECT_EQ(error_of([&] { x.view({4, 2}); }), "[view] shape (4, 2) has 8 elements, the tensor (2, 3) has 6");
  EXPECT_EQ(error_of([&] { x.data<double>(); }), "[data] the tensor has dtype f32, not f64");
  EXPECT_EQ(error_of([&] { x.item<float>(); }), "[item] shape (2, 3): expected a tensor of one element");
  EXPECT_EQ(error_of([&] {
              split(x, {1, 1}, 1);
            }),
            "[split] sizes (1, 1) add up to 2: dimension 1 of (2, 3) has 3");
  EXPECT_EQ(error_of([&] {
              cat({x, zeros({2, 4, 1})}, 0);
            }),
            "[cat] shapes (2, 3) and (2, 4, 1) differ outside dimension 0");
  EXPECT_EQ(error_of([&] { Tensor().shape(); }), "the tensor is undefined");
#ifndef ERGON_CUDA
  EXPECT_EQ(error_of([&] { zeros({2}, {.device = Device::cuda()}); }),
            "device cuda:0 is not available: this build of Ergon has no CUDA support");
#endif
  EXPECT_EQ(error_of([&] {
              zeros({std::int64_t{1} << 40, std::int64_t{1} << 40});
            }),
            "shape (1099511627776, 1099511627776) has more than 2^63 elements");
}

TEST(Tensor, Prints) {
  std::ostringstream text;
  text << from_vector<float>({1, 2.5, -3, 4}, {2, 2});
  EXPECT_EQ(text.str(), "Tensor(shape=(2, 2), dtype=f32, device=cpu)\n[[1, 2.5],\n [-3, 4]]");
  EXPECT_NE(to_string(zeros({2000})).find("0, 0, 0, ..., 0, 0, 0]"), std::string::npos);
}

TEST(Allocator, CountsAndReusesMemory) {
  const std::int64_t before = memory_stats().current;
  reset_peak_memory();
  {
    const Tensor x = empty({1 << 20});
    EXPECT_GE(memory_stats().current - before, 4 << 20);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(x.data_ptr()) % 64, 0u);
  }
  EXPECT_EQ(memory_stats().current, before);
  EXPECT_GE(memory_stats().peak, before + (4 << 20));
}

TEST(Allocator, SmallBlocksGoBackToTheSystemTogether) {
  empty_cache();
  const std::int64_t before = memory_stats().reserved;
  {
    std::vector<Tensor> blocks;  // of 1 MiB: below the size that has pages of its own
    for (int i = 0; i < 120; ++i) blocks.push_back(full({1 << 18}, i));
    EXPECT_GE(memory_stats().reserved - before, 120 << 20);
    for (int i = 0; i < 120; ++i) {
      const float* data = blocks[static_cast<std::size_t>(i)].data<float>();
      EXPECT_EQ(std::count(data, data + (1 << 18), static_cast<float>(i)), 1 << 18);
    }
  }
  empty_cache();
  EXPECT_LE(memory_stats().reserved - before, 64 << 20);  // neighbours of blocks in use stay
}

// Blocks of 2 MiB and more, which are large, of sizes that take turns.
TEST(Allocator, LargeBlocksOfRecurringSizesAreKept) {
  const auto mebibytes = [](std::int64_t n) { return empty({n << 18}); };
  empty_cache();
  reset_peak_memory();
  const std::int64_t before = memory_stats().reserved;
  std::vector<std::int64_t> reserved;
  for (int step = 0; step < 3; ++step) {
    { const Tensor a = mebibytes(16), b = mebibytes(4); }
    reserved.push_back(memory_stats().reserved - before);
    { const Tensor c = mebibytes(5); }
    reserved.push_back(memory_stats().reserved - before);
  }
#ifndef ERGON_DEBUG_CHECKS  // where freed blocks are not kept
  for (std::size_t i = 1; i < reserved.size(); ++i) EXPECT_EQ(reserved[i], 25 << 20) << i;
#endif
  for (std::int64_t n = 2; n <= 32; ++n) {  // each of a size of its own
    const Tensor d = mebibytes(n);
    EXPECT_LE(memory_stats().reserved, memory_stats().peak * 5 / 4 + before) << n << " MiB";
  }
}

TEST(Allocator, BorrowedMemoryIsNotCounted) {
  const std::int64_t before = memory_stats().current;
  float value = 1;
  {
    const Tensor borrowed = from_blob(&value, {1}, DType::f32, nullptr),
                 nothing = from_blob(nullptr, {0}, DType::f32, nullptr);
  }
  EXPECT_EQ(memory_stats().current, before);
}

TEST(Allocator, OutOfMemoryNamesAskedUsedAndHolders) {
  const Tensor held = [] {
    OpScope scope("held_by_a_test");
    return empty({1 << 20});
  }();
  set_memory_limit(memory_stats().current + (1 << 20));
  std::string message;
  try {
    empty({1 << 22});
  } catch (const OutOfMemoryError& error) {
    message = error.what();
  }
  set_memory_limit(0);
  EXPECT_NE(message.find("asked for 16777216 bytes"), std::string::npos) << message;
  EXPECT_NE(message.find("largest holders: held_by_a_test (4194304 bytes in 1 block)"), std::string::npos)
      << message;
}

// The reference numbers of the Random123 distribution's known-answer tests (philox4x32, 10 rounds).
TEST(Random, PhiloxKnownAnswers) {
  EXPECT_EQ(philox4x32(0, 0), (std::array<std::uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
}

TEST(Random, StreamsAreReproducibleAndDisjoint) {
  Generator a(5), b(5);
  const Tensor first = rand({1000}, {}, a), again = rand({1000}, {}, b), next = rand({1000}, {}, a);
  EXPECT_TRUE(equal_bits(first, again));
  EXPECT_FALSE(equal_bits(first, next));
}

TEST(Random, MomentsOfTheDistributions) {
  Generator generator(1);
  const std::int64_t count = 200000;
  double mean = 0, square = 0;
  for (float value : randn({count}, {}, generator).to_vector<float>()) {
    mean += value / count;
    square += double{value} * value / count;
  }
  EXPECT_NEAR(mean, 0, 5 / std::sqrt(count));  // five standard errors
  EXPECT_NEAR(square, 1, 5 * std::sqrt(2.0 / count));
  std::array<int, 7> seen{};
  for (std::int64_t value :
       randint(-3, 4, {70000}, {.dtype = DType::i64}, generator).to_vector<std::int64_t>()) {
    ASSERT_GE(value, -3);
    ASSERT_LT(value, 4);
    ++seen[static_cast<std::size_t>(value + 3)];
  }
  for (int count_of_value : seen) EXPECT_NEAR(count_of_value, 10000, 5 * std::sqrt(10000));
}

}  // namespace
}  // namespace ergon
