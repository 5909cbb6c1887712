#pragma once

// The choice of device: the one place an op has for it.

#include "core/op_scope.h"
#include "core/stream.h"

// kernels::cpu::function(arguments) or kernels::cuda::function(arguments), after where `device` says the
// operands lie; an expression with the function's result:
//   ERGON_KERNEL(x.device(), dropout, {.numel = x.numel(), ...});
#ifdef ERGON_CUDA
#define ERGON_KERNEL(device, function, ...)                                                \
  [&](const ::ergon::Device& ergon_kernel_device) {                                        \
    if (ergon_kernel_device.is_cpu()) return ::ergon::kernels::cpu::function(__VA_ARGS__); \
    const ::ergon::DeviceGuard ergon_kernel_guard(ergon_kernel_device);                    \
    return ::ergon::kernels::cuda::function(__VA_ARGS__);                                  \
  }(device)
#else
// Without CUDA there is no tensor on another device.
#define ERGON_KERNEL(device, function, ...) ((void)(device), ::ergon::kernels::cpu::function(__VA_ARGS__))
#endif
