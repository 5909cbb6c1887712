// The build without CUDA: there is no CUDA device, and the CPU's only stream is always idle.

#include "core/cuda_backend.h"
#include "core/error.h"

namespace ergon {
namespace detail::cuda {

int device_count() { return 0; }
std::string why_unavailable() { return "this build of Ergon has no CUDA support"; }

std::string device_name(int) { ERGON_FAIL("{}", why_unavailable()); }

// No tensor lies on a device, so nothing of what follows is reached.
void* allocate(const Stream&, std::int64_t) { ERGON_FAIL("{}", why_unavailable()); }
void deallocate(const Stream&, void*, std::span<const Stream>) noexcept {}
std::int64_t reserved_bytes(int) { return 0; }
void trim(int) {}
DeviceMemory device_memory(int) { return {}; }
void* allocate_pinned(std::int64_t) { ERGON_FAIL("page-locked memory: {}", why_unavailable()); }
void free_pinned(void*) noexcept {}
void copy_across(const Tensor&, const Tensor&, bool) { ERGON_FAIL("{}", why_unavailable()); }
void copy(const Tensor&, const Tensor&) { ERGON_FAIL("{}", why_unavailable()); }
void accumulate(const Tensor&, const Tensor&) { ERGON_FAIL("{}", why_unavailable()); }
void fill(const Tensor&, double) { ERGON_FAIL("{}", why_unavailable()); }

void push_range(const char*) {}
void pop_range() {}

}  // namespace detail::cuda

Stream Stream::create(Device device) {
  check_available(device);
  return {};
}
bool Stream::idle() const { return true; }
void Stream::synchronize() const {}
void Stream::wait(const Event&) const {}
void Event::record(const Stream&) {}
bool Event::passed() const { return true; }
void Event::synchronize() const {}
float Event::elapsed_ms(const Event&) const {
  ERGON_FAIL("[elapsed_ms] {}", detail::cuda::why_unavailable());
}
Stream current_stream(Device) { return {}; }
StreamGuard::StreamGuard(const Stream& stream) : previous_(stream) {}
StreamGuard::~StreamGuard() = default;
Stream copy_stream(Device device) { return Stream::create(device); }
DeviceGuard::DeviceGuard(Device) {}
DeviceGuard::~DeviceGuard() = default;
void synchronize(Device device) { check_available(device); }

}  // namespace ergon
