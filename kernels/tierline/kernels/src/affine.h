// `affine`: values on an even scale between the minimum and maximum of their row. The oracle is numpy/affine.py.
// A row is float32 lo, float32 scale, then codes of `bits` bits as one little-endian stream of bits.
#pragma once
#include "tl.h"

TL_INLINE tl_i64 tl_affine_row_bytes(tl_i64 num_values, tl_i32 bits) { return 8 + (num_values * bits + 7) / 8; }

// Nearest integer, ties to even, of a float in [0, 2^22): the addition leaves it in the low bits of the sum.
TL_INLINE tl_u32 tl_nearest(float x) { return (tl_u32)tl_bits(x + 8388608.0f) & 0x7fffffu; }

TL_INLINE tl_u32 tl_affine_code(float x, float lo, float inverse) { return tl_nearest((x - lo) * inverse); }

// Smallest and largest value of each row as tl_key, into keys[2 * b] and keys[2 * b + 1], which the caller has preset
// to the largest and smallest integer.
TL_ENTRY(tl_affine_range)(const float *x, tl_i32 *keys, tl_i64 num_rows, tl_i64 num_values) {
    TL_ROWS(b, num_rows) {
        tl_i32 lo = 0x7fffffff, hi = -0x7fffffff - 1;
        const float *row = x + b * num_values;
        TL_COLS(i, num_values) {
            tl_i32 key = tl_key(row[i]);
            lo = tl_min(lo, key);
            hi = tl_max(hi, key);
        }
        TL_MIN_INTO(&keys[2 * b], lo);
        TL_MAX_INTO(&keys[2 * b + 1], hi);
    }
}

// Header of each row from its keys. bad[0] becomes 1 if a value is NaN or above 2^126 in magnitude.
TL_ENTRY(tl_affine_header)(const tl_i32 *keys, tl_u8 *out, tl_i32 *bad, tl_i64 num_rows, tl_i64 num_values, tl_i32 bits) {
    TL_COLS(b, num_rows) {
        const float limit = 8.507059173023462e37f;
        float lo = tl_unkey(keys[2 * b]), hi = tl_unkey(keys[2 * b + 1]);
        if (!(lo >= -limit && hi <= limit)) TL_OR_INTO(bad, 1);
        float scale = (hi - lo) / (float)((1 << bits) - 1);
        float header[2] = {lo + 0.0f, scale > 1.1754943508222875e-38f ? scale : 1.1754943508222875e-38f};
        memcpy(out + b * tl_affine_row_bytes(num_values, bits), header, sizeof header);
    }
}

// Codes of each row behind the header that is already there: a column is 8 values, which fill `bits` whole bytes.
TL_ENTRY(tl_affine_codes)(const float *x, tl_u8 *out, tl_i64 num_rows, tl_i64 num_values, tl_i32 bits) {
    TL_ROWS(b, num_rows) {
        const float *row = x + b * num_values;
        tl_u8 *coded = out + b * tl_affine_row_bytes(num_values, bits);
        float header[2];
        memcpy(header, coded, sizeof header);
        coded += sizeof header;
        float lo = header[0], inverse = 1.0f / header[1];
        if (bits == 8) {
            TL_COLS(i, num_values) coded[i] = (tl_u8)tl_affine_code(row[i], lo, inverse);
        } else {
            TL_COLS(group, (num_values + 7) / 8) {
                tl_i64 first = 8 * group, num = num_values - first < 8 ? num_values - first : 8;
                tl_u64 word = 0;
                for (tl_i64 k = 0; k < num; ++k)
                    word |= (tl_u64)tl_affine_code(row[first + k], lo, inverse) << (k * bits);
                for (tl_i64 k = 0; k < (num * bits + 7) / 8; ++k) coded[group * bits + k] = (tl_u8)(word >> (8 * k));
            }
        }
    }
}

// Values of each row. bad[0] becomes 1 for a header that no encoder writes, 2 for set padding bits.
TL_ENTRY(tl_affine_decode)(const tl_u8 *data, float *x, tl_i32 *bad, tl_i64 num_rows, tl_i64 num_values, tl_i32 bits) {
    TL_ROWS(b, num_rows) {
        const tl_u8 *coded = data + b * tl_affine_row_bytes(num_values, bits);
        float *row = x + b * num_values;
        float header[2];
        memcpy(header, coded, sizeof header);
        coded += sizeof header;
        const float limit = 8.507059173023462e37f, steps = (float)(bits == 1 ? 1 : (1 << bits) - 2);
        float lo = header[0], scale = header[1];
        if (!(lo >= -limit && lo <= limit && scale >= 1.1754943508222875e-38f && scale <= 2.0f * limit / steps)) {
            TL_OR_INTO(bad, 1);
            continue;
        }
        if (bits == 8) {
            TL_COLS(i, num_values) row[i] = (float)coded[i] * scale + lo;
        } else {
            TL_COLS(group, (num_values + 7) / 8) {
                tl_i64 first = 8 * group, num = num_values - first < 8 ? num_values - first : 8;
                tl_u64 word = 0;
                for (tl_i64 k = 0; k < (num * bits + 7) / 8; ++k) word |= (tl_u64)coded[group * bits + k] << (8 * k);
                for (tl_i64 k = 0; k < num; ++k)
                    row[first + k] = (float)((word >> (k * bits)) & ((1u << bits) - 1)) * scale + lo;
                if (word >> (num * bits)) TL_OR_INTO(bad, 2);
            }
        }
    }
}
