// The instruction sets that a kernel is compiled for (`each_set.inc`): the compiler's default, and if
// `TFANET_AVX2` is defined also AVX2 with FMA, and AVX-512. FASTEST(name) is the function of that name for the
// best of them that this processor has.

#pragma once

#define TFANET_INLINE static inline __attribute__((always_inline))

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(TFANET_BASELINE)
#define TFANET_AVX2
#define FASTEST(name) (tfanet::has_avx512() ? avx512::name : tfanet::has_avx2() ? avx2::name : baseline::name)

namespace tfanet {

inline bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

inline bool has_avx512() { return has_avx2() && __builtin_cpu_supports("avx512f"); }

}  // namespace tfanet
#else
#define FASTEST(name) baseline::name
#endif
