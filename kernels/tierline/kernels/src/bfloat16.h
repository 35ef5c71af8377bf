// `bfloat16`: the upper half of float32, rounded to nearest, ties to even. The oracle is numpy/bfloat16.py.
// Values are moved as integers, so that no processor touches a NaN.
#pragma once
#include "tl.h"

TL_INLINE tl_u16 tl_bfloat16_code(tl_u32 bits) {
    tl_u32 upper = bits >> 16, rounded = (bits + 0x7fffu + (upper & 1)) >> 16;
    return (tl_u16)((bits & 0x7fffffffu) > 0x7f800000u ? upper | 0x40u : rounded);
}

TL_ENTRY(tl_bfloat16_encode)(const tl_u32 *x, tl_u16 *out, tl_i64 num_values) {
    TL_COLS(i, num_values) out[i] = tl_bfloat16_code(x[i]);
}

TL_ENTRY(tl_bfloat16_decode)(const tl_u16 *data, tl_u32 *x, tl_i64 num_values) {
    TL_COLS(i, num_values) x[i] = (tl_u32)data[i] << 16;
}
