#pragma once

// XXH3-64 checksums: they find damage, not malice.

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

struct XXH3_state_s;

namespace ergon::io {

// The checksum of a stream of bytes.
class Checksum {
 public:
  Checksum();
  void update(const void* data, std::size_t bytes);
  std::uint64_t value() const;

 private:
  struct Free {
    void operator()(XXH3_state_s* state) const;
  };
  std::unique_ptr<XXH3_state_s, Free> state_;
};

std::uint64_t checksum(const void* data, std::size_t bytes);

// Sixteen hexadecimal digits.
std::string to_hex(std::uint64_t checksum);

}  // namespace ergon::io
