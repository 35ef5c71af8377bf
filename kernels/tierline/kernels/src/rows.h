// Rows of bytes from one layout to another, at any address: stages of a codec write and read rows that lie close
// together, a payload has heads and bodies in turns.
#pragma once
#include "tl.h"

#if TL_GPU
TL_INLINE void tl_rows_word(const tl_u8 *from, tl_u8 *to, tl_i64 word, tl_i64 num_bytes) {
    tl_i32 num = (tl_i32)(num_bytes - 8 * word < 8 ? num_bytes - 8 * word : 8);
    tl_write_word(to + 8 * word, tl_read_word(from + 8 * word, num), num);
}

// `num_bytes` of each row, rows so many bytes apart.
TL_ENTRY(tl_rows_move)(const tl_u8 *from, tl_u8 *to, tl_i64 num_rows, tl_i64 num_bytes, tl_i64 from_stride,
                       tl_i64 to_stride) {
    TL_ROWS(b, num_rows)
        TL_COLS(word, (num_bytes + 7) / 8) tl_rows_word(from + b * from_stride, to + b * to_stride, word, num_bytes);
}
#endif

// Runs of bytes: places[3 * b ...] holds the offset of run b in `from`, its offset in `to` and its length.
TL_ENTRY(tl_rows_place)(const tl_u8 *from, tl_u8 *to, const tl_i64 *places, tl_i64 num_rows) {
    TL_ROWS(b, num_rows) {
        const tl_i64 *place = places + 3 * b;
#if TL_GPU
        TL_COLS(word, (place[2] + 7) / 8) tl_rows_word(from + place[0], to + place[1], word, place[2]);
#else
        memcpy(to + place[1], from + place[0], place[2]);
#endif
    }
}

#if TL_GPU
// Two integers in turns.
TL_ENTRY(tl_rows_fill)(tl_i32 *out, tl_i64 num, tl_i32 even, tl_i32 odd) {
    TL_COLS(i, num) out[i] = i % 2 ? odd : even;
}
#endif
