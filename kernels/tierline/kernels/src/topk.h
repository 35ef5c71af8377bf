// `topk` on a CPU; what a GPU does is in topk_gpu.h. The oracle is numpy/topk.py. A magnitude is ordered by its bits
// without the sign, NaN beyond infinity.
#pragma once
#include "bits.h"
#include "select.h"

TL_INLINE tl_u32 tl_magnitude(float x) { return (tl_u32)tl_bits(x) & 0x7fffffffu; }

#if !TL_GPU
// Bitmap of each row's num_chosen largest magnitudes, of equal ones the first. Returns 1 where a NaN or an infinity
// would be dropped.
TL_CPU_ENTRY(tl_topk_choose_cpu)(const float *x, tl_u8 *bitmap, tl_i64 num_rows, tl_i64 num_values, tl_i64 num_chosen) {
    const tl_i64 num_bytes = (num_values + 7) / 8;
    for (tl_i64 b = 0; b < num_rows; ++b) {
        const float *row = x + b * num_values;
        tl_u8 *bytes = bitmap + b * num_bytes;
        tl_i64 last = 0, num_infinite = 0;
        const auto key_of = [](float value) __attribute__((always_inline)) { return tl_magnitude(value); };
        const tl_selected found = tl_select(row, num_values, num_values - num_chosen, key_of);
        const tl_i32 least = (tl_i32)found.key;
        if (least >= 0x7f800000) {
            for (tl_i64 i = 0; i < num_values; ++i) num_infinite += tl_magnitude(row[i]) >= 0x7f800000u;
            if (num_infinite > num_chosen) return 1;
        }
        for (tl_i64 num_left = found.equal - found.before; num_left; ++last) num_left -= (tl_i32)tl_magnitude(row[last]) == least;
        for (tl_i64 first = 0; first < num_values; first += 512) {
            const tl_i64 num = num_values - first < 512 ? num_values - first : 512, before = last - first;
            tl_u8 flag[512];
            // Up to the last equal one that is chosen, `least` itself counts.
            const tl_i64 num_before = before < 0 ? 0 : before < num ? before : num;
            for (tl_i64 k = 0; k < num_before; ++k) flag[k] = (tl_i32)tl_magnitude(row[first + k]) >= least;
            for (tl_i64 k = num_before; k < num; ++k) flag[k] = (tl_i32)tl_magnitude(row[first + k]) > least;
            for (tl_i64 k = num; k < (num + 7) / 8 * 8; ++k) flag[k] = 0;
            tl_bits_pack(flag, bytes + first / 8, (num + 7) / 8);
        }
    }
    return 0;
}
#endif
