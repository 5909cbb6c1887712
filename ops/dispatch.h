#pragma once

// The choice of device: the one place an op has for it.

#include "core/op_scope.h"
#include "core/stream.h"

// kernels::cpu::function(arguments) or kernels::cuda::function(arguments), after where `device` says the
// operands lie:
//   ERGON_KERNEL(x.device(), dropout, {.numel = x.numel(), ...});
#ifdef ERGON_CUDA
#define ERGON_KERNEL(device, function, ...)                               \
  do {                                                                    \
    const ::ergon::Device ergon_kernel_device = (device);                 \
    if (ergon_kernel_device.is_cpu()) {                                   \
      ::ergon::kernels::cpu::function(__VA_ARGS__);                       \
    } else {                                                              \
      const ::ergon::DeviceGuard ergon_kernel_guard(ergon_kernel_device); \
      ::ergon::kernels::cuda::function(__VA_ARGS__);                      \
    }                                                                     \
  } while (false)
#else
// Without CUDA there is no tensor on another device.
#define ERGON_KERNEL(device, function, ...) ((void)(device), ::ergon::kernels::cpu::function(__VA_ARGS__))
#endif
