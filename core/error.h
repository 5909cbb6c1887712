#pragma once

// Errors and the two kinds of check: ERGON_CHECK for a user's mistake, ERGON_INTERNAL_ASSERT for a bug of
// ours.

#include <stdexcept>
#include <string>

#include <spdlog/fmt/fmt.h>

namespace ergon {

// Every error that Ergon throws. what() is one line: it names the thing, the expected and the actual.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

// No memory left on a device; the message says how much was asked, in use, and by what.
class OutOfMemoryError : public Error {
 public:
  using Error::Error;
};

namespace detail {
[[noreturn]] void throw_error(std::string message);
[[noreturn]] void throw_internal(const char* file, int line, const char* condition);
}  // namespace detail

}  // namespace ergon

// Throws Error with a message formatted by {fmt}.
#define ERGON_FAIL(...) ::ergon::detail::throw_error(::fmt::format(__VA_ARGS__))

// ERGON_CHECK(condition, format, arguments...): a user's mistake.
#define ERGON_CHECK(condition, ...)  \
  do {                               \
    if (!(condition)) [[unlikely]] { \
      ERGON_FAIL(__VA_ARGS__);       \
    }                                \
  } while (false)

#define ERGON_INTERNAL_ASSERT(condition)                               \
  do {                                                                 \
    if (!(condition)) [[unlikely]] {                                   \
      ::ergon::detail::throw_internal(__FILE__, __LINE__, #condition); \
    }                                                                  \
  } while (false)
