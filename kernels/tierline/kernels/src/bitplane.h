// `bitplane`: one bit per value, 1 where x >= 0, first value in the most significant bit. The oracle is
// numpy/bitplane.py.
#pragma once
#include "tl.h"

// One byte of up to 8 values; padding bits are 0.
TL_INLINE tl_u32 tl_bitplane_byte(const float *x, tl_i64 num, tl_u32 *nan) {
    tl_u32 byte = 0;
    for (tl_i64 k = 0; k < num; ++k) {
        *nan |= x[k] != x[k];
        byte |= (tl_u32)(x[k] >= 0.0f) << (7 - k);
    }
    return byte;
}

#if !TL_GPU
// Whole blocks of 64 values, from a compare that yields a mask where the processor has one. Each returns 1 for a NaN.
// A mask holds its first value in the lowest bit, so the bits of each byte change places.
#if TL_X86
TL_INLINE tl_u64 tl_reverse_in_bytes(tl_u64 x) {
    x = (x >> 1 & 0x5555555555555555ull) | (x & 0x5555555555555555ull) << 1;
    x = (x >> 2 & 0x3333333333333333ull) | (x & 0x3333333333333333ull) << 2;
    return (x >> 4 & 0x0f0f0f0f0f0f0f0full) | (x & 0x0f0f0f0f0f0f0f0full) << 4;
}

__attribute__((target("avx512f,avx512bw"))) static tl_u32 tl_bitplane_blocks_avx512(const float *x, tl_u8 *out,
                                                                                    tl_i64 num) {
    const __m512 zero = _mm512_setzero_ps();
    tl_u32 nan = 0;
    for (tl_i64 block = 0; block < num; ++block, x += 64) {
        __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
        __m512 c = _mm512_loadu_ps(x + 32), d = _mm512_loadu_ps(x + 48);
        nan |= _mm512_cmp_ps_mask(a, b, _CMP_UNORD_Q) | _mm512_cmp_ps_mask(c, d, _CMP_UNORD_Q);
        __mmask32 low = _mm512_kunpackw(_mm512_cmp_ps_mask(b, zero, _CMP_GE_OQ), _mm512_cmp_ps_mask(a, zero, _CMP_GE_OQ));
        __mmask32 high = _mm512_kunpackw(_mm512_cmp_ps_mask(d, zero, _CMP_GE_OQ), _mm512_cmp_ps_mask(c, zero, _CMP_GE_OQ));
        tl_u64 word = tl_reverse_in_bytes(_mm512_kunpackd(high, low));
        memcpy(out + 8 * block, &word, 8);
    }
    return nan != 0;
}

__attribute__((target("avx2"))) static tl_u32 tl_bitplane_blocks_avx2(const float *x, tl_u8 *out, tl_i64 num) {
    const __m256 zero = _mm256_setzero_ps();
    __m256 nan = zero;
    for (tl_i64 block = 0; block < num; ++block, x += 64) {
        tl_u64 word = 0;
        for (tl_i64 k = 0; k < 64; k += 16) {
            __m256 a = _mm256_loadu_ps(x + k), b = _mm256_loadu_ps(x + k + 8);
            nan = _mm256_or_ps(nan, _mm256_cmp_ps(a, b, _CMP_UNORD_Q));
            word |= (tl_u64)(tl_u32)_mm256_movemask_ps(_mm256_cmp_ps(a, zero, _CMP_GE_OQ)) << k |
                    (tl_u64)(tl_u32)_mm256_movemask_ps(_mm256_cmp_ps(b, zero, _CMP_GE_OQ)) << (k + 8);
        }
        word = tl_reverse_in_bytes(word);
        memcpy(out + 8 * block, &word, 8);
    }
    return _mm256_movemask_ps(nan) != 0;
}
#endif

static tl_u32 tl_bitplane_blocks_any(const float *x, tl_u8 *out, tl_i64 num) {
    tl_u32 nan = 0;
    for (tl_i64 block = 0; block < num; ++block, x += 64) {
        tl_u8 flag[64];
        for (tl_i64 k = 0; k < 64; ++k) flag[k] = x[k] >= 0.0f;
        for (tl_i64 k = 0; k < 64; ++k) nan |= x[k] != x[k];
        for (tl_i64 j = 0; j < 8; ++j) {
            tl_u64 word;
            memcpy(&word, flag + 8 * j, 8);
            out[8 * block + j] = (tl_u8)(word * 0x8040201008040201ull >> 56);  // gathers bit 0 of each byte, first highest
        }
    }
    return nan;
}

TL_INLINE tl_u32 tl_bitplane_blocks(const float *x, tl_u8 *out, tl_i64 num) {
#if TL_X86
    if (__builtin_cpu_supports("avx512bw")) return tl_bitplane_blocks_avx512(x, out, num);
    if (__builtin_cpu_supports("avx2")) return tl_bitplane_blocks_avx2(x, out, num);
#endif
    return tl_bitplane_blocks_any(x, out, num);
}
#endif

// Each column is one byte of 8 values. bad[0] becomes 1 if a value is NaN.
TL_ENTRY(tl_bitplane_encode)(const float *x, tl_u8 *out, tl_i32 *bad, tl_i64 num_rows, tl_i64 num_values) {
    tl_i64 num_bytes = (num_values + 7) / 8;
    TL_ROWS(b, num_rows) {
        const float *row = x + b * num_values;
        tl_u32 nan = 0;
        tl_i64 num_done = 0;
#if !TL_GPU
        num_done = num_values / 64 * 8;
        nan = tl_bitplane_blocks(row, out + b * num_bytes, num_done / 8);
#endif
        TL_COLS(rest, num_bytes - num_done) {
            tl_i64 j = num_done + rest, num = num_values - 8 * j;
#if TL_GPU
            float v[8];
            tl_read_group(row, j, num_values, v);
            tl_u32 byte = tl_bitplane_byte(v, 8, &nan);
            out[b * num_bytes + j] = (tl_u8)(num < 8 ? byte & 0xff00u >> num : byte);
#else
            out[b * num_bytes + j] = (tl_u8)tl_bitplane_byte(row + 8 * j, num < 8 ? num : 8, &nan);
#endif
        }
        if (nan) TL_OR_INTO(bad, 1);
    }
}

// +1 or -1 for bit `k`, counted from the most significant one.
TL_INLINE float tl_bitplane_value(tl_u32 byte, tl_i64 k) {
    return tl_float(0x3f800000 | (tl_i32)(~byte << (24 + k) & 0x80000000u));
}

TL_INLINE void tl_bitplane_open(tl_u32 byte, float *x) {
#if TL_GPU
    for (tl_i64 k = 0; k < 8; ++k) x[k] = tl_bitplane_value(byte, k);
#else
    typedef tl_u32 eight __attribute__((vector_size(32)));
    const eight shift = {24, 25, 26, 27, 28, 29, 30, 31};
    eight value = (~byte << shift & 0x80000000u) | 0x3f800000u;
    memcpy(x, &value, sizeof value);
#endif
}

// +1 for a set bit, -1 for a clear one. bad[0] becomes 1 if a padding bit is set.
TL_ENTRY(tl_bitplane_decode)(const tl_u8 *data, float *x, tl_i32 *bad, tl_i64 num_rows, tl_i64 num_values) {
    tl_i64 num_bytes = (num_values + 7) / 8;
    TL_ROWS(b, num_rows) {
        const tl_u8 *coded = data + b * num_bytes;
        float *row = x + b * num_values;
#if TL_GPU
        TL_COLS(j, num_bytes) {
            float v[8];
            tl_bitplane_open(coded[j], v);
            tl_write_group(row, j, num_values, v);
        }
#else
        tl_i64 num_whole = num_values / 8;
        TL_COLS(j, num_whole) tl_bitplane_open(coded[j], row + 8 * j);
        TL_COLS(k, num_values - 8 * num_whole) row[8 * num_whole + k] = tl_bitplane_value(coded[num_whole], k);
#endif
        tl_i32 num_padding = (tl_i32)(8 * num_bytes - num_values);
        if (num_bytes && (coded[num_bytes - 1] & ((1 << num_padding) - 1))) TL_OR_INTO(bad, 1);
    }
}

#if !TL_GPU
TL_CPU_ENTRY(tl_bitplane_encode_cpu)(const float *x, tl_u8 *out, tl_i64 num_rows, tl_i64 num_values) {
    tl_i32 bad = 0;
    tl_bitplane_encode(x, out, &bad, num_rows, num_values);
    return bad;
}

TL_CPU_ENTRY(tl_bitplane_decode_cpu)(const tl_u8 *data, float *x, tl_i64 num_rows, tl_i64 num_values) {
    tl_i32 bad = 0;
    tl_bitplane_decode(data, x, &bad, num_rows, num_values);
    return bad;
}
#endif
