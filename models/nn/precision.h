#pragma once

// Module::precision by names, as --keep-fp32 gives them.

#include <string>
#include <string_view>
#include <vector>

#include "models/nn/module.h"

namespace ergon::nn {

// Gives the modules below `root` that one of the comma-separated `patterns` names, and all below them,
// `dtype` as their precision. A pattern names whole parts of a module's name, where * stands for anything and
// ? for one character: "ln_f" is transformer.ln_f, "h.*.mlp" the MLP of every block, "h.1" one block. Returns
// the names found. Throws Error listing the names there are if a pattern finds none.
std::vector<std::string> set_precision(Module& root, std::string_view patterns, DType dtype);

}  // namespace ergon::nn
