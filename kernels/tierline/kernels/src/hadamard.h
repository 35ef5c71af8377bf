// Fast Walsh-Hadamard transform of rows. The oracle is numpy/hadamard.py. Every butterfly is a + b and a - b, once each,
// so the order in which they are walked changes no bit. For a CPU alone: compressors of updates, whom it serves, run there.
#pragma once
#include "tl.h"

#if !TL_GPU
// Values of one part that is finished before the next is begun, so that all its passes but the first are in the
// first-level cache.
#define TL_HADAMARD_PART 4096

// The passes over `half` and half of it, in one: a value is read and written once for both.
TL_INLINE void tl_hadamard_two(float *x, tl_i64 num_values, tl_i64 half) {
    tl_i64 quarter = half / 2;
    for (tl_i64 group = 0; group < num_values; group += 2 * half) {
        float *a = x + group, *b = a + quarter, *c = b + quarter, *d = c + quarter;
        for (tl_i64 i = 0; i < quarter; ++i) {
            float ac = a[i] + c[i], bd = b[i] + d[i], a_c = a[i] - c[i], b_d = b[i] - d[i];
            a[i] = ac + bd, b[i] = ac - bd, c[i] = a_c + b_d, d[i] = a_c - b_d;
        }
    }
}

// Within fours that lie beside each other, and where a row is no power of four, in its last pass, within twos.
TL_INLINE void tl_hadamard_fours(float *x, tl_i64 num_values) {
    for (tl_i64 i = 0; i < num_values; i += 4) {
        float ac = x[i] + x[i + 2], bd = x[i + 1] + x[i + 3], a_c = x[i] - x[i + 2], b_d = x[i + 1] - x[i + 3];
        x[i] = ac + bd, x[i + 1] = ac - bd, x[i + 2] = a_c + b_d, x[i + 3] = a_c - b_d;
    }
}

TL_INLINE void tl_hadamard_twos(float *x, tl_i64 num_values) {
    for (tl_i64 i = 0; i < num_values; i += 2) {
        float a = x[i], b = x[i + 1];
        x[i] = a + b, x[i + 1] = a - b;
    }
}

TL_INLINE void tl_hadamard_part(float *x, tl_i64 num_values, tl_i64 row) {
    tl_i64 half = row / 2;
    for (; half >= 4; half /= 4) tl_hadamard_two(x, num_values, half);
    if (half == 2) tl_hadamard_fours(x, num_values);
    if (half == 1) tl_hadamard_twos(x, num_values);
}

// In place; rows of a power of two of values. Nothing can be wrong with them: returns 0.
TL_CPU_ENTRY(tl_hadamard)(float *x, tl_i64 num_rows, tl_i64 num_values) {
    tl_i64 row = num_values, total = num_rows * num_values;
    for (; row > TL_HADAMARD_PART; row /= 4) tl_hadamard_two(x, total, row / 2);
    tl_i64 part = row > TL_HADAMARD_PART / 4 ? row : TL_HADAMARD_PART / 4 / row * row;
    for (tl_i64 first = 0; first < total; first += part)
        tl_hadamard_part(x + first, total - first < part ? total - first : part, row);
    return 0;
}
#endif
