// Attention, forward and backward: milliseconds, and the memory that the process takes beyond operands,
// result and gradients.
//
//   attention_bench --batch 1 --seqlen 2048 --heads 12 --head-dim 64
//
// --composed computes the same from matrix products and a softmax. The last line on standard output is one
// JSON object, for tests/peers/attention_peer.py.

#include <algorithm>
#include <chrono>
#include <cmath>
#include <iostream>
#include <limits>

#include <CLI/CLI.hpp>
#include <nlohmann/json.hpp>

#include "core/autograd.h"
#include "ops/arithmetic.h"
#include "ops/attention.h"
#include "ops/matmul.h"
#include "ops/softmax.h"
#include "tests/bench/peak_memory.h"

using namespace ergon;

namespace {

// softmax(q k^T / sqrt(head_dim) + mask) v
Tensor composed(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& mask) {
  const auto heads_first = [](const Tensor& t) { return t.transpose(1, 2); };
  const Tensor scores = ops::matmul(heads_first(q), heads_first(k).transpose(-2, -1))
                        * (1 / std::sqrt(static_cast<double>(q.size(3))));
  return ops::matmul(ops::softmax(scores + mask, -1), heads_first(v)).transpose(1, 2);
}

Tensor causal_mask(std::int64_t seqlen) {
  Tensor mask = zeros({seqlen, seqlen});
  for (std::int64_t i = 0; i + 1 < seqlen; ++i) {
    mask[i].slice(0, i + 1, seqlen).fill_(-std::numeric_limits<double>::infinity());
  }
  return mask;
}

template <class F>
double milliseconds(F&& f) {
  const auto start = std::chrono::steady_clock::now();
  f();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - start).count();
}

}  // namespace

int main(int argc, char** argv) {
  std::int64_t batch = 1, seqlen = 2048, heads = 12, heads_kv = 0, head_dim = 64, repetitions = 10;
  bool full = false, use_composed = false;
  std::string dtype = "f32";
  CLI::App app{"Attention benchmark"};
  app.add_option("--batch", batch);
  app.add_option("--seqlen", seqlen);
  app.add_option("--heads", heads);
  app.add_option("--heads-kv", heads_kv, "0: as many as --heads");
  app.add_option("--head-dim", head_dim);
  app.add_option("--dtype", dtype, "f32, bf16 or f16");
  app.add_option("--repetitions", repetitions);
  app.add_flag("--full", full, "Not causal");
  app.add_flag("--composed", use_composed);
  CLI11_PARSE(app, argc, argv);

  const DType type = dtype == "bf16" ? DType::bf16 : dtype == "f16" ? DType::f16 : DType::f32;
  std::vector<Tensor> in;  // q, k, v
  for (const std::int64_t h : {heads, heads_kv == 0 ? heads : heads_kv, heads_kv == 0 ? heads : heads_kv}) {
    in.push_back(randn({batch, seqlen, h, head_dim}).to(type).set_requires_grad(true));
  }
  const Tensor dout = randn({batch, seqlen, heads, head_dim}).to(type);
  const Tensor mask = use_composed && !full ? causal_mask(seqlen) : zeros({1});
  const double operands = bench::peak_rss_mib()
                          + static_cast<double>(in[0].nbytes() + in[1].nbytes() * 2 + dout.nbytes()) / 0x1p20;

  std::vector<double> forward, both;
  for (std::int64_t i = 0; i <= repetitions; ++i) {
    Tensor o;
    const double first = milliseconds([&] {
      o = use_composed ? composed(in[0], in[1], in[2], mask)
                       : ops::scaled_dot_product_attention(in[0], in[1], in[2], {.causal = !full});
    });
    const double second = milliseconds([&] { o.backward(dout); });
    for (Tensor& t : in) t.zero_grad();
    if (i == 0) continue;  // warm-up
    forward.push_back(first);
    both.push_back(first + second);
  }
  const auto median = [](std::vector<double> values) {
    std::sort(values.begin(), values.end());
    return values[values.size() / 2];
  };
  const nlohmann::json report{{"forward_ms", median(forward)},
                              {"forward_backward_ms", median(both)},
                              {"extra_mib", bench::peak_rss_mib() - operands}};
  std::cout << report.dump() << '\n';
}
