#include "optim/adamw.h"

#include <cmath>

#include "ops/dispatch.h"

namespace ergon::optim {
namespace {

const AdamWOptions& checked(const AdamWOptions& o) {
  const auto check = [](const char* name, double value, bool good, const char* expected) {
    ERGON_CHECK(good, "[AdamW] {} is {}: expected {}", name, value, expected);
  };
  check("lr", o.lr, o.lr >= 0 && std::isfinite(o.lr), "0 or more");
  check("beta1", o.beta1, o.beta1 >= 0 && o.beta1 < 1, "a number in [0, 1)");
  check("beta2", o.beta2, o.beta2 >= 0 && o.beta2 < 1, "a number in [0, 1)");
  check("eps", o.eps, o.eps >= 0, "0 or more");
  check("weight_decay", o.weight_decay, o.weight_decay >= 0, "0 or more");
  return o;
}

}  // namespace

AdamW::AdamW(std::vector<ParamGroup> groups, const AdamWOptions& options)
    : Optimizer("AdamW", std::move(groups), checked(options).lr, options.weight_decay,
                {"exp_avg", "exp_avg_sq"}, storage_of(options)),
      options_(options) {}

AdamW::AdamW(const NamedTensors& params, const AdamWOptions& options)
    : AdamW(std::vector<ParamGroup>{{.params = params}}, options) {}

void AdamW::update(Device device, const kernels::OptimizerStep& step) {
  ERGON_KERNEL(device, adamw_step, step,
               {.beta1 = options_.beta1, .beta2 = options_.beta2, .eps = options_.eps});
}

}  // namespace ergon::optim
