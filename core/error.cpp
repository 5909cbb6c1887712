#include "core/error.h"

namespace ergon::detail {

void throw_error(std::string message) { throw Error(message); }

void throw_internal(const char* file, int line, const char* condition) {
  throw Error(
      fmt::format("internal error at {}:{}: {} does not hold; please report it", file, line, condition));
}

}  // namespace ergon::detail
