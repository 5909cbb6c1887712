#include "module.h"

#include <atomic>
#include <cstdlib>
#include <map>
#include <mutex>

#include <cxxabi.h>

#include "exec/executor.h"
#include "exec/races.h"
#include "settings.h"

namespace simgpu {
namespace {

class LoadedKernel final : public Kernel {
 public:
  LoadedKernel(const ModuleText& module, const FunctionText& text) : module_(module), text_(text) {
    display_name_ = demangled(text.name);
    for (const ParamDeclaration& p : text.params) {
      param_bytes_ = (param_bytes_ + p.align - 1) / p.align * p.align;
      params_.push_back({p.name, param_bytes_, p.bytes, p.align});
      param_bytes_ += p.bytes;
    }
  }
  const std::string& name() const override { return text_.name; }
  const std::string& display_name() const override { return display_name_; }
  std::span<const KernelParam> params() const override { return params_; }
  u32 param_bytes() const override { return param_bytes_; }
  u32 static_shared_bytes() const override { return program().shared_bytes; }
  u32 local_bytes() const override { return program().local_bytes; }
  u32 max_threads_per_block() const override { return text_.max_threads; }
  const Program& program() const {
    const std::lock_guard lock(mutex_);
    if (program_ == nullptr) program_ = decode_kernel(module_, text_);
    return *program_;
  }

 private:
  const ModuleText& module_;
  const FunctionText& text_;
  std::string display_name_;
  std::vector<KernelParam> params_;
  u32 param_bytes_ = 0;
  mutable std::mutex mutex_;
  mutable std::unique_ptr<Program> program_;
};

class LoadedModule final : public Module {
 public:
  LoadedModule(std::string ptx, int device) : text_(scan_module(std::move(ptx), device)) {
    for (const auto& [name, function] : text_->functions) {
      if (function.entry) kernels_.emplace(name, std::make_unique<LoadedKernel>(*text_, function));
    }
  }
  Kernel* find_kernel(std::string_view name) override {
    const auto found = kernels_.find(name);
    return found == kernels_.end() ? nullptr : found->second.get();
  }
  const Variable* find_variable(std::string_view name) override {
    const auto found = text_->variables.find(name);
    return found == text_->variables.end() ? nullptr : &found->second;
  }
  std::string_view target() const override { return text_->target; }

 private:
  std::unique_ptr<ModuleText> text_;
  std::map<std::string, std::unique_ptr<LoadedKernel>, std::less<>> kernels_;
};

}  // namespace

std::string demangled(const std::string& name) {
  int status = 0;
  char* const plain = abi::__cxa_demangle(name.c_str(), nullptr, nullptr, &status);
  const std::string text = plain != nullptr ? plain : name;
  std::free(plain);
  return text;
}

std::unique_ptr<Module> parse_module(std::string ptx, int device) {
  return std::make_unique<LoadedModule>(std::move(ptx), device);
}

LaunchCounters run_kernel(Kernel& kernel, const LaunchConfig& config, std::span<const u8> params) {
  static std::atomic<u32> launches{0};
  Launch launch;
  launch.program = &static_cast<LoadedKernel&>(kernel).program();
  launch.name = &kernel.display_name();
  launch.config = config;
  launch.params = params;
  launch.id = ++launches;
  if (settings().check_global_races) begin_global_races(launch.id);
  return execute(launch);
}

}  // namespace simgpu
