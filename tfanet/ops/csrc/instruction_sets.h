// The instruction sets that a kernel is compiled for: the compiler's own, and where `TFANET_AVX2` is defined
// AVX2 with FMA and AVX-512 besides.

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

inline bool has_avx512() {
#ifdef TFANET_AVX2
  return has_avx2() && __builtin_cpu_supports("avx512f");
#else
  return false;
#endif
}

}  // namespace tfanet
