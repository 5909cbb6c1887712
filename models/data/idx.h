#pragma once

// IDX files, the format of MNIST: magic 00 00 <type> <dimensions>, big-endian sizes, row-major data.

#include <cstddef>
#include <filesystem>
#include <span>
#include <string_view>

#include "core/tensor.h"

namespace ergon::data {

// The array of unsigned bytes (type 08) in a file, plain or gzip-compressed: u8 of the file's shape, at most
// four dimensions. Throws Error "[idx] <path>: ..." that says expected and actual for anything else, a
// truncated or too long file included.
Tensor read_idx(const std::filesystem::path& path);

// The same from memory; `name` stands for the path.
Tensor parse_idx(std::span<const std::byte> bytes, std::string_view name);

}  // namespace ergon::data
