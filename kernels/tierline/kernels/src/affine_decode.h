// Values of `affine` from its bytes; what writes them is affine.h.
#pragma once
#include "affine.h"

// Eight codes from the low 8 * bits bits, one a byte.
TL_INLINE tl_u64 tl_affine_widen(tl_u64 x, tl_i32 bits) {
    tl_i32 gap = 8 - bits;
    tl_u64 mask = (1ull << 4 * bits) - 1;
    x = (x & mask) | (x & mask << 4 * bits) << 4 * gap;
    mask = ((1ull << 2 * bits) - 1) * 0x0000000100000001ull;
    x = (x & mask) | (x & mask << 2 * bits) << 2 * gap;
    mask = ((1ull << bits) - 1) * 0x0001000100010001ull;
    return (x & mask) | (x & mask << bits) << gap;
}

#if TL_X86
// Values of 8-bit codes past the caches: a plain store first reads what it replaces. `x` begins a line.
#define TL_AFFINE_STREAM(isa, width, load, widen, set, product, sum, store)                                           \
    __attribute__((noinline, target(isa))) static tl_i64 tl_affine_stream_##width(const tl_u8 *code, float *x, tl_i64 num,     \
                                                                        float scale, float lo) {                      \
        tl_i64 i = 0;                                                                                                 \
        for (; i + width <= num; i += width)                                                                          \
            store(x + i, sum(product(widen(load((const __m128i *)(code + i))), set(scale)), set(lo)));                \
        _mm_sfence();                                                                                                 \
        return i;                                                                                                     \
    }
// Full masks: GCC 12 warns about its own header's unmasked form.
#define TL_WIDEN_16(x) _mm512_maskz_cvtepi32_ps(0xffff, _mm512_maskz_cvtepu8_epi32(0xffff, x))
#define TL_WIDEN_8(x) _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(x))
TL_AFFINE_STREAM("avx512f", 16, _mm_loadu_si128, TL_WIDEN_16, _mm512_set1_ps, _mm512_mul_ps, _mm512_add_ps, _mm512_stream_ps)
TL_AFFINE_STREAM("avx2", 8, _mm_loadl_epi64, TL_WIDEN_8, _mm256_set1_ps, _mm256_mul_ps, _mm256_add_ps, _mm256_stream_ps)
#endif

#if !TL_GPU
// Values of 8-bit codes. `streams` where `x` is in no cache and need not be.
TL_INLINE void tl_affine_values(const tl_u8 *code, float *x, tl_i64 num, float scale, float lo, tl_i32 streams) {
    tl_i64 done = tl_head(x, num);
    for (tl_i64 i = 0; i < done; ++i) x[i] = (float)code[i] * scale + lo;
#if TL_X86
    if (streams && __builtin_cpu_supports("avx512f"))
        done += tl_affine_stream_16(code + done, x + done, num - done, scale, lo);
    else if (streams && __builtin_cpu_supports("avx2"))
        done += tl_affine_stream_8(code + done, x + done, num - done, scale, lo);
#endif
    TL_COLS(i, num - done) x[done + i] = (float)code[done + i] * scale + lo;
}
#endif

// Values of each row. Returns 1 for a header that no encoder writes, 2 for set padding bits.
TL_INLINE tl_i32 tl_affine_read(const tl_u8 *data, float *x, tl_i64 num_rows, tl_i64 num_values, tl_i32 bits,
                                tl_i32 streams) {
    tl_i32 bad = 0;
    (void)streams;  // of a CPU
    TL_ROWS(b, num_rows) {
        const tl_u8 *coded = data + b * tl_affine_row_bytes(num_values, bits);
        float *row = x + b * num_values;
        float header[2];
        memcpy(header, coded, sizeof header);
        coded += sizeof header;
        const float steps = (float)(bits == 1 ? 1 : (1 << bits) - 2);
        float lo = header[0], scale = header[1];
        if (!(lo >= -TL_AFFINE_LIMIT && lo <= TL_AFFINE_LIMIT && scale >= TL_AFFINE_TINY &&
              scale <= 2.0f * TL_AFFINE_LIMIT / steps && tl_bits(lo) != TL_AFFINE_MINUS_ZERO)) {
            bad |= 1;
            continue;
        }
#if TL_GPU
        TL_COLS(group, (num_values + 7) / 8) {
            tl_i64 num = num_values - 8 * group < 8 ? num_values - 8 * group : 8;
            tl_u64 word = tl_read_word(coded + group * bits, (tl_i32)(num * bits + 7) / 8);
            if (num < 8 && word >> (num * bits)) bad |= 2;
            if (bits < 8) word = tl_affine_widen(word, bits);
            float v[8];
#pragma unroll
            for (int k = 0; k < 8; ++k) v[k] = (float)(tl_u32)(word >> (8 * k) & 255) * scale + lo;
            tl_write_group(row, group, num_values, v);
        }
#else
        if (bits == 8) {
            tl_affine_values(coded, row, num_values, scale, lo, streams);
            continue;
        }
        TL_COLS(tile, (num_values + TL_TILE - 1) / TL_TILE) {
            tl_i64 first = TL_TILE * tile, num = num_values - first < TL_TILE ? num_values - first : TL_TILE;
            tl_i64 num_bytes = (num * bits + 7) / 8;
            tl_u8 code[TL_TILE], packed[TL_TILE + 16];
            memcpy(packed, coded + first / 8 * bits, num_bytes);
            memset(packed + num_bytes, 0, 8);
            for (tl_i64 k = 0; k < (num + 7) / 8; ++k) {
                tl_u64 word;
                memcpy(&word, packed + k * bits, 8);
                word = tl_affine_widen(word, bits);
                memcpy(code + 8 * k, &word, 8);
            }
            for (tl_i64 k = 0; k < num; ++k) row[first + k] = (float)code[k] * scale + lo;
            if (num * bits % 8 && packed[num_bytes - 1] >> (num * bits % 8)) bad |= 2;
        }
#endif
    }
    return bad;
}

TL_ENTRY(tl_affine_decode)(const tl_u8 *data, float *x, tl_i32 *bad, tl_i64 num_rows, tl_i64 num_values, tl_i32 bits) {
    tl_i32 found = tl_affine_read(data, x, num_rows, num_values, bits, 0);
    if (found) TL_OR_INTO(bad, found);
}

#if !TL_GPU
// `fresh` where nothing has touched the memory of `x` yet: the system clears it in the cache, and there it is best met.
TL_CPU_ENTRY(tl_affine_decode_cpu)(const tl_u8 *data, float *x, tl_i64 num_rows, tl_i64 num_values, tl_i32 bits,
                                   tl_i32 fresh) {
    const tl_i64 beyond_caches = 1 << 22;
    return tl_affine_read(data, x, num_rows, num_values, bits, !fresh && num_rows * num_values >= beyond_caches);
}

// The reverse of tl_affine_encode_runs_cpu.
TL_CPU_ENTRY(tl_affine_decode_runs_cpu)(const tl_u8 *data, float *x, const tl_i64 *runs, tl_i64 num_rows, tl_i32 bits) {
    tl_i32 bad = 0;
    for (tl_i64 b = 0; b < num_rows; ++b, runs += 3) {
        if (runs[1]) bad |= tl_affine_read(data + runs[0], x, 1, runs[1], bits, 0);
        x += runs[1];
    }
    return bad;
}
#endif
