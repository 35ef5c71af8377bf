// `affine`: values on an even scale between the ends of a range of their row. The oracle is numpy/affine.py.
// A row is float32 lo, float32 scale, then codes of `bits` bits as one little-endian stream of bits.
#pragma once
#include "philox.h"
#include "tl.h"

#define TL_AFFINE_LIMIT 8.507059173023462e37f   // 2^126: no step can overflow below it
#define TL_AFFINE_MINUS_ZERO (-0x7fffffff - 1)  // the bits of -0.0, which no header has
#define TL_AFFINE_TINY 1.1754943508222875e-38f  // 2^-126: the floor under the scale

TL_INLINE tl_i64 tl_affine_row_bytes(tl_i64 num_values, tl_i32 bits) { return 8 + (num_values * bits + 7) / 8; }

// Place of a value on the scale, between 0 and the last step whatever the range leaves out.
TL_INLINE float tl_affine_place(float x, float lo, float inverse, float steps) {
    float place = (x - lo) * inverse;
    place = place > 0.0f ? place : 0.0f;
    return place < steps ? place : steps;
}

// Nearest integer, ties to even, of a float in [0, 2^22): the addition leaves it in the low bits of the sum.
TL_INLINE tl_u32 tl_nearest(float x) { return (tl_u32)tl_bits(x + 8388608.0f) & 0x7fffffu; }

// The integer below or above, above with the probability of the fraction; never above an integer.
TL_INLINE tl_u32 tl_either(float x, tl_u32 word) {
    tl_i32 below = (tl_i32)x;
    return (tl_u32)(below + (tl_uniform(word) < x - (float)below));
}

// Eight codes, one a byte, to the low 8 * bits bits.
TL_INLINE tl_u64 tl_affine_squeeze(tl_u64 x, tl_i32 bits) {
    tl_i32 gap = 8 - bits;
    x = (x & 0x00ff00ff00ff00ffull) | (x & 0xff00ff00ff00ff00ull) >> gap;
    x = (x & 0x0000ffff0000ffffull) | (x & 0xffff0000ffff0000ull) >> 2 * gap;
    return (x & 0x00000000ffffffffull) | (x & 0xffffffff00000000ull) >> 4 * gap;
}

// Smallest and largest tl_key of a row, or of one thread's share of it.
TL_INLINE void tl_affine_range_row(const float *row, tl_i64 num_values, tl_i32 *lo, tl_i32 *hi) {
    tl_i32 least = 0x7fffffff, most = -0x7fffffff - 1;
#if TL_GPU
    TL_COLS(group, (num_values + 7) / 8) {
        float v[8];
        tl_read_group(row, group, num_values, v);
#pragma unroll
        for (int k = 0; k < 8; ++k) {
            least = tl_min(least, tl_key(v[k]));
            most = tl_max(most, tl_key(v[k]));
        }
    }
#else
    const tl_i64 head = tl_head(row, num_values);
    for (tl_i64 i = 0; i < head; ++i) least = tl_min(least, tl_key(row[i])), most = tl_max(most, tl_key(row[i]));
    TL_COLS(i, num_values - head) {
        tl_i32 key = tl_key(row[head + i]);
        least = tl_min(least, key);
        most = tl_max(most, key);
    }
#endif
    *lo = least;
    *hi = most;
}

// 1 if a value of the row is NaN or above 2^126 in magnitude.
TL_INLINE tl_i32 tl_affine_outside(tl_i32 lo, tl_i32 hi) {
    return !(tl_unkey(lo) >= -TL_AFFINE_LIMIT && tl_unkey(hi) <= TL_AFFINE_LIMIT);
}

// Header of a row whose codes cover [lo, hi]. A zero is written as +0.
TL_INLINE void tl_affine_header_row(float lo, float hi, tl_u8 *coded, tl_i32 bits) {
    float scale = (hi - lo) / (float)((1 << bits) - 1);
    float header[2] = {lo + 0.0f, scale > TL_AFFINE_TINY ? scale : TL_AFFINE_TINY};
    memcpy(coded, header, sizeof header);
}

#if !TL_GPU
// Codes of a tile of a row. `words` is the row's stream number under `seed` where rounding is stochastic.
TL_INLINE void tl_affine_tile(const float *x, tl_u8 *code, tl_i64 first, tl_i64 num, float lo, float inverse, float steps,
                              tl_i32 stochastic, tl_u64 seed, tl_u64 words) {
    if (stochastic) {
        tl_u32 word[TL_TILE];
        for (tl_i64 k = 0; k < (num + 3) / 4; ++k) {
            tl_u32x4 four = tl_philox4x32((tl_u64)(first / 4 + k), words, seed);
            word[4 * k] = four.w0, word[4 * k + 1] = four.w1, word[4 * k + 2] = four.w2, word[4 * k + 3] = four.w3;
        }
        for (tl_i64 k = 0; k < num; ++k)
            code[k] = (tl_u8)tl_either(tl_affine_place(x[first + k], lo, inverse, steps), word[k]);
    } else {
        for (tl_i64 k = 0; k < num; ++k)
            code[k] = (tl_u8)tl_nearest(tl_affine_place(x[first + k], lo, inverse, steps));
    }
}
#endif

// Codes of a row behind the header that is already there. `clips` where the range leaves values out.
TL_INLINE void tl_affine_codes_row(const float *row, tl_u8 *coded, tl_i64 num_values, tl_i32 bits, tl_i32 clips,
                                   tl_i32 stochastic, tl_u64 seed, tl_u64 words) {
    float header[2];
    memcpy(header, coded, sizeof header);
    coded += sizeof header;
    float lo = header[0], inverse = 1.0f / header[1], steps = (float)((1 << bits) - 1);
#if TL_GPU
    TL_COLS(group, (num_values + 7) / 8) {
        tl_i64 num = num_values - 8 * group < 8 ? num_values - 8 * group : 8;
        float v[8];
        tl_read_group(row, group, num_values, v);
        tl_u64 word = 0;
        if (stochastic) {
            tl_u32x4 r = tl_philox4x32(2 * group, words, seed), s = tl_philox4x32(2 * group + 1, words, seed);
            const tl_u32 random[8] = {r.w0, r.w1, r.w2, r.w3, s.w0, s.w1, s.w2, s.w3};
#pragma unroll
            for (int k = 0; k < 8; ++k)
                word |= (tl_u64)tl_either(tl_affine_place(v[k], lo, inverse, steps), random[k]) << (8 * k);
        } else {
#pragma unroll
            for (int k = 0; k < 8; ++k)
                word |= (tl_u64)tl_nearest(tl_affine_place(v[k], lo, inverse, steps)) << (8 * k);
        }
        if (bits < 8) word = tl_affine_squeeze(word, bits);
        if (num < 8) word &= (1ull << (num * bits)) - 1;
        tl_write_word(coded + group * bits, word, (tl_i32)(num * bits + 7) / 8);
    }
#else
    if (bits == 8 && !stochastic && !clips) {
        const tl_i64 head = tl_head(row, num_values);
        for (tl_i64 i = 0; i < head; ++i) coded[i] = (tl_u8)tl_nearest((row[i] - lo) * inverse);
        TL_COLS(i, num_values - head) coded[head + i] = (tl_u8)tl_nearest((row[head + i] - lo) * inverse);
        return;
    }
    TL_COLS(tile, (num_values + TL_TILE - 1) / TL_TILE) {
        tl_i64 first = TL_TILE * tile, num = num_values - first < TL_TILE ? num_values - first : TL_TILE;
        tl_u8 code[TL_TILE], packed[TL_TILE + 8];
        const tl_i64 num_words = (num + 7) / 8;  // a row may have a single value
        for (tl_i64 k = num; k < 8 * num_words; ++k) code[k] = 0;
        tl_affine_tile(row, code, first, num, lo, inverse, steps, stochastic, seed, words);
        for (tl_i64 k = 0; k < num_words; ++k) {
            tl_u64 word;
            memcpy(&word, code + 8 * k, 8);
            word = tl_affine_squeeze(word, bits);
            memcpy(packed + k * bits, &word, 8);
        }
        memcpy(coded + first / 8 * bits, packed, (num * bits + 7) / 8);
    }
#endif
}

#if TL_GPU
// What `tl_affine_range` starts from.
TL_ENTRY(tl_affine_start)(tl_i32 *keys, tl_i64 num_rows) {
    TL_COLS(b, num_rows) {
        keys[2 * b] = 0x7fffffff;
        keys[2 * b + 1] = -0x7fffffff - 1;
    }
}
#endif

// Smallest and largest value of each row as tl_key, into keys[2 * b] and keys[2 * b + 1], which the caller has preset
// to the largest and smallest integer.
TL_ENTRY(tl_affine_range)(const float *x, tl_i32 *keys, tl_i64 num_rows, tl_i64 num_values) {
    TL_ROWS(b, num_rows) {
        tl_i32 lo, hi;
        tl_affine_range_row(x + b * num_values, num_values, &lo, &hi);
        TL_MIN_INTO(&keys[2 * b], lo);
        TL_MAX_INTO(&keys[2 * b + 1], hi);
    }
}

// Header of each row from its keys. bad[0] becomes 1 if a value is NaN or above 2^126 in magnitude.
TL_ENTRY(tl_affine_header)(const tl_i32 *keys, tl_u8 *out, tl_i32 *bad, tl_i64 num_rows, tl_i64 num_values, tl_i32 bits) {
    TL_COLS(b, num_rows) {
        tl_i32 lo = keys[2 * b], hi = keys[2 * b + 1];
        if (tl_affine_outside(lo, hi)) TL_OR_INTO(bad, 1);
        tl_affine_header_row(tl_unkey(lo), tl_unkey(hi), out + b * tl_affine_row_bytes(num_values, bits), bits);
    }
}

// Codes of each row behind the header that is already there: a column is a tile, at 8 bits a value.
TL_ENTRY(tl_affine_codes)(const float *x, tl_u8 *out, tl_i64 num_rows, tl_i64 num_values, tl_i32 bits) {
    TL_ROWS(b, num_rows)
        tl_affine_codes_row(x + b * num_values, out + b * tl_affine_row_bytes(num_values, bits), num_values, bits, 0, 0, 0, 0);
}

// The same, stochastically rounded: value i of row b takes word i of stream b % num_streams under `seed`.
TL_ENTRY(tl_affine_codes_stochastic)(const float *x, tl_u8 *out, tl_i64 num_rows, tl_i64 num_values, tl_i32 bits,
                                     tl_u64 seed, tl_i64 num_streams) {
    TL_ROWS(b, num_rows)
        tl_affine_codes_row(x + b * num_values, out + b * tl_affine_row_bytes(num_values, bits), num_values, bits, 1, 1, seed,
                            (tl_u64)(b % num_streams));
}

#if !TL_GPU
#include "affine_clip.h"

// Header and codes of a row. clip: 0 minimum to maximum, 1 without the `num_dropped` smallest and largest values, 2 the
// range of least squared error. Returns 1 if a value is NaN or above 2^126 in magnitude.
TL_INLINE tl_i32 tl_affine_encode_row(const float *row, tl_u8 *coded, tl_i64 num_values, tl_i32 bits, tl_i32 clip,
                                      tl_i64 num_dropped, tl_i32 stochastic, tl_u64 seed, tl_u64 stream) {
    tl_i32 least, most;
    tl_affine_range_row(row, num_values, &least, &most);
    if (tl_affine_outside(least, most)) return 1;
    float lo = tl_unkey(least), hi = tl_unkey(most);
    if (least == most) {  // as channels of a single value are: every code is 0
        tl_affine_header_row(lo, hi, coded, bits);
        memset(coded + 8, 0, (num_values * bits + 7) / 8);
        return 0;
    }
    if (clip == 1 && num_dropped) {
        lo = tl_unkey(tl_affine_ranked(row, num_values, num_dropped));
        hi = tl_unkey(tl_affine_ranked(row, num_values, num_values - 1 - num_dropped));
    } else if (clip == 2) {
        tl_affine_least_error(row, num_values, (1 << bits) - 1, &lo, &hi);
    }
    tl_affine_header_row(lo, hi, coded, bits);
    tl_affine_codes_row(row, coded, num_values, bits, clip, stochastic, seed, stream);
    return 0;
}

// Rows close together; num_streams: 0 rounds to nearest.
TL_CPU_ENTRY(tl_affine_encode_cpu)(const float *x, tl_u8 *out, tl_i64 num_rows, tl_i64 num_values, tl_i32 bits,
                                   tl_i32 clip, tl_i64 num_dropped, tl_i64 num_streams, tl_u64 seed) {
    for (tl_i64 b = 0; b < num_rows; ++b) {
        tl_u8 *coded = out + b * tl_affine_row_bytes(num_values, bits);
        tl_u64 stream = num_streams ? (tl_u64)(b % num_streams) : 0;
        if (tl_affine_encode_row(x + b * num_values, coded, num_values, bits, clip, num_dropped, num_streams != 0, seed,
                                 stream))
            return 1;
    }
    return 0;
}

// Rows of their own lengths, values close together: runs[3 * b ...] holds where the bytes of row b go, how many values
// it has (of none nothing is written) and its `num_dropped`.
TL_CPU_ENTRY(tl_affine_encode_runs_cpu)(const float *x, tl_u8 *out, const tl_i64 *runs, tl_i64 num_rows, tl_i32 bits,
                                        tl_i32 clip, tl_i32 stochastic, tl_u64 seed) {
    for (tl_i64 b = 0; b < num_rows; ++b, runs += 3) {
        if (runs[1] && tl_affine_encode_row(x, out + runs[0], runs[1], bits, clip, runs[2], stochastic, seed, 0)) return 1;
        x += runs[1];
    }
    return 0;
}
#endif
