// `float16`: IEEE 754 binary16, rounded to nearest, ties to even; a NaN keeps its sign and upper bits and is quieted,
// as processors do that convert by themselves. The oracle is numpy/float16.py. Values are moved as integers, so that no
// processor touches a NaN.
#pragma once
#include "tl.h"
#if TL_X86
#include <cpuid.h>
#endif

TL_INLINE tl_u16 tl_float16_code(tl_u32 bits) {
    tl_u32 size = bits & 0x7fffffffu;
    // From 2^-14: 10 bits of the fraction are kept, the rest is rounded, and 112 is the difference of the biases.
    tl_u32 normal = ((size + 0xfffu + ((size >> 13) & 1)) >> 13) - (112u << 10);
    normal = normal < 0x7c00u ? normal : 0x7c00u;
    // Below: even steps of 2^-24, which the addition leaves in the low bits of the sum.
    tl_u32 subnormal = (tl_u32)tl_bits(tl_float((tl_i32)size) + 0.5f) & 0x7ffu;
    tl_u32 code = size < 0x38800000u ? subnormal : normal;
    code = size > 0x7f800000u ? 0x7e00u | (size >> 13 & 0x3ffu) : code;
    return (tl_u16)(code | (bits >> 16 & 0x8000u));
}

// Bits of the float32 that a code means. Below 2^-14 it is made as if it had a leading one, which is then taken off; no
// operation is conditional, so that compilers vectorise.
TL_INLINE tl_u32 tl_float16_value(tl_u16 code) {
    tl_u32 size = code & 0x7fffu, small = size < 0x400u ? 0x38800000u : 0u;
    tl_u32 value = (tl_u32)tl_bits(tl_float((tl_i32)((size << 13) + (112u << 23) + (small & 0x800000u))) -
                                   tl_float((tl_i32)small));
    value = size < 0x7c00u ? value : (size << 13) + (224u << 23) + (size > 0x7c00u && size < 0x7e00u ? 0x400000u : 0u);
    return value | ((tl_u32)(code & 0x8000u) << 16);
}

#if TL_X86
// F16C has a bit of its own beside AVX2, and not every compiler can ask for it by name.
static tl_u32 tl_float16_ask() {
    tl_u32 a, b, c = 0, d;
    return __get_cpuid(1, &a, &b, &c, &d) ? c >> 29 & 1u : 0u;
}
static const tl_u32 tl_float16_f16c = tl_float16_ask();

// What the processor converts by itself, in whole registers; each says how many values that were.
__attribute__((noinline, target("avx512f"))) static tl_i64 tl_float16_encode_16(const tl_u32 *x, tl_u16 *out, tl_i64 num) {
    tl_i64 i = 0;
    for (; i + 16 <= num; i += 16)
        _mm256_storeu_si256((__m256i *)(out + i), _mm512_maskz_cvtps_ph(0xffff, _mm512_loadu_ps(x + i), 0));
    return i;
}

__attribute__((noinline, target("avx512f"))) static tl_i64 tl_float16_decode_16(const tl_u16 *data, tl_u32 *x, tl_i64 num) {
    tl_i64 i = 0;
    for (; i + 16 <= num; i += 16)
        _mm512_storeu_ps(x + i, _mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i *)(data + i))));
    return i;
}

__attribute__((noinline, target("avx2,f16c"))) static tl_i64 tl_float16_encode_8(const tl_u32 *x, tl_u16 *out, tl_i64 num) {
    tl_i64 i = 0;
    for (; i + 8 <= num; i += 8)
        _mm_storeu_si128((__m128i *)(out + i), _mm256_cvtps_ph(_mm256_loadu_ps((const float *)(x + i)), 0));
    return i;
}

__attribute__((noinline, target("avx2,f16c"))) static tl_i64 tl_float16_decode_8(const tl_u16 *data, tl_u32 *x, tl_i64 num) {
    tl_i64 i = 0;
    for (; i + 8 <= num; i += 8)
        _mm256_storeu_ps((float *)(x + i), _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(data + i))));
    return i;
}
#endif

TL_ENTRY(tl_float16_encode)(const tl_u32 *x, tl_u16 *out, tl_i64 num_values) {
    tl_i64 done = 0;
#if TL_X86
    if (__builtin_cpu_supports("avx512f"))
        done = tl_float16_encode_16(x, out, num_values);
    else if (__builtin_cpu_supports("avx2") && tl_float16_f16c)
        done = tl_float16_encode_8(x, out, num_values);
#endif
    TL_COLS(i, num_values - done) out[done + i] = tl_float16_code(x[done + i]);
}

TL_ENTRY(tl_float16_decode)(const tl_u16 *data, tl_u32 *x, tl_i64 num_values) {
    tl_i64 done = 0;
#if TL_X86
    if (__builtin_cpu_supports("avx512f"))
        done = tl_float16_decode_16(data, x, num_values);
    else if (__builtin_cpu_supports("avx2") && tl_float16_f16c)
        done = tl_float16_decode_8(data, x, num_values);
#endif
    TL_COLS(i, num_values - done) x[done + i] = tl_float16_value(data[done + i]);
}
