#pragma once

// Whose kernels compute matrix products, convolutions and attention on CUDA: Ergon's own, or NVIDIA's
// libraries, which are loaded when the first of them asks for them.

#include <cstdint>

namespace ergon::kernels {

enum class GemmProvider : std::uint8_t { ergon, cublaslt };
enum class ConvProvider : std::uint8_t { ergon, cudnn };
enum class AttentionProvider : std::uint8_t { ergon, cudnn };

// For the process. At the start what ERGON_GEMM (ergon, cublaslt), ERGON_CONV (ergon, cudnn) and
// ERGON_ATTENTION (ergon, cudnn) of the environment say, else ergon; Error for another value. A library that
// cannot be loaded is an Error of the op that needs it; what a library has no kernel for, Ergon computes.
GemmProvider gemm_provider();
void set_gemm_provider(GemmProvider provider);
ConvProvider conv_provider();
void set_conv_provider(ConvProvider provider);
AttentionProvider attention_provider();
void set_attention_provider(AttentionProvider provider);

}  // namespace ergon::kernels
