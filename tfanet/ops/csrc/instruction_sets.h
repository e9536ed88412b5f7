// The instruction sets that a kernel is compiled for. `TFANET_AVX2` says that there are two; code between
// TFANET_FOR_AVX2 and TFANET_END_AVX2 is compiled for AVX2 and FMA.

#pragma once

#define TFANET_INLINE static inline __attribute__((always_inline))

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(TFANET_BASELINE)
#define TFANET_AVX2
#endif

namespace tfanet {

inline bool has_avx2() {
#ifdef TFANET_AVX2
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

}  // namespace tfanet
