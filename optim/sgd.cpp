#include "optim/sgd.h"

#include <cmath>

#include "ops/dispatch.h"

namespace ergon::optim {
namespace {

std::vector<std::string> state_names(const SGDOptions& o) {
  ERGON_CHECK(o.lr >= 0 && std::isfinite(o.lr), "[SGD] lr is {}: expected 0 or more", o.lr);
  ERGON_CHECK(o.momentum >= 0, "[SGD] momentum is {}: expected 0 or more", o.momentum);
  ERGON_CHECK(o.weight_decay >= 0, "[SGD] weight_decay is {}: expected 0 or more", o.weight_decay);
  ERGON_CHECK(!o.nesterov || (o.momentum > 0 && o.dampening == 0),
              "[SGD] nesterov with momentum {} and dampening {}: expected momentum and no dampening",
              o.momentum, o.dampening);
  return o.momentum > 0 ? std::vector<std::string>{"momentum_buffer"} : std::vector<std::string>{};
}

}  // namespace

SGD::SGD(std::vector<ParamGroup> groups, const SGDOptions& options)
    : Optimizer("SGD", std::move(groups), options.lr, options.weight_decay, state_names(options),
                storage_of(options)),
      options_(options) {}

SGD::SGD(const NamedTensors& params, const SGDOptions& options)
    : SGD(std::vector<ParamGroup>{{.params = params}}, options) {}

void SGD::update(Device device, const kernels::OptimizerStep& step) {
  ERGON_KERNEL(
      device, sgd_step, step,
      {.momentum = options_.momentum, .dampening = options_.dampening, .nesterov = options_.nesterov});
}

}  // namespace ergon::optim
