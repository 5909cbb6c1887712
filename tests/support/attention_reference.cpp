#include "tests/support/attention_reference.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "core/half.h"

namespace ergon::test {
namespace {

std::size_t at(std::int64_t i) { return static_cast<std::size_t>(i); }

// A row-major matrix whose products run along rows, so that the loops vectorise.
template <class Acc>
struct Matrix {
  std::int64_t rows, cols;
  std::vector<Acc> data;

  Matrix(std::int64_t r, std::int64_t c) : rows(r), cols(c), data(at(r * c)) {}
  Acc* operator[](std::int64_t i) { return data.data() + i * cols; }
  const Acc* operator[](std::int64_t i) const { return data.data() + i * cols; }
  Matrix transposed() const {
    Matrix t(cols, rows);
    for (std::int64_t i = 0; i < rows; ++i)
      for (std::int64_t j = 0; j < cols; ++j) t[j][i] = (*this)[i][j];
    return t;
  }
};

template <class Acc>
Matrix<Acc> operator*(const Matrix<Acc>& a, const Matrix<Acc>& b) {
  Matrix<Acc> c(a.rows, b.cols);
  for (std::int64_t i = 0; i < a.rows; ++i) {
    Acc* sums = c[i];
    for (std::int64_t k = 0; k < a.cols; ++k) {
      const Acc factor = a[i][k];
      const Acc* row = b[k];
      if (factor == 0) continue;
      for (std::int64_t j = 0; j < b.cols; ++j) sums[j] += factor * row[j];
    }
  }
  return c;
}

template <class Acc>
Matrix<Acc> absolute(Matrix<Acc> m) {
  for (Acc& x : m.data) x = std::abs(x);
  return m;
}

// Rows `rows` of head `head` of an operand (rows, heads, head_dim).
template <class Acc>
Matrix<Acc> gather(const std::vector<double>& operand, const std::vector<std::int64_t>& rows,
                   std::int64_t head, std::int64_t heads, std::int64_t head_dim) {
  Matrix<Acc> m(std::ssize(rows), head_dim);
  for (std::int64_t i = 0; i < m.rows; ++i)
    for (std::int64_t d = 0; d < head_dim; ++d)
      m[i][d] = static_cast<Acc>(operand[at((rows[at(i)] * heads + head) * head_dim + d)]);
  return m;
}

template <class Acc>
void scatter_add(const Matrix<Acc>& m, std::vector<double>& operand, const std::vector<std::int64_t>& rows,
                 std::int64_t head, std::int64_t heads) {
  for (std::int64_t i = 0; i < m.rows; ++i)
    for (std::int64_t d = 0; d < m.cols; ++d)
      operand[at((rows[at(i)] * heads + head) * m.cols + d)] += static_cast<double>(m[i][d]);
}

template <class Acc>
class Composed {
 public:
  Composed(const AttentionProblem& problem, DType precision) : p_(problem), precision_(precision) {
    if (p_.options.alibi_slopes.defined()) slopes_ = p_.options.alibi_slopes.to_vector<double>();
    scale_ =
        static_cast<Acc>(p_.options.softmax_scale.value_or(1 / std::sqrt(static_cast<double>(p_.head_dim))));
    result_.o.resize(p_.q.size());
    result_.dq = result_.dq_by_o = result_.o;
    result_.dk.resize(p_.k.size());
    result_.dv = result_.dk_by_o = result_.dk;
    result_.lse.resize(p_.q.size() / at(p_.head_dim));
  }

  AttentionValues run() {
    for (std::int64_t b = 0; b < std::ssize(p_.items); ++b)
      for (std::int64_t h = 0; h < p_.num_heads; ++h) run_head(b, h);
    for (std::vector<double>* gradient : {&result_.dk, &result_.dv})
      for (double& x : *gradient) x = static_cast<double>(rounded(static_cast<Acc>(x)));
    return std::move(result_);
  }

 private:
  Acc rounded(Acc x) const {
    switch (precision_) {
      case DType::bf16:
        return static_cast<Acc>(static_cast<float>(bf16(static_cast<float>(x))));
      case DType::f16:
        return static_cast<Acc>(static_cast<float>(f16(static_cast<float>(x))));
      default:
        return x;
    }
  }
  Matrix<Acc> rounded(Matrix<Acc> m) const {
    for (Acc& x : m.data) x = rounded(x);
    return m;
  }

  bool sees(std::int64_t i, std::int64_t j, std::int64_t diagonal) const {
    const ops::AttentionOptions& options = p_.options;
    const std::int64_t ahead = j - (i + diagonal);
    return !(options.causal && ahead > 0) && !(options.window_right >= 0 && ahead > options.window_right)
           && !(options.window_left >= 0 && -ahead > options.window_left);
  }

  // 0, or 1 / (1 - p)
  Acc dropout_factor(std::int64_t b, std::int64_t h, std::int64_t i, std::int64_t j) const {
    const double p = p_.options.dropout_p;
    if (p == 0) return 1;
    const auto word = static_cast<std::uint64_t>(
        ((b * p_.num_heads + h) * p_.seqlen_q + i) * ((p_.seqlen_k + 3) / 4 * 4) + j);
    const std::uint32_t bits =
        philox4x32(p_.dropout_stream.seed, p_.dropout_stream.offset + word / 4)[word % 4];
    return static_cast<double>(uniform_from_bits(bits)) >= p ? static_cast<Acc>(1 / (1 - p)) : Acc(0);
  }

  void run_head(std::int64_t b, std::int64_t h) {
    const AttentionProblem::Item& item = p_.items[at(b)];
    std::vector<std::int64_t> q_rows(at(item.seqlen_q));
    std::iota(q_rows.begin(), q_rows.end(), item.first_q);
    const std::vector<std::int64_t>& k_rows = item.rows_of_keys;
    const std::int64_t M = item.seqlen_q, N = std::ssize(k_rows), D = p_.head_dim,
                       head_kv = h / (p_.num_heads / p_.num_heads_kv);
    const auto q = gather<Acc>(p_.q, q_rows, h, p_.num_heads, D),
               dout = gather<Acc>(p_.dout, q_rows, h, p_.num_heads, D),
               k = gather<Acc>(p_.k, k_rows, head_kv, p_.num_heads_kv, D),
               v = gather<Acc>(p_.v, k_rows, head_kv, p_.num_heads_kv, D);

    Matrix<Acc> s = q * k.transposed();
    Matrix<Acc> cap_slope(M, N), kept(M, N);
    for (std::int64_t i = 0; i < M; ++i) {
      for (std::int64_t j = 0; j < N; ++j) {
        Acc x = rounded(s[i][j] * scale_);
        cap_slope[i][j] = 1;
        if (const Acc cap = static_cast<Acc>(p_.options.softcap); cap > 0) {
          const Acc t = std::tanh(x / cap);
          cap_slope[i][j] = 1 - t * t;
          x = rounded(cap * t);
        }
        if (!p_.bias.empty())
          x = rounded(
              x
              + static_cast<Acc>(p_.bias[at(((b * p_.num_heads + h) * p_.seqlen_q + i) * p_.seqlen_k + j)]));
        if (!slopes_.empty())
          x = rounded(x - static_cast<Acc>(slopes_[at(h)]) * static_cast<Acc>(std::abs(i + N - M - j)));
        s[i][j] = sees(i, j, N - M) ? x : -std::numeric_limits<Acc>::infinity();
        kept[i][j] = dropout_factor(b, h, i, j);
      }
    }
    Matrix<Acc> probability(M, N), dropped(M, N);
    for (std::int64_t i = 0; i < M; ++i) {
      const Acc max = N == 0 ? -INFINITY : *std::max_element(s[i], s[i] + N);
      Acc sum = 0;
      for (std::int64_t j = 0; j < N; ++j)
        sum += probability[i][j] = max == -INFINITY ? Acc(0) : std::exp(s[i][j] - max);
      for (std::int64_t j = 0; j < N; ++j) {
        probability[i][j] = sum > 0 ? rounded(probability[i][j] / sum) : Acc(0);
        dropped[i][j] = rounded(probability[i][j] * kept[i][j]);
      }
      const std::int64_t rows = std::ssize(result_.lse) / p_.num_heads;
      result_.lse[at(h * rows + q_rows[at(i)])] =
          static_cast<double>(sum > 0 ? max + std::log(sum) : Acc(-INFINITY));
    }
    const Matrix<Acc> o = rounded(dropped * v), terms = dropped * absolute(v);

    Matrix<Acc> ds = rounded(dout * v.transposed());
    Matrix<Acc> by_o(M, N);  // p * sum(|dout| * p |v|)
    for (std::int64_t i = 0; i < M; ++i) {
      Acc delta = 0, magnitude = 0;
      for (std::int64_t j = 0; j < N; ++j)
        delta += probability[i][j] * (ds[i][j] = rounded(ds[i][j] * kept[i][j]));
      for (std::int64_t d = 0; d < D; ++d) magnitude += std::abs(dout[i][d]) * terms[i][d];
      for (std::int64_t j = 0; j < N; ++j) {
        ds[i][j] = rounded(rounded(probability[i][j] * (ds[i][j] - delta)) * cap_slope[i][j] * scale_);
        by_o[i][j] = probability[i][j] * magnitude * scale_;
      }
    }
    scatter_add(o, result_.o, q_rows, h, p_.num_heads);
    scatter_add(rounded(ds * k), result_.dq, q_rows, h, p_.num_heads);
    scatter_add(by_o * absolute(k), result_.dq_by_o, q_rows, h, p_.num_heads);
    scatter_add(ds.transposed() * q, result_.dk, k_rows, head_kv, p_.num_heads_kv);
    scatter_add(by_o.transposed() * absolute(q), result_.dk_by_o, k_rows, head_kv, p_.num_heads_kv);
    scatter_add(dropped.transposed() * dout, result_.dv, k_rows, head_kv, p_.num_heads_kv);
  }

  const AttentionProblem& p_;
  DType precision_;
  Acc scale_;
  std::vector<double> slopes_;
  AttentionValues result_;
};

}  // namespace

std::vector<AttentionProblem::Item> AttentionProblem::dense_items(std::int64_t batch, std::int64_t seqlen_q,
                                                                  std::int64_t seqlen_k) {
  return packed_items(std::vector<std::int64_t>(at(batch), seqlen_q),
                      std::vector<std::int64_t>(at(batch), seqlen_k));
}

std::vector<AttentionProblem::Item> AttentionProblem::packed_items(
    const std::vector<std::int64_t>& seqlens_q, const std::vector<std::int64_t>& seqlens_k) {
  std::vector<Item> items;
  std::int64_t q = 0, k = 0;
  for (std::size_t b = 0; b < seqlens_q.size(); ++b) {
    std::vector<std::int64_t> keys(at(seqlens_k[b]));
    std::iota(keys.begin(), keys.end(), k);
    items.push_back({q, seqlens_q[b], std::move(keys)});
    q += seqlens_q[b], k += seqlens_k[b];
  }
  return items;
}

AttentionValues composed_attention(const AttentionProblem& problem, DType precision) {
  return precision == DType::f64 ? Composed<double>(problem, precision).run()
                                 : Composed<float>(problem, precision).run();
}

AttentionValues exact_attention(const AttentionProblem& problem) {
  return Composed<long double>(problem, DType::f64).run();
}

}  // namespace ergon::test
