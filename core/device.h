#pragma once

// Where a tensor lives.

#include <cstdint>
#include <string>
#include <string_view>

namespace ergon {

enum class DeviceType : std::uint8_t { cpu, cuda };

struct Device {
  DeviceType type = DeviceType::cpu;
  int index = 0;

  static constexpr Device cpu() { return {DeviceType::cpu, 0}; }
  static constexpr Device cuda(int index = 0) { return {DeviceType::cuda, index}; }
  // "cpu", "cuda" or "cuda:N"; throws Error for anything else.
  static Device parse(std::string_view name);

  constexpr bool is_cpu() const { return type == DeviceType::cpu; }
  constexpr bool is_cuda() const { return type == DeviceType::cuda; }
  friend constexpr bool operator==(const Device&, const Device&) = default;
};

// "cpu" or "cuda:N".
std::string to_string(Device device);

// What the device calls itself: "NVIDIA A100-SXM4-80GB"; of the CPU its number of threads: "2 threads".
std::string device_name(Device device);

// How many devices of a type this process can use; of CUDA devices 0 where the build or the machine has none.
int device_count(DeviceType type);

// Throws Error that says why, unless this build and this machine can hold tensors on `device`.
void check_available(Device device);

}  // namespace ergon
