// Running sums on a GPU, a tree of 64 numbers to a node: sums go up level by level, starts come down. Integers, and
// every number is written by one thread, so there is nothing to race for.
#pragma once
#include "tl.h"
#if TL_GPU
#define TL_SCAN 64

// The sum of each 64 numbers.
TL_ENTRY(tl_scan_up)(const tl_i64 *numbers, tl_i64 *sums, tl_i64 num) {
    TL_COLS(node, (num + TL_SCAN - 1) / TL_SCAN) {
        tl_i64 end = (node + 1) * TL_SCAN < num ? (node + 1) * TL_SCAN : num, sum = 0;
        for (tl_i64 i = node * TL_SCAN; i < end; ++i) sum += numbers[i];
        sums[node] = sum;
    }
}

// starts[i]: the sum of all numbers before i, up to starts[num], that of all. `above` holds those of the nodes, or is
// null where there is one.
TL_ENTRY(tl_scan_down)(const tl_i64 *numbers, const tl_i64 *above, tl_i64 *starts, tl_i64 num) {
    TL_COLS(node, (num + TL_SCAN - 1) / TL_SCAN) {
        tl_i64 end = (node + 1) * TL_SCAN < num ? (node + 1) * TL_SCAN : num, sum = above ? above[node] : 0;
        for (tl_i64 i = node * TL_SCAN; i < end; ++i) {
            starts[i] = sum;
            sum += numbers[i];
        }
        if (end == num) starts[num] = sum;
    }
}

// Every `step`-th number.
TL_ENTRY(tl_scan_pick)(const tl_i64 *numbers, tl_i64 *out, tl_i64 num, tl_i64 step) {
    TL_COLS(i, num) out[i] = numbers[i * step];
}
#endif
