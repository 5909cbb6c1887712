// Tensors as text.

#include <ostream>

#include "core/autograd.h"
#include "core/tensor.h"

namespace ergon {
namespace {

constexpr std::int64_t kSummarizeAbove = 1000;  // elements
constexpr std::int64_t kEdge = 3;               // shown at each end of a shortened dimension

std::string format_element(const Tensor& scalar) {
  if (scalar.dtype() == DType::boolean) return scalar.item<bool>() ? "true" : "false";
  return is_floating_point(scalar.dtype()) ? fmt::format("{:.6g}", scalar.item<double>())
                                           : fmt::format("{}", scalar.item<std::int64_t>());
}

void append(std::string& text, const Tensor& tensor, bool summarize, int indent) {
  if (tensor.dim() == 0) {
    text += format_element(tensor);
    return;
  }
  text += '[';
  const std::int64_t size = tensor.size(0);
  for (std::int64_t i = 0; i < size; ++i) {
    if (i > 0)
      text += tensor.dim() > 1 ? ",\n" + std::string(static_cast<std::size_t>(indent + 1), ' ') : ", ";
    if (summarize && size > 2 * kEdge && i == kEdge) {
      text += "..., ";
      i = size - kEdge;
    }
    append(text, tensor.select(0, i), summarize, indent + 1);
  }
  text += ']';
}

}  // namespace

std::string to_string(const Tensor& tensor) {
  if (!tensor.defined()) return "Tensor(undefined)";
  NoGradGuard no_grad;
  std::string text = fmt::format("Tensor(shape={}, dtype={}, device={}", tensor.shape(),
                                 name_of(tensor.dtype()), to_string(tensor.device()));
  if (tensor.requires_grad()) text += ", requires_grad=true";
  text += ")\n";
  append(text, tensor.to(Device::cpu()), tensor.numel() > kSummarizeAbove, 0);
  return text;
}

std::ostream& operator<<(std::ostream& stream, const Tensor& tensor) { return stream << to_string(tensor); }

}  // namespace ergon
