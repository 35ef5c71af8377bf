// A bit per value from a comparison, first value in the most significant bit: `bitplane`, and the bitmap of
// `sparse_bitmap`, on a CPU and in whole blocks of 64 values.
#pragma once
#include "tl.h"
#if !TL_GPU

enum tl_bits_test {
    TL_BITS_SIGN,     // x >= 0; a NaN is told
    TL_BITS_NONZERO,  // neither +0 nor -0, so also NaN
};

// A compare yields a mask where the processor has one, with its first value in the lowest bit, so the bits of each byte
// change places. Every function returns 1 if TL_BITS_SIGN met a NaN.
#if TL_X86
TL_INLINE tl_u64 tl_reverse_in_bytes(tl_u64 x) {
    x = (x >> 1 & 0x5555555555555555ull) | (x & 0x5555555555555555ull) << 1;
    x = (x >> 2 & 0x3333333333333333ull) | (x & 0x3333333333333333ull) << 2;
    return (x >> 4 & 0x0f0f0f0f0f0f0f0full) | (x & 0x0f0f0f0f0f0f0f0full) << 4;
}

template <tl_bits_test TEST>
static inline tl_u32 tl_bits_one(float x, tl_u32 *nan) {
    if (TEST == TL_BITS_SIGN) *nan |= x != x;
    return TEST == TL_BITS_SIGN ? x >= 0.0f : x != 0.0f;
}

// Bit i of the result is that of value i of 64.
template <tl_bits_test TEST>
__attribute__((target("avx512f,avx512bw"))) static inline tl_u64 tl_bits_word(const float *x, tl_u32 *nan) {
    const __m512 zero = _mm512_setzero_ps();
    __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
    __m512 c = _mm512_loadu_ps(x + 32), d = _mm512_loadu_ps(x + 48);
    const int test = TEST == TL_BITS_SIGN ? _CMP_GE_OQ : _CMP_NEQ_UQ;
    if (TEST == TL_BITS_SIGN) *nan |= _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q) | _mm512_cmp_ps_mask(c, d, _CMP_UNORD_Q);
    __mmask32 low = _mm512_kunpackw(_mm512_cmp_ps_mask(b, zero, test), _mm512_cmp_ps_mask(a, zero, test));
    __mmask32 high = _mm512_kunpackw(_mm512_cmp_ps_mask(d, zero, test), _mm512_cmp_ps_mask(c, zero, test));
    return _mm512_kunpackd(high, low);
}

// Reads whole lines, which begin `head` values into the row: what a line has too many for a word goes into the next. The
// bits of bytes change places a tile at a time, when its words have long left the queue of stores.
template <tl_bits_test TEST>
__attribute__((noinline, target("avx512f,avx512bw"))) static tl_u32 tl_bits_avx512(const float *x, tl_u8 *out, tl_i64 num) {
    const __m512i nibble = _mm512_set1_epi8(15);
    const __m512i turned_high = _mm512_set4_epi32(0x0f070b03, 0x0d050901, 0x0e060a02, 0x0c040800);
    const __m512i turned_low = _mm512_slli_epi16(turned_high, 4);
    const tl_i64 tile = 64;
    tl_u64 word[tile], carry = 0;
    tl_u32 nan = 0;
    const tl_i64 head = tl_head(x, 64 * num), num_aligned = head ? num - 1 : num;
    for (tl_i64 k = 0; k < head; ++k) carry |= (tl_u64)tl_bits_one<TEST>(x[k], &nan) << k;
    for (tl_i64 first = 0; first < num; first += tile) {
        const tl_i64 num_words = num - first < tile ? num - first : tile;
        for (tl_i64 k = 0; k < num_words; ++k) {
            if (first + k == num_aligned) {  // a line would end beyond the row
                word[k] = tl_bits_word<TEST>(x + 64 * (first + k), &nan);
                break;
            }
            tl_u64 bits = tl_bits_word<TEST>(x + 64 * (first + k) + head, &nan);
            word[k] = bits << head | carry;
            carry = head ? bits >> (64 - head) : 0;
        }
        for (tl_i64 k = 0; k < num_words; k += 8) {
            const __mmask8 some = (__mmask8)((1u << (num_words - k < 8 ? num_words - k : 8)) - 1);
            __m512i bits = _mm512_maskz_loadu_epi64(some, word + k);
            __m512i low = _mm512_and_si512(bits, nibble), high = _mm512_and_si512(_mm512_srli_epi16(bits, 4), nibble);
            bits = _mm512_or_si512(_mm512_shuffle_epi8(turned_low, low), _mm512_shuffle_epi8(turned_high, high));
            _mm512_mask_storeu_epi64(out + 8 * (first + k), some, bits);
        }
    }
    return nan != 0;
}

template <tl_bits_test TEST>
__attribute__((noinline, target("avx2"))) static tl_u32 tl_bits_avx2(const float *x, tl_u8 *out, tl_i64 num) {
    const __m256 zero = _mm256_setzero_ps();
    const int test = TEST == TL_BITS_SIGN ? _CMP_GE_OQ : _CMP_NEQ_UQ;
    __m256 nan = zero;
    for (tl_i64 block = 0; block < num; ++block, x += 64) {
        tl_u64 word = 0;
        for (tl_i64 k = 0; k < 64; k += 16) {
            __m256 a = _mm256_loadu_ps(x + k), b = _mm256_loadu_ps(x + k + 8);
            if (TEST == TL_BITS_SIGN) nan = _mm256_or_ps(nan, _mm256_cmp_ps(a, b, _CMP_UNORD_Q));
            word |= (tl_u64)(tl_u32)_mm256_movemask_ps(_mm256_cmp_ps(a, zero, test)) << k |
                    (tl_u64)(tl_u32)_mm256_movemask_ps(_mm256_cmp_ps(b, zero, test)) << (k + 8);
        }
        word = tl_reverse_in_bytes(word);
        memcpy(out + 8 * block, &word, 8);
    }
    return _mm256_movemask_ps(nan) != 0;
}
#endif

// Bytes of 8 flags, each 0 or 1: a product gathers them, the first one highest.
TL_INLINE void tl_bits_pack(const tl_u8 *flag, tl_u8 *out, tl_i64 num_bytes) {
    for (tl_i64 j = 0; j < num_bytes; ++j) {
        tl_u64 word;
        memcpy(&word, flag + 8 * j, 8);
        out[j] = (tl_u8)(word * 0x8040201008040201ull >> 56);
    }
}

template <tl_bits_test TEST>
static tl_u32 tl_bits_any(const float *x, tl_u8 *out, tl_i64 num) {
    tl_u32 nan = 0;
    for (tl_i64 block = 0; block < num; ++block, x += 64) {
        tl_u8 flag[64];
        for (tl_i64 k = 0; k < 64; ++k) flag[k] = TEST == TL_BITS_SIGN ? x[k] >= 0.0f : x[k] != 0.0f;
        if (TEST == TL_BITS_SIGN)
            for (tl_i64 k = 0; k < 64; ++k) nan |= x[k] != x[k];
        tl_bits_pack(flag, out + 8 * block, 8);
    }
    return nan;
}

// Of `num` blocks.
template <tl_bits_test TEST>
TL_INLINE tl_u32 tl_bits_blocks(const float *x, tl_u8 *out, tl_i64 num) {
#if TL_X86
    if (__builtin_cpu_supports("avx512bw")) return tl_bits_avx512<TEST>(x, out, num);
    if (__builtin_cpu_supports("avx2")) return tl_bits_avx2<TEST>(x, out, num);
#endif
    return tl_bits_any<TEST>(x, out, num);
}
#endif
