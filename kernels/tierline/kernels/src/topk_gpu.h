// `topk` where everything stays on a GPU: histograms that find the k-th largest magnitude of a row, which digit each of
// them settles, ties in order, and positions after Elias and Fano. The oracle is numpy/topk.py.
#pragma once
#include "sparse_bitmap.h"
#include "topk.h"
#if TL_GPU

// For the magnitudes of row b whose bits from `shift + 11` up are above[b]: how many have which 11 bits from `shift` up,
// added to counts[2048 * b ...], which the caller has cleared.
TL_ENTRY(tl_topk_histogram)(const float *x, const tl_i32 *above, tl_i32 *counts, tl_i64 num_rows, tl_i64 num_values,
                            tl_i32 shift) {
    TL_ROWS(b, num_rows) {
        const float *row = x + b * num_values;
        __shared__ tl_i32 bins[2048];
        tl_shared_clear(bins, 2048);
        TL_COLS(i, num_values) {
            tl_u32 key = tl_magnitude(row[i]) >> shift;
            if ((tl_i32)(key >> 11) == above[b]) TL_ADD_INTO(&bins[key & 2047u], 1);
        }
        tl_shared_add(bins, 2048, counts + 2048 * b);
    }
}

// From a row's histogram: which bin holds the value that has `wanted` values from the top, and how many of that bin are.
TL_ENTRY(tl_topk_digit)(const tl_i32 *counts, const tl_i32 *above, const tl_i32 *wanted, tl_i32 *found, tl_i32 *left,
                        tl_i64 num_rows) {
    TL_COLS(b, num_rows) {
        const tl_i32 *bins = counts + 2048 * b;
        tl_i32 more = wanted[b], bin = 2047;
        for (; bin > 0 && bins[bin] < more; --bin) more -= bins[bin];
        found[b] = above[b] << 11 | bin;
        left[b] = more;
    }
}

// A bit for each magnitude that equals least[b], to be counted.
TL_ENTRY(tl_topk_equal)(const float *x, const tl_i32 *least, tl_u8 *bitmap, tl_i64 num_rows, tl_i64 num_values) {
    tl_i64 num_bytes = (num_values + 7) / 8;
    TL_ROWS(b, num_rows) {
        tl_u32 limit = (tl_u32)least[b];
        TL_COLS(j, num_bytes) {
            tl_i64 num = num_values - 8 * j;
            float v[8];
            tl_read_group(x + b * num_values, j, num_values, v);
            tl_u32 byte = 0;
#pragma unroll
            for (int k = 0; k < 8; ++k) byte |= (tl_u32)(k < num && tl_magnitude(v[k]) == limit) << (7 - k);
            bitmap[b * num_bytes + j] = (tl_u8)byte;
        }
    }
}

// A bit for each magnitude above least[b] and for the first left[b] of those that equal it, which `equal` marks and
// `starts` counts. bad[0] becomes 1 if what is dropped is NaN or infinite.
TL_ENTRY(tl_topk_keep)(const float *x, const tl_i32 *least, const tl_i32 *left, const tl_u8 *equal,
                       const tl_i64 *starts, tl_u8 *bitmap, tl_i32 *bad, tl_i64 num_rows, tl_i64 num_values) {
    tl_i64 num_bytes = (num_values + 7) / 8, num_blocks = tl_sparse_num_blocks(num_values);
    TL_ROWS(b, num_rows) {
        tl_u32 limit = (tl_u32)least[b];
        TL_COLS(j, num_bytes) {
            tl_i64 num = num_values - 8 * j;
            tl_i64 before = tl_sparse_before(equal + b * num_bytes, starts, b, j, num_blocks) - starts[b * num_blocks];
            float v[8];
            tl_read_group(x + b * num_values, j, num_values, v);
            tl_u32 byte = 0, drops = 0;
#pragma unroll
            for (int k = 0; k < 8; ++k) {
                if (k >= num) continue;
                tl_u32 size = tl_magnitude(v[k]), ties = size == limit, keeps = size > limit || (ties && before < left[b]);
                before += ties;
                byte |= keeps << (7 - k);
                drops |= !keeps && size >= 0x7f800000u;
            }
            bitmap[b * num_bytes + j] = (tl_u8)byte;
            if (drops) TL_OR_INTO(bad, 1);
        }
    }
}

// Positions of set bits in their row. bad[0] becomes 1 for set padding bits, 2 or more for another number of them.
TL_ENTRY(tl_topk_list)(const tl_u8 *bitmap, const tl_i64 *starts, tl_i32 *positions, tl_i32 *bad, tl_i64 num_rows,
                       tl_i64 num_values, tl_i64 num_chosen) {
    tl_i64 num_bytes = (num_values + 7) / 8, num_blocks = tl_sparse_num_blocks(num_values);
    TL_ROWS(b, num_rows) {
        const tl_u8 *bytes = bitmap + b * num_bytes;
        tl_i64 first = starts[b * num_blocks];
        TL_COLS(j, num_bytes) {
            tl_i64 i = tl_sparse_before(bytes, starts, b, j, num_blocks) - first;
            tl_u32 byte = bytes[j];
            for (int k = 0; k < 8; ++k) {
                if (!(byte >> (7 - k) & 1u)) continue;
                if (8 * j + k >= num_values)
                    TL_OR_INTO(bad, 1);
                else if (i < num_chosen)
                    positions[b * num_chosen + i] = (tl_i32)(8 * j + k);
                ++i;
            }
            if (j == 0 && starts[(b + 1) * num_blocks] - first != num_chosen) TL_OR_INTO(bad, 2);
        }
    }
}

TL_ENTRY(tl_topk_gather)(const float *x, const tl_i32 *positions, float *values, tl_i64 num_rows, tl_i64 num_values,
                         tl_i64 num_chosen) {
    TL_ROWS(b, num_rows)
        TL_COLS(i, num_chosen) values[b * num_chosen + i] = x[b * num_values + positions[b * num_chosen + i]];
}

// Into rows that are cleared. bad[0] becomes 4 or more for positions that do not ascend or lie behind the row's end.
TL_ENTRY(tl_topk_scatter)(const float *values, const tl_i32 *positions, float *x, tl_i32 *bad, tl_i64 num_rows,
                          tl_i64 num_values, tl_i64 num_chosen) {
    TL_ROWS(b, num_rows) {
        const tl_i32 *row = positions + b * num_chosen;
        TL_COLS(i, num_chosen) {
            tl_i32 position = row[i];
            if (position < 0 || position >= num_values || (i && row[i - 1] >= position))
                TL_OR_INTO(bad, 4);
            else
                x[b * num_values + position] = values[b * num_chosen + i];
        }
    }
}

// `low_bits` bits of each position as one stream, then a bit for position i at (position >> low_bits) + i, `num_bytes`
// in all, rows `stride` apart. A thread makes a byte: it finds its first position by halving.
TL_ENTRY(tl_topk_pack)(const tl_i32 *positions, tl_u8 *out, tl_i64 num_rows, tl_i64 num_chosen, tl_i64 stride,
                       tl_i32 low_bits, tl_i64 num_low_bytes, tl_i64 num_bytes) {
    TL_ROWS(b, num_rows) {
        const tl_i32 *row = positions + b * num_chosen;
        TL_COLS(q, num_bytes) {
            tl_u32 byte = 0;
            if (q < num_low_bytes) {
                tl_i64 i = 8 * q / low_bits;
                tl_i32 bit = (tl_i32)(8 * q - i * low_bits);
                for (int k = 0; k < 8 && i < num_chosen; ++k) {
                    byte |= ((tl_u32)row[i] >> bit & 1u) << k;
                    if (++bit == low_bits) bit = 0, ++i;
                }
            } else {
                tl_i64 first = 8 * (q - num_low_bytes), i = 0;
                for (tl_i64 end = num_chosen; i < end;) {
                    tl_i64 middle = (i + end) / 2;
                    if ((row[middle] >> low_bits) + middle < first)
                        i = middle + 1;
                    else
                        end = middle;
                }
                for (; i < num_chosen && (row[i] >> low_bits) + i < first + 8; ++i)
                    byte |= 1u << ((row[i] >> low_bits) + i - first);
            }
            out[b * stride + q] = (tl_u8)byte;
        }
    }
}

// Undoes it as far as `high`, the rows' last parts close together with what `starts` counts in them, has bits.
// bad[0] becomes 1 for set padding bits, 2 or more for another number of positions.
TL_ENTRY(tl_topk_unpack)(const tl_u8 *data, const tl_u8 *high, const tl_i64 *starts, tl_i32 *positions, tl_i32 *bad,
                         tl_i64 num_rows, tl_i64 num_chosen, tl_i64 stride, tl_i32 low_bits, tl_i64 num_high_bits) {
    tl_i64 num_bytes = (num_high_bits + 7) / 8, num_blocks = tl_sparse_num_blocks(8 * num_bytes);
    TL_ROWS(b, num_rows) {
        const tl_u8 *low = data + b * stride, *bytes = high + b * num_bytes;
        tl_i64 first = starts[b * num_blocks], num_low = num_chosen * low_bits;
        TL_COLS(q, num_bytes) {
            tl_i64 i = tl_sparse_before(bytes, starts, b, q, num_blocks) - first;
            for (int k = 0; k < 8; ++k) {
                if (!(bytes[q] >> k & 1u)) continue;
                if (8 * q + k >= num_high_bits) TL_OR_INTO(bad, 1);
                if (i < num_chosen) {
                    tl_i64 position = (8 * q + k - i) << low_bits;
                    for (tl_i32 bit = 0; bit < low_bits; ++bit) {
                        tl_i64 at = i * low_bits + bit;
                        position |= (tl_i64)(low[at / 8] >> at % 8 & 1u) << bit;
                    }
                    positions[b * num_chosen + i] = (tl_i32)(position < 0x7fffffff ? position : 0x7fffffff);
                }
                ++i;
            }
            if (q == 0 && num_low % 8 && low[num_low / 8] >> num_low % 8) TL_OR_INTO(bad, 1);
            if (q == 0 && starts[(b + 1) * num_blocks] - first != num_chosen) TL_OR_INTO(bad, 2);
        }
    }
}
#endif
