// The value of a given rank on a CPU, by a radix selection: counts of one digit after the other narrow it down, which
// sorts nothing. `topk` and the percentiles of `affine` use it.
#pragma once
#include "tl.h"
#if !TL_GPU

struct tl_selected {
    tl_u32 key;
    tl_i64 before, equal;  // how many of the wanted rank's equals come before it, and how many there are
};

// Digits of BITS bits. Neighbours are often alike: TURNS sets of counters spare them the wait for one another's count.
template <int BITS, int TURNS, typename KEY>
static inline __attribute__((always_inline)) tl_selected tl_select_by(const float *row, tl_i64 num_values, tl_i64 rank,
                                                                      KEY key_of) {
    tl_u64 found = 0;
    tl_i64 here = 0;
    for (tl_i32 shift = 31 / BITS * BITS; shift >= 0; shift -= BITS) {
        tl_u32 counts[TURNS][1 << BITS] = {};
        for (tl_i64 i = 0; i < num_values; ++i) {
            tl_u64 key = (tl_u64)key_of(row[i]) >> shift;
            counts[i % TURNS][key & ((1u << BITS) - 1)] += key >> BITS == found;
        }
        tl_u32 digit = 0;
        for (;; ++digit) {
            here = 0;
            for (tl_i32 turn = 0; turn < TURNS; ++turn) here += counts[turn][digit];
            if (rank < here) break;
            rank -= here;
        }
        found = found << BITS | digit;
    }
    return {(tl_u32)found, rank, here};
}

// Of the key with `rank` smaller or equal ones before it in sorted order. Counters are cleared and summed for every row,
// so a short row has few of them.
template <typename KEY>
static inline __attribute__((always_inline)) tl_selected tl_select(const float *row, tl_i64 num_values, tl_i64 rank,
                                                                   KEY key_of) {
    if (num_values <= 256) return tl_select_by<5, 2>(row, num_values, rank, key_of);
    if (num_values <= 8192) return tl_select_by<8, 4>(row, num_values, rank, key_of);
    return tl_select_by<11, 4>(row, num_values, rank, key_of);
}
#endif
