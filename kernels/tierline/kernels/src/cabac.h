// `cabac`: codes of a quantiser through an adaptive binary arithmetic coder, each predicted from its neighbours. The
// oracle, which says what every number means, is numpy/cabac.py. One thread codes one stream: each bit needs the last.
#pragma once
#include "tl.h"

struct tl_cabac {
    const tl_i32 *tables;
    tl_i32 *model, *weights;
    tl_u8 *bytes;
    tl_i64 capacity, at;
    tl_u32 low, high, word;
};

enum {
    TL_CABAC_STRETCH = 0,
    TL_CABAC_SQUASH = 4096,
    TL_CABAC_RATE = 8192,
    TL_CABAC_SUM = 8320,
    TL_CABAC_VALUE = 9856,
    TL_CABAC_MEAN = 10112,
    TL_CABAC_WEIGHT = 1 << 22,
    TL_CABAC_MEANS = 12,
    TL_CABAC_VALUES = 17,
    TL_CABAC_SUMS = 24
};

TL_INLINE tl_u32 tl_cabac_next(tl_cabac *c) {
    tl_u32 byte = c->at < c->capacity ? c->bytes[c->at] : 0u;
    c->at++;
    return byte;
}

TL_INLINE void tl_cabac_put(tl_cabac *c, tl_u32 byte) {
    if (c->at < c->capacity) c->bytes[c->at] = (tl_u8)byte;
    c->at++;
}

// Codes one bit at tree node `node` under three contexts, whose models begin at slot[0..2].
TL_INLINE tl_u32 tl_cabac_bit(tl_cabac *c, const tl_i64 *slot, tl_i64 node, tl_u32 bit, bool decodes) {
    tl_i32 *weight = c->weights + 3 * node, stretched[3];
    tl_i64 sum = 0;
    for (tl_i32 m = 0; m < 3; ++m) {
        stretched[m] = c->tables[TL_CABAC_STRETCH + (c->model[slot[m] + node] >> 11)];
        sum += (tl_i64)weight[m] * stretched[m];
    }
    tl_i64 mixed = sum >> 16;
    mixed = mixed < -2047 ? -2047 : mixed > 2047 ? 2047 : mixed;
    tl_i32 chance = c->tables[TL_CABAC_SQUASH + 2048 + mixed];
    tl_u32 range = c->high - c->low;
    tl_u32 middle = c->low + (range >> 16) * (tl_u32)chance + (((range & 0xffffu) * (tl_u32)chance) >> 16);
    if (decodes) bit = c->word <= middle;
    if (bit)
        c->high = middle;
    else
        c->low = middle + 1;
    while (!((c->low ^ c->high) >> 24)) {
        if (decodes)
            c->word = (c->word << 8) | tl_cabac_next(c);
        else
            tl_cabac_put(c, c->low >> 24);
        c->low <<= 8;
        c->high = (c->high << 8) | 255u;
    }
    tl_i32 target = bit ? 65535 : 0, missed = (tl_i32)(bit << 16) - chance;
    for (tl_i32 m = 0; m < 3; ++m) {
        tl_i32 *state = c->model + slot[m] + node, seen = *state & 127, p = *state >> 7;
        p += ((target - p) * (c->tables[TL_CABAC_RATE + seen] >> 1)) >> 15;
        *state = (p << 7) | (seen < 127 ? seen + 1 : 127);
        weight[m] += (tl_i32)(((tl_i64)stretched[m] * missed + 8192) >> 14);
        weight[m] = tl_max(-TL_CABAC_WEIGHT, tl_min(weight[m], TL_CABAC_WEIGHT));
    }
    return bit;
}

TL_INLINE tl_i32 tl_cabac_get(const tl_u8 *row, tl_i64 i, tl_i32 bits, bool high_first) {
    if (high_first) return (row[i / 8] >> (7 - i % 8)) & 1;
    tl_i64 at = i * bits;
    tl_u32 word = row[at / 8];
    if (at % 8 + bits > 8) word |= (tl_u32)row[at / 8 + 1] << 8;
    return (tl_i32)((word >> (at % 8)) & ((1u << bits) - 1));
}

TL_INLINE void tl_cabac_set(tl_u8 *row, tl_i64 i, tl_i32 code, tl_i32 bits, bool high_first) {
    if (high_first) {
        row[i / 8] |= (tl_u8)(code << (7 - i % 8));
        return;
    }
    tl_i64 at = i * bits;
    row[at / 8] |= (tl_u8)(code << (at % 8));
    if (at % 8 + bits > 8) row[at / 8 + 1] |= (tl_u8)(code >> (8 - at % 8));
}

// All codes of a batch in order. Each row's packed codes lie `row_bytes` apart in `data`, where decoding finds zeros.
TL_INLINE void tl_cabac_walk(tl_cabac *c, tl_u8 *data, tl_i64 row_bytes, tl_i64 num_rows, tl_i64 num_planes,
                             tl_i64 height, tl_i64 width, tl_i32 bits, bool high_first, bool decodes) {
    const tl_i32 *sums = c->tables + TL_CABAC_SUM, *values = c->tables + TL_CABAC_VALUE;
    const tl_i32 *means = c->tables + TL_CABAC_MEAN;
    tl_i64 nodes = (tl_i64)1 << bits, area = height * width;
    for (tl_i64 b = 0; b < num_rows; ++b) {
        tl_u8 *row = data + b * row_bytes;
        for (tl_i64 plane = 0; plane < num_planes; ++plane) {
            tl_i64 total = 0;
            for (tl_i64 y = 0; y < height; ++y) {
                for (tl_i64 x = 0; x < width; ++x) {
                    tl_i64 seen = y * width + x, i = plane * area + seen;
#define TL_CABAC_AT(back) tl_cabac_get(row, i - (back), bits, high_first)
                    tl_i32 left = x ? TL_CABAC_AT(1) : 0, up = y ? TL_CABAC_AT(width) : left;
                    if (!x) left = up;
                    tl_i32 up_left = x && y ? TL_CABAC_AT(width + 1) : tl_min(left, up);
                    tl_i32 up_right = y && x + 1 < width ? TL_CABAC_AT(width - 1) : up;
                    tl_i32 left2 = x > 1 ? TL_CABAC_AT(2) : left, up2 = y > 1 ? TL_CABAC_AT(2 * width) : up;
                    tl_i32 before = plane ? TL_CABAC_AT(area) : 0;
#undef TL_CABAC_AT
                    tl_i32 mean = seen ? (tl_i32)((tl_u64)(4 * total) / (tl_u64)seen) : 4 * before;
                    tl_i64 third = (means[mean] * TL_CABAC_MEANS + means[up_left + up_right + left2 + up2]) * 2;
                    tl_i64 slot[3] = {
                        sums[2 * left + 2 * up + up_left + up_right] * nodes,
                        (TL_CABAC_SUMS + values[left] * TL_CABAC_VALUES + values[up]) * nodes,
                        (TL_CABAC_SUMS + TL_CABAC_VALUES * TL_CABAC_VALUES + third + (before > 0)) * nodes,
                    };
                    tl_i32 code = decodes ? 0 : tl_cabac_get(row, i, bits, high_first);
                    tl_u32 some = tl_cabac_bit(c, slot, 0, code > 0, decodes);
                    if (some && bits > 1) {
                        tl_i64 node = 1;
                        for (tl_i32 k = bits - 1; k >= 0; --k)
                            node = 2 * node + tl_cabac_bit(c, slot, node, (tl_u32)(code >> k) & 1u, decodes);
                        code = (tl_i32)(node - nodes);
                    } else {
                        code = (tl_i32)some;
                    }
                    if (decodes) tl_cabac_set(row, i, code, bits, high_first);
                    total += code;
                }
            }
        }
    }
}

// The stream of a batch; used[0] says how long it is, of which `capacity` bytes at most are written.
TL_ENTRY(tl_cabac_encode)(const tl_u8 *data, const tl_i32 *tables, tl_i32 *model, tl_i32 *weights, tl_u8 *stream,
                          tl_i64 capacity, tl_i64 *used, tl_i64 row_bytes, tl_i64 num_rows, tl_i64 num_planes,
                          tl_i64 height, tl_i64 width, tl_i32 bits, tl_i32 high_first) {
    TL_ROWS(row, 1) TL_COLS(once, 1) {
        tl_cabac c = {tables, model, weights, stream, capacity, row + once, 0u, 0xffffffffu, 0u};
        tl_cabac_walk(&c, (tl_u8 *)data, row_bytes, num_rows, num_planes, height, width, bits, high_first != 0, false);
        for (tl_i32 k = 24; k >= 0; k -= 8) tl_cabac_put(&c, (c.low >> k) & 255u);
        used[0] = c.at;
    }
}

// Codes of a stream into `data`; used[0] says how many bytes that took, those beyond its end being zeros.
TL_ENTRY(tl_cabac_decode)(const tl_u8 *stream, tl_i64 num_bytes, const tl_i32 *tables, tl_i32 *model, tl_i32 *weights,
                          tl_u8 *data, tl_i64 *used, tl_i64 row_bytes, tl_i64 num_rows, tl_i64 num_planes,
                          tl_i64 height, tl_i64 width, tl_i32 bits, tl_i32 high_first) {
    TL_ROWS(row, 1) TL_COLS(once, 1) {
        tl_cabac c = {tables, model, weights, (tl_u8 *)stream, num_bytes, row + once, 0u, 0xffffffffu, 0u};
        for (tl_i32 k = 0; k < 4; ++k) c.word = (c.word << 8) | tl_cabac_next(&c);
        tl_cabac_walk(&c, data, row_bytes, num_rows, num_planes, height, width, bits, high_first != 0, true);
        used[0] = c.at;
    }
}
