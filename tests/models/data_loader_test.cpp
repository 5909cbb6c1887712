#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <numeric>

#include <gtest/gtest.h>

#include "core/error.h"
#include "models/data/loader.h"
#include "models/data/sampler.h"
#include "tests/support/reference.h"

namespace ergon::data {
namespace {

using nlohmann::json;
using test::error_of;

TEST(Permutation, IsOneForEverySizeAndSeed) {
  for (const std::int64_t size : {1, 2, 3, 4, 5, 15, 16, 17, 63, 64, 65, 1000, 4097, 60000}) {
    for (const std::uint64_t seed : {0, 1, 2}) {
      const Permutation permutation(size, seed);
      std::vector<bool> seen(static_cast<std::size_t>(size));
      for (std::int64_t i = 0; i < size; ++i) {
        const auto to = static_cast<std::size_t>(permutation(i));
        ASSERT_LT(to, seen.size());
        EXPECT_FALSE(seen[to]) << size << " " << seed << " " << i;
        seen[to] = true;
      }
    }
  }
  const Permutation large(std::int64_t{1} << 50, 3);
  EXPECT_LT(large(12345), std::int64_t{1} << 50);
}

TEST(Permutation, SendsEveryElementEverywhereEquallyOften) {
  // Chi-squared of (from, to) counts over seeds; bound: mean + 5 standard deviations of its distribution.
  for (const int size : {2, 7, 10, 16, 33}) {
    const int seeds = 400 * size;
    std::vector<int> counts(static_cast<std::size_t>(size * size));
    for (int seed = 0; seed < seeds; ++seed) {
      const Permutation permutation(size, static_cast<std::uint64_t>(seed));
      for (int i = 0; i < size; ++i) ++counts[static_cast<std::size_t>(i * size + permutation(i))];
    }
    double chi2 = 0;
    const double expected = seeds / size;
    for (const int count : counts) chi2 += (count - expected) * (count - expected) / expected;
    const double freedom = (size - 1.0) * (size - 1.0);
    EXPECT_LT(chi2, freedom + 5 * std::sqrt(2 * freedom)) << size;
  }
}

std::vector<std::int64_t> examples_of(const Sampler& sampler, std::int64_t first, std::int64_t batches) {
  std::vector<std::int64_t> examples;
  for (std::int64_t k = first; k < first + batches; ++k) {
    for (std::int64_t i = 0; i < sampler.batch_size(k); ++i) examples.push_back(sampler.example(k, i));
  }
  return examples;
}

TEST(Sampler, ShuffledEpochsUseEveryExampleOnceInANewOrder) {
  constexpr std::int64_t kExamples = 103;  // no multiple of the batch: epochs follow without a seam
  const Sampler sampler(kExamples, {.sampling = Sampling::shuffled, .batch_size = 8, .seed = 5});
  const std::vector<std::int64_t> all = examples_of(sampler, 0, kExamples);  // 8 epochs
  std::vector<std::vector<std::int64_t>> orders;
  for (std::size_t epoch = 0; epoch < 8; ++epoch) {
    std::vector<std::int64_t> order(all.begin() + epoch * kExamples, all.begin() + (epoch + 1) * kExamples);
    for (const auto& earlier : orders) EXPECT_NE(order, earlier);
    orders.push_back(order);
    std::sort(order.begin(), order.end());
    std::vector<std::int64_t> expected(kExamples);
    std::iota(expected.begin(), expected.end(), 0);
    EXPECT_EQ(order, expected);
  }
  EXPECT_DOUBLE_EQ(sampler.epochs(kExamples), 8);
  const Sampler other(kExamples, {.sampling = Sampling::shuffled, .batch_size = 8, .seed = 6});
  EXPECT_NE(examples_of(other, 0, 10), examples_of(sampler, 0, 10));
}

TEST(Sampler, RandomDrawsAreUniform) {
  const Sampler sampler(10, {.batch_size = 100, .seed = 1});
  std::array<int, 10> counts{};
  for (const std::int64_t example : examples_of(sampler, 0, 100)) ++counts[static_cast<std::size_t>(example)];
  double chi2 = 0;
  for (const int count : counts) chi2 += (count - 1000.0) * (count - 1000.0) / 1000.0;
  EXPECT_LT(chi2, 9 + 5 * std::sqrt(18.0));
}

TEST(Sampler, RanksShareOutTheBatchOfOneProcess) {
  for (const Sampling sampling : {Sampling::random, Sampling::shuffled, Sampling::sequential}) {
    const Sampler one(50, {.sampling = sampling, .batch_size = 12, .seed = 9});
    for (std::int64_t k = 0; k < 3; ++k) {
      std::vector<std::int64_t> joined;
      for (int rank = 0; rank < 3; ++rank) {
        const Sampler part(50,
                           {.sampling = sampling, .batch_size = 4, .seed = 9, .rank = rank, .world_size = 3});
        for (const std::int64_t example : examples_of(part, k, 1)) joined.push_back(example);
      }
      EXPECT_EQ(joined, examples_of(one, k, 1));
    }
  }
}

TEST(Sampler, SequentialRanksCoverEverythingOnce) {
  for (const int world_size : {1, 2, 3, 5}) {
    for (const std::int64_t examples : {1, 7, 8, 9, 31}) {
      std::vector<std::int64_t> seen;
      for (int rank = 0; rank < world_size; ++rank) {
        const Sampler sampler(
            examples,
            {.sampling = Sampling::sequential, .batch_size = 4, .rank = rank, .world_size = world_size});
        for (const std::int64_t example : examples_of(sampler, 0, sampler.num_batches()))
          seen.push_back(example);
      }
      std::sort(seen.begin(), seen.end());
      std::vector<std::int64_t> expected(static_cast<std::size_t>(examples));
      std::iota(expected.begin(), expected.end(), 0);
      EXPECT_EQ(seen, expected) << world_size << " ranks, " << examples << " examples";
    }
  }
}

TEST(Sampler, ErrorsNameTheOption) {
  const auto error = [](std::int64_t examples, const SamplerOptions& options) {
    return error_of([&] { Sampler(examples, options); });
  };
  EXPECT_EQ(error(0, {}), "[sampler] no examples");
  EXPECT_EQ(error(1, {.batch_size = 0}), "[sampler] batch_size 0 must be positive");
  EXPECT_EQ(error(1, {.world_size = 0}), "[sampler] world_size 0 must be positive");
  EXPECT_EQ(error(1, {.rank = 2, .world_size = 2}), "[sampler] rank 2: expected [0, 2)");
  EXPECT_EQ(error_of([] { Sampler(1, {}).batch_size(-1); }),
            "[sampler] batch -1: there are 9223372036854775807");
}

// Batch k holds k; batch `bad` cannot be made.
class FakeSource final : public BatchSource {
 public:
  explicit FakeSource(std::int64_t bad = -1, json settings = {{"seed", 1}, {"batch_size", 12}})
      : bad_(bad), settings_(std::move(settings)) {}
  Batch batch(std::int64_t k) const override {
    ++made;
    ERGON_CHECK(k != bad_, "batch {} is bad", k);
    return {full({2}, static_cast<double>(k)), full({1}, static_cast<double>(-k))};
  }
  std::int64_t num_batches() const override { return 100; }
  double epochs(std::int64_t k) const override { return static_cast<double>(k) / 10; }
  json settings() const override { return settings_; }

  mutable std::atomic<int> made = 0;

 private:
  std::int64_t bad_;
  json settings_;
};

double value_of(const Batch& batch) {
  EXPECT_EQ(batch.targets.item<double>(), -batch.inputs.select(0, 1).item<double>());
  return batch.inputs.select(0, 0).item<double>();
}

TEST(Loader, GivesTheSameBatchesWhateverThePrefetch) {
  for (const int prefetch : {0, 1, 2, 16}) {
    Loader loader(std::make_shared<FakeSource>(), prefetch);
    for (int k = 0; k < 50; ++k) {
      EXPECT_EQ(loader.position(), k);
      EXPECT_EQ(value_of(loader.next()), k);
    }
    EXPECT_DOUBLE_EQ(loader.epochs(), 5);
    loader.seek(7);
    EXPECT_EQ(value_of(loader.next()), 7);
    loader.seek(70);
    EXPECT_EQ(value_of(loader.next()), 70);
  }
}

TEST(Loader, MakesNoMoreThanItMay) {
  const auto source = std::make_shared<FakeSource>();
  Loader loader(source, 3);
  loader.next();
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(5);
  while (source->made < 5 && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(source->made, 5);  // one handed out, three in the queue, one waiting for room
}

TEST(Loader, ErrorsArriveAtTheirBatch) {
  for (const int prefetch : {0, 1, 4}) {
    Loader loader(std::make_shared<FakeSource>(3), prefetch);
    for (int k = 0; k < 3; ++k) EXPECT_EQ(value_of(loader.next()), k);
    for (int again = 0; again < 3; ++again) {
      EXPECT_EQ(error_of([&] { loader.next(); }), "batch 3 is bad");
      EXPECT_EQ(loader.position(), 3);
    }
    loader.seek(4);
    EXPECT_EQ(value_of(loader.next()), 4);
  }
}

TEST(Loader, CanBeDestroyedAtAnyMoment) {
  for (int consumed = 0; consumed < 20; ++consumed) {
    Loader loader(std::make_shared<FakeSource>(10), 4);
    for (int k = 0; k < consumed && k < 10; ++k) loader.next();
  }
}

TEST(Loader, ResumesFromItsState) {
  json state;
  {
    Loader loader(std::make_shared<FakeSource>());
    for (int k = 0; k < 20; ++k) loader.next();
    state = json::parse(loader.state().dump());
  }
  for (const int prefetch : {0, 2}) {
    Loader loader(std::make_shared<FakeSource>(), prefetch);
    loader.next();
    loader.set_state(state);
    EXPECT_EQ(loader.position(), 20);
    EXPECT_EQ(value_of(loader.next()), 20);
  }
}

TEST(Loader, AStateOfAnotherRunIsRefused) {
  Loader loader(std::make_shared<FakeSource>());
  loader.next();
  const auto error = [&](const json& state) { return error_of([&] { loader.set_state(state); }); };
  EXPECT_EQ(error(Loader(std::make_shared<FakeSource>(-1, json{{"seed", 1}, {"batch_size", 8}})).state()),
            "[loader] saved with batch_size '8', this run has '12'");
  EXPECT_EQ(error({{"position", 1}, {"settings", {{"seed", 1}}}}),
            "[loader] the saved settings have no \"batch_size\"");
  EXPECT_EQ(error(json::array()), "[loader] the saved state has no \"position\"");
  EXPECT_EQ(error({{"position", 1}}), "[loader] the saved state has no \"settings\"");
  EXPECT_EQ(error({{"position", 1}, {"settings", 3}}),
            "[loader] the saved settings must be an object, got 'number'");
  EXPECT_EQ(error({{"position", -1}, {"settings", json::object()}}),
            "[loader] the saved position must be a non-negative integer, got '-1'");
  EXPECT_EQ(value_of(loader.next()), 1);  // as if nothing had happened
  EXPECT_EQ(error_of([&] { loader.seek(-1); }), "[loader] position -1 must not be negative");
  EXPECT_EQ(error_of([] { Loader(nullptr); }), "[loader] no source");
  EXPECT_EQ(error_of([] { Loader(std::make_shared<FakeSource>(), -1); }),
            "[loader] prefetch -1 must not be negative");
}

}  // namespace
}  // namespace ergon::data
