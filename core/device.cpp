#include "core/device.h"

#include <charconv>

#include "core/cuda_backend.h"
#include "core/error.h"
#include "core/parallel.h"

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

int device_count(DeviceType type) { return type == DeviceType::cpu ? 1 : detail::cuda::device_count(); }

std::string device_name(Device device) {
  check_available(device);
  return device.is_cpu() ? fmt::format("{} threads", num_threads()) : detail::cuda::device_name(device.index);
}

void check_available(Device device) {
  if (device.is_cpu()) return;
  const int count = device_count(DeviceType::cuda);
  ERGON_CHECK(count > 0, "device {} is not available: {}", to_string(device),
              detail::cuda::why_unavailable());
  ERGON_CHECK(device.index >= 0 && device.index < count,
              "device {} is not available: there {} {} CUDA device{}", to_string(device),
              count == 1 ? "is" : "are", count, count == 1 ? "" : "s");
}

}  // namespace ergon
