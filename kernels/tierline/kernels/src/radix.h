// `radix`: digits of base `levels`, several to a word. The oracle and the layout are in numpy/radix.py: a row is
// num_words words; digit j of word w is value j * num_words + w; byte k of word w lies at k * num_words + w. So the
// words beside each other are beside each other in every plane, and a processor works on many at once.
#pragma once
#include "tl.h"

#if TL_GPU
#define TL_RADIX_BLOCK 1
#else
#define TL_RADIX_BLOCK 512
#endif

// Which symbol a value is: its distance from `low`, modulo the range of its type, so that a value outside of the
// alphabet is a symbol of `levels` or more. Signed integers come as the unsigned ones of their width.
template <class T> TL_INLINE tl_u32 tl_radix_symbol(T value, tl_i32 low) { return (T)(value - (T)low); }
// The addition leaves an integer below 2^22 in the low bits of the sum. What is not one converts back to another value.
TL_INLINE tl_u32 tl_radix_symbol(float value, tl_i32 low) {
    tl_i32 whole = (tl_i32)((tl_u32)tl_bits(value + 12582912.0f) - 0x4b400000u);
    return (float)whole == value ? (tl_u32)whole - (tl_u32)low : 0xffffffffu;
}

template <class T> TL_INLINE void tl_radix_value(T *value, tl_u32 symbol, tl_i32 low) { *value = (T)(symbol + (T)low); }
TL_INLINE void tl_radix_value(float *value, tl_u32 symbol, tl_i32 low) { *value = (float)((tl_i32)symbol + low); }

// The upper half of a product.
TL_INLINE tl_u32 tl_radix_high(tl_u32 a, tl_u32 b) { return (tl_u32)(((tl_u64)a * b) >> 32); }
TL_INLINE tl_u64 tl_radix_high(tl_u64 a, tl_u64 b) {
#if TL_GPU
    return __umul64hi(a, b);
#else
    return (tl_u64)(((unsigned __int128)a * b) >> 64);
#endif
}

// Take the lowest digit off a word. `inverse` is the largest word divided by levels: the quotient made with it is the
// true one or one less.
template <class Word> TL_INLINE tl_u32 tl_radix_digit(Word *word, Word levels, Word inverse) {
    Word quotient = tl_radix_high(*word, inverse), digit = *word - quotient * levels;
    Word more = digit >= levels;
    *word = quotient + more;
    return (tl_u32)(digit - (more ? levels : 0));
}

template <class Word, class T>
TL_INLINE void tl_radix_pack_row(const T *x, tl_u8 *out, tl_i32 *bad, tl_i64 num_values, tl_i64 num_words,
                                 tl_i32 num_digits, tl_i32 word_bytes, tl_i32 low, tl_u32 levels) {
    tl_u32 wrong = 0;
    TL_COLS(block, (num_words + TL_RADIX_BLOCK - 1) / TL_RADIX_BLOCK) {
        tl_i64 first = block * TL_RADIX_BLOCK;
        tl_i32 num = (tl_i32)(num_words - first < TL_RADIX_BLOCK ? num_words - first : TL_RADIX_BLOCK);
        Word word[TL_RADIX_BLOCK];
        for (tl_i32 k = 0; k < num; ++k) word[k] = 0;
        for (tl_i32 j = num_digits - 1; j >= 0; --j) {  // only the last plane may be short: there the digits are 0
            const T *plane = x + j * num_words + first;
            tl_i64 left = num_values - j * num_words - first;
            tl_i32 here = (tl_i32)(left < num ? left : num);
            for (tl_i32 k = 0; k < here; ++k) {
                tl_u32 symbol = tl_radix_symbol(plane[k], low);
                wrong |= symbol >= levels;
                word[k] = word[k] * levels + symbol;
            }
        }
        for (tl_i32 byte = 0; byte < word_bytes; ++byte)
            for (tl_i32 k = 0; k < num; ++k) out[byte * num_words + first + k] = (tl_u8)(word[k] >> (8 * byte));
    }
    if (wrong) TL_OR_INTO(bad, 1);
}

// A word of 64 bits is first cut into pieces of 32, each of as many digits as fit, since division is quick for these.
template <class Word, class T>
TL_INLINE void tl_radix_unpack_row(const tl_u8 *data, T *x, tl_i32 *bad, tl_i64 num_values, tl_i64 num_words,
                                   tl_i32 num_digits, tl_i32 word_bytes, tl_i32 low, tl_u32 levels) {
    tl_u32 left_over = 0, inverse = 0xffffffffu / levels;
    tl_i32 piece_digits = 1;
    tl_u64 piece = levels;
    for (; piece_digits < num_digits && piece * levels <= 0xffffffffu; ++piece_digits) piece *= levels;
    tl_u64 piece_inverse = ~(tl_u64)0 / piece;
    TL_COLS(block, (num_words + TL_RADIX_BLOCK - 1) / TL_RADIX_BLOCK) {
        tl_i64 first = block * TL_RADIX_BLOCK;
        tl_i32 num = (tl_i32)(num_words - first < TL_RADIX_BLOCK ? num_words - first : TL_RADIX_BLOCK);
        Word word[TL_RADIX_BLOCK];
        tl_u32 part[TL_RADIX_BLOCK];
        for (tl_i32 k = 0; k < num; ++k) word[k] = 0;
        for (tl_i32 byte = 0; byte < word_bytes; ++byte)
            for (tl_i32 k = 0; k < num; ++k) word[k] |= (Word)data[byte * num_words + first + k] << (8 * byte);
        for (tl_i32 start = 0; start < num_digits; start += piece_digits) {
            tl_i32 stop = tl_min(start + piece_digits, num_digits);
            if (stop < num_digits) {
                for (tl_i32 k = 0; k < num; ++k) part[k] = tl_radix_digit(&word[k], (Word)piece, (Word)piece_inverse);
            } else {
                for (tl_i32 k = 0; k < num; ++k) {
                    part[k] = (tl_u32)word[k];
                    left_over |= (tl_u32)((tl_u64)word[k] >> 32);
                }
            }
            for (tl_i32 j = start; j < stop; ++j) {
                T *plane = x + j * num_words + first;
                tl_i64 left = num_values - j * num_words - first;
                tl_i32 here = (tl_i32)(left < num ? left : num);
                for (tl_i32 k = 0; k < here; ++k)
                    tl_radix_value(&plane[k], tl_radix_digit(&part[k], levels, inverse), low);
            }
            for (tl_i32 k = 0; k < num; ++k) left_over |= part[k];  // a digit too many, or one beyond the last value
        }
    }
    if (left_over) TL_OR_INTO(bad, 1);
}

// Rows of packed bytes are `stride` apart. bad[0] becomes 1 if a value is not in the alphabet.
#define TL_RADIX_PACK(T)                                                                                              \
    (const T *x, tl_u8 *out, tl_i32 *bad, tl_i64 num_rows, tl_i64 num_values, tl_i64 stride, tl_i64 num_words,        \
     tl_i32 num_digits, tl_i32 word_bytes, tl_i32 low, tl_i32 levels) {                                               \
        TL_ROWS(b, num_rows) {                                                                                        \
            const T *row = x + b * num_values;                                                                        \
            tl_u8 *coded = out + b * stride;                                                                          \
            if (word_bytes <= 4)                                                                                      \
                tl_radix_pack_row<tl_u32>(row, coded, bad, num_values, num_words, num_digits, word_bytes, low,        \
                                          levels);                                                                    \
            else                                                                                                      \
                tl_radix_pack_row<tl_u64>(row, coded, bad, num_values, num_words, num_digits, word_bytes, low,        \
                                          levels);                                                                    \
        }                                                                                                             \
    }

// bad[0] becomes 1 if a word holds more than its digits.
#define TL_RADIX_UNPACK(T)                                                                                            \
    (const tl_u8 *data, T *x, tl_i32 *bad, tl_i64 num_rows, tl_i64 num_values, tl_i64 stride, tl_i64 num_words,       \
     tl_i32 num_digits, tl_i32 word_bytes, tl_i32 low, tl_i32 levels) {                                               \
        TL_ROWS(b, num_rows) {                                                                                        \
            const tl_u8 *coded = data + b * stride;                                                                   \
            T *row = x + b * num_values;                                                                              \
            if (word_bytes <= 4)                                                                                      \
                tl_radix_unpack_row<tl_u32>(coded, row, bad, num_values, num_words, num_digits, word_bytes, low,      \
                                            levels);                                                                  \
            else                                                                                                      \
                tl_radix_unpack_row<tl_u64>(coded, row, bad, num_values, num_words, num_digits, word_bytes, low,      \
                                            levels);                                                                  \
        }                                                                                                             \
    }

TL_ENTRY(tl_radix_pack_u8) TL_RADIX_PACK(tl_u8)
TL_ENTRY(tl_radix_pack_u16) TL_RADIX_PACK(tl_u16)
TL_ENTRY(tl_radix_pack_u32) TL_RADIX_PACK(tl_u32)
TL_ENTRY(tl_radix_pack_f32) TL_RADIX_PACK(float)
TL_ENTRY(tl_radix_unpack_u8) TL_RADIX_UNPACK(tl_u8)
TL_ENTRY(tl_radix_unpack_u16) TL_RADIX_UNPACK(tl_u16)
TL_ENTRY(tl_radix_unpack_u32) TL_RADIX_UNPACK(tl_u32)
TL_ENTRY(tl_radix_unpack_f32) TL_RADIX_UNPACK(float)
