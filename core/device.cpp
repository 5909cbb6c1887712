#include "core/device.h"

#include <charconv>

#include "core/error.h"

namespace ergon {

Device Device::parse(std::string_view name) {
  if (name == "cpu") return cpu();
  if (name == "cuda") return cuda();
  if (name.starts_with("cuda:")) {
    int index = -1;
    const auto [end, status] = std::from_chars(name.data() + 5, name.data() + name.size(), index);
    if (status == std::errc{} && end == name.data() + name.size() && index >= 0) return cuda(index);
  }
  ERGON_FAIL("unknown device '{}': expected cpu, cuda or cuda:N", name);
}

std::string to_string(Device device) {
  return device.is_cpu() ? "cpu" : fmt::format("cuda:{}", device.index);
}

void check_available(Device device) {
  ERGON_CHECK(device.is_cpu(), "device {} is not available: this build of Ergon has no CUDA support",
              to_string(device));
}

}  // namespace ergon
