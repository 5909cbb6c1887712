#pragma once

// A number given to an op in place of a tensor. Whole numbers stay whole: x + 1 keeps the dtype of an integer
// tensor x, x + 1.0 does not.

#include <concepts>
#include <cstdint>

namespace ergon {

class Scalar {
 public:
  template <std::integral T>
  Scalar(T value) : integer_(static_cast<std::int64_t>(value)), real_(static_cast<double>(value)) {}
  template <std::floating_point T>
  Scalar(T value) : real_(static_cast<double>(value)), is_floating_point_(true) {}

  bool is_floating_point() const { return is_floating_point_; }
  double real() const { return real_; }
  std::int64_t integer() const { return integer_; }  // of a whole number

 private:
  std::int64_t integer_ = 0;
  double real_ = 0;
  bool is_floating_point_ = false;
};

}  // namespace ergon
