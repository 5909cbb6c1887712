#pragma once

// Names of dtypes in safetensors files.

#include <string_view>

#include "core/dtype.h"

namespace ergon::io {

// "F32", "BF16", ..., "BOOL".
std::string_view safetensors_name(DType dtype);

// The inverse; throws Error "<where> has dtype ...", listing the supported ones.
DType parse_safetensors_dtype(std::string_view name, std::string_view where);

}  // namespace ergon::io
