#include "kernels/providers.h"

#include <atomic>
#include <cstdlib>
#include <string_view>

#include "core/error.h"

namespace ergon::kernels {
namespace {

// One of two names, the first by default.
template <class Provider>
class Choice {
 public:
  Choice(const char* variable, const char* first, const char* second)
      : variable_(variable), names_{first, second} {}

  Provider get() {
    if (const int value = value_; value >= 0) return static_cast<Provider>(value);
    const char* text = std::getenv(variable_);
    const std::string_view name = text == nullptr || *text == '\0' ? names_[0] : text;
    ERGON_CHECK(name == names_[0] || name == names_[1], "{}={}: expected {} or {}", variable_, name,
                names_[0], names_[1]);
    value_ = name == names_[1] ? 1 : 0;
    return static_cast<Provider>(value_.load());
  }
  void set(Provider provider) { value_ = static_cast<int>(provider); }

 private:
  const char* variable_;
  std::string_view names_[2];
  std::atomic<int> value_ = -1;  // not asked for yet
};

Choice<GemmProvider> gemm_choice("ERGON_GEMM", "ergon", "cublaslt");
Choice<ConvProvider> conv_choice("ERGON_CONV", "ergon", "cudnn");
Choice<AttentionProvider> attention_choice("ERGON_ATTENTION", "ergon", "cudnn");

}  // namespace

GemmProvider gemm_provider() { return gemm_choice.get(); }
void set_gemm_provider(GemmProvider provider) { gemm_choice.set(provider); }
ConvProvider conv_provider() { return conv_choice.get(); }
void set_conv_provider(ConvProvider provider) { conv_choice.set(provider); }
AttentionProvider attention_provider() { return attention_choice.get(); }
void set_attention_provider(AttentionProvider provider) { attention_choice.set(provider); }

}  // namespace ergon::kernels
