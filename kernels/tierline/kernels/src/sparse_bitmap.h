// `sparse_bitmap` and what `topk` shares with it: a bit per value, first value in the most significant bit, and the
// values whose bit is set, close together. The oracle is numpy/sparse_bitmap.py.
#pragma once
#include "bits.h"

// Bitmaps are walked in blocks of 64 bytes, 512 values. Blocks are independent once it is known where each one's
// values start, which is a running sum of their counts.
TL_INLINE tl_i64 tl_sparse_num_blocks(tl_i64 num_values) { return (num_values + 511) / 512; }

#if !TL_GPU
TL_INLINE tl_i32 tl_ones(tl_u32 byte) {
    byte -= (byte >> 1) & 0x55u;
    byte = (byte & 0x33u) + ((byte >> 2) & 0x33u);
    return (tl_i32)((byte + (byte >> 4)) & 0x0fu);
}
#endif

// Each column is one byte of 8 values: 1 where a value is neither +0 nor -0, so also for NaN. Padding bits are 0.
TL_ENTRY(tl_sparse_mark)(const float *x, tl_u8 *bitmap, tl_i64 num_rows, tl_i64 num_values) {
    tl_i64 num_bytes = (num_values + 7) / 8;
    TL_ROWS(b, num_rows) {
        const float *row = x + b * num_values;
        tl_i64 num_done = 0;
#if !TL_GPU
        num_done = num_values / 64 * 8;
        tl_bits_blocks<TL_BITS_NONZERO>(row, bitmap + b * num_bytes, num_done / 8);
#endif
        TL_COLS(rest, num_bytes - num_done) {
            tl_i64 j = num_done + rest, first = 8 * j, num = num_values - first < 8 ? num_values - first : 8;
            tl_u32 byte = 0;
#if TL_GPU
            float v[8];
            tl_read_group(row, j, num_values, v);
#else
            const float *v = row + first;
#endif
            for (tl_i64 k = 0; k < num; ++k) byte |= (tl_u32)(v[k] != 0.0f) << (7 - k);
            bitmap[b * num_bytes + j] = (tl_u8)byte;
        }
    }
}

#if TL_GPU
// Set bits of the first `num` bytes, at most 64.
TL_INLINE tl_i32 tl_sparse_ones(const tl_u8 *bytes, tl_i64 num) {
    tl_i32 count = 0;
    for (tl_i64 j = 0; j < num; j += 8) count += __popcll(tl_read_word(bytes + j, (tl_i32)(num - j < 8 ? num - j : 8)));
    return count;
}

// How many bits are set before byte j of row b, over all rows; `bytes` is the row, `starts` has that of each block.
TL_INLINE tl_i64 tl_sparse_before(const tl_u8 *bytes, const tl_i64 *starts, tl_i64 b, tl_i64 j, tl_i64 num_blocks) {
    return starts[b * num_blocks + j / 64] + tl_sparse_ones(bytes + j / 64 * 64, j % 64);
}
#endif

// Set bits of each block.
TL_ENTRY(tl_sparse_count)(const tl_u8 *bitmap, tl_i64 *counts, tl_i64 num_rows, tl_i64 num_values) {
    tl_i64 num_bytes = (num_values + 7) / 8, num_blocks = tl_sparse_num_blocks(num_values);
    TL_ROWS(b, num_rows) {
        TL_COLS(block, num_blocks) {
            const tl_u8 *bytes = bitmap + b * num_bytes + 64 * block;
            tl_i64 num = num_bytes - 64 * block < 64 ? num_bytes - 64 * block : 64;
#if TL_GPU
            counts[b * num_blocks + block] = tl_sparse_ones(bytes, num);
#else
            tl_i32 count = 0;
            for (tl_i64 j = 0; j < num; ++j) count += tl_ones(bytes[j]);
            counts[b * num_blocks + block] = count;
#endif
        }
    }
}

#if !TL_GPU
// Rows behind one another: a bitmap, then nothing where its bits are clear, else head_bytes and ceil(n * bits / 8) bytes.
// Writes where each row starts and its n. Returns 1 where they do not end with the data.
TL_CPU_ENTRY(tl_sparse_walk_cpu)(const tl_u8 *data, tl_i64 num_bytes, tl_i64 *starts, tl_i64 *numbers, tl_i64 num_rows,
                                 tl_i64 bitmap_bytes, tl_i64 head_bytes, tl_i64 bits) {
    tl_i64 at = 0;
    for (tl_i64 b = 0; b < num_rows; ++b) {
        if (bitmap_bytes > num_bytes - at) return 1;
        const tl_u8 *bytes = data + at;
        tl_i64 count = 0, j = 0;
        for (; j + 8 <= bitmap_bytes; j += 8) {
            tl_u64 word;
            memcpy(&word, bytes + j, sizeof word);
            count += __builtin_popcountll(word);
        }
        for (; j < bitmap_bytes; ++j) count += tl_ones(bytes[j]);
        starts[b] = at;
        numbers[b] = count;
        at += bitmap_bytes + (count ? head_bytes + (count * bits + 7) / 8 : 0);
    }
    return at != num_bytes;
}
#endif

#if TL_X86
// 64 bits of a bitmap with value i in bit i: bytes keep their order, the bits of each are turned round.
TL_INLINE tl_u64 tl_sparse_word(const tl_u8 *bytes) {
    tl_u64 word;
    memcpy(&word, bytes, sizeof word);
    return tl_reverse_in_bytes(word);
}

// Gathers whole groups of 64 values and says how many values that were; 16 are written at once.
__attribute__((noinline, target("avx512f,popcnt"))) static tl_i64 tl_sparse_gather_wide(const float *in, const tl_u8 *bytes,
                                                                              tl_i64 num, float **out) {
    float *to = *out;
    tl_i64 i = 0;
    for (; i + 64 <= num; i += 64) {
        tl_u64 word = tl_sparse_word(bytes + i / 8);
        for (tl_i32 k = 0; k < 64; k += 16) {
            __mmask16 mask = (__mmask16)(word >> k);
            _mm512_storeu_ps(to, _mm512_maskz_compress_ps(mask, _mm512_loadu_ps(in + i + k)));
            to += __builtin_popcount(mask);
        }
    }
    *out = to;
    return i;
}

__attribute__((noinline, target("avx512f,popcnt"))) static tl_i64 tl_sparse_scatter_wide(float *out, const tl_u8 *bytes,
                                                                               tl_i64 num, const float **in) {
    const float *from = *in;
    tl_i64 i = 0;
    for (; i + 64 <= num; i += 64) {
        tl_u64 word = tl_sparse_word(bytes + i / 8);
        for (tl_i32 k = 0; k < 64; k += 16) {
            __mmask16 mask = (__mmask16)(word >> k);
            _mm512_storeu_ps(out + i + k, _mm512_maskz_expand_ps(mask, _mm512_loadu_ps(from)));
            from += __builtin_popcount(mask);
        }
    }
    *in = from;
    return i;
}
#endif

#if TL_GPU
// The values whose bit is set; starts holds where each block's go. A thread takes the 8 values of a byte, whose place
// follows from the bits before it in the block.
TL_ENTRY(tl_sparse_gather)(const float *x, const tl_u8 *bitmap, const tl_i64 *starts, float *values, tl_i64 num_rows,
                           tl_i64 num_values) {
    tl_i64 num_bytes = (num_values + 7) / 8, num_blocks = tl_sparse_num_blocks(num_values);
    TL_ROWS(b, num_rows) {
        const tl_u8 *bytes = bitmap + b * num_bytes;
        TL_COLS(j, num_bytes) {
            float v[8];
            tl_read_group(x + b * num_values, j, num_values, v);
            float *out = values + tl_sparse_before(bytes, starts, b, j, num_blocks);
            tl_u32 byte = bytes[j];
#pragma unroll
            for (int k = 0; k < 8; ++k)
                if (byte >> (7 - k) & 1u) *out++ = v[k];
        }
    }
}

// The next value where a bit is set, +0 elsewhere.
TL_ENTRY(tl_sparse_scatter)(const float *values, const tl_u8 *bitmap, const tl_i64 *starts, float *x, tl_i64 num_rows,
                            tl_i64 num_values) {
    tl_i64 num_bytes = (num_values + 7) / 8, num_blocks = tl_sparse_num_blocks(num_values);
    TL_ROWS(b, num_rows) {
        const tl_u8 *bytes = bitmap + b * num_bytes;
        TL_COLS(j, num_bytes) {
            const float *in = values + tl_sparse_before(bytes, starts, b, j, num_blocks);
            tl_u32 byte = bytes[j];
            float v[8];
#pragma unroll
            for (int k = 0; k < 8; ++k) v[k] = byte >> (7 - k) & 1u ? *in++ : 0.0f;
            tl_write_group(x + b * num_values, j, num_values, v);
        }
    }
}
#else
// The values whose bit is set; starts holds where each block's go. Every value is written and only marked ones advance,
// which needs no branch: `values` has room for 16 more than there are.
TL_ENTRY(tl_sparse_gather)(const float *x, const tl_u8 *bitmap, const tl_i64 *starts, float *values, tl_i64 num_rows,
                           tl_i64 num_values) {
    tl_i64 num_bytes = (num_values + 7) / 8, num_blocks = tl_sparse_num_blocks(num_values);
#if TL_X86
    bool wide = __builtin_cpu_supports("avx512f");
#endif
    TL_ROWS(b, num_rows) {
        TL_COLS(block, num_blocks) {
            const float *in = x + b * num_values + 512 * block;
            const tl_u8 *bytes = bitmap + b * num_bytes + 64 * block;
            tl_i64 num = num_values - 512 * block < 512 ? num_values - 512 * block : 512;
            float *out = values + starts[b * num_blocks + block];
            tl_i64 i = 0;
#if TL_X86
            if (wide) i = tl_sparse_gather_wide(in, bytes, num, &out);
#endif
            for (; i < num; ++i) {
                tl_u32 bit = ((tl_u32)bytes[i / 8] >> (7 - i % 8)) & 1u;
                *out = in[i];
                out += bit;
            }
        }
    }
}

// The next value where a bit is set, +0 elsewhere. `values` has 16 more than there are bits, read but not used.
TL_ENTRY(tl_sparse_scatter)(const float *values, const tl_u8 *bitmap, const tl_i64 *starts, float *x, tl_i64 num_rows,
                            tl_i64 num_values) {
    tl_i64 num_bytes = (num_values + 7) / 8, num_blocks = tl_sparse_num_blocks(num_values);
#if TL_X86
    bool wide = __builtin_cpu_supports("avx512f");
#endif
    TL_ROWS(b, num_rows) {
        TL_COLS(block, num_blocks) {
            float *out = x + b * num_values + 512 * block;
            const tl_u8 *bytes = bitmap + b * num_bytes + 64 * block;
            tl_i64 num = num_values - 512 * block < 512 ? num_values - 512 * block : 512;
            const float *in = values + starts[b * num_blocks + block];
            tl_i64 i = 0;
#if TL_X86
            if (wide) i = tl_sparse_scatter_wide(out, bytes, num, &in);
#endif
            for (; i < num; ++i) {
                tl_i32 bit = ((tl_i32)bytes[i / 8] >> (7 - i % 8)) & 1;
                out[i] = tl_float(tl_bits(*in) & -bit);
                in += bit;
            }
        }
    }
}
#endif
