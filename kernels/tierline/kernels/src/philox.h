// Philox4x32-10 (Salmon et al., SC 2011): random words by counter. The oracle is numpy/philox.py.
#pragma once
#include "tl.h"

struct tl_u32x4 {
    tl_u32 w0, w1, w2, w3;
};

// The four words of counter `block + upper * 2^64` under a 64-bit key: words 4 * block and up of the key's stream.
TL_INLINE tl_u32x4 tl_philox4x32(tl_u64 block, tl_u64 upper, tl_u64 key) {
    tl_u32x4 c = {(tl_u32)block, (tl_u32)(block >> 32), (tl_u32)upper, (tl_u32)(upper >> 32)};
    tl_u32 k0 = (tl_u32)key, k1 = (tl_u32)(key >> 32);
    for (tl_i32 round = 0; round < 10; ++round) {
        tl_u64 product0 = (tl_u64)c.w0 * 0xD2511F53u, product2 = (tl_u64)c.w2 * 0xCD9E8D57u;
        c = {(tl_u32)(product2 >> 32) ^ c.w1 ^ k0, (tl_u32)product2, (tl_u32)(product0 >> 32) ^ c.w3 ^ k1,
             (tl_u32)product0};
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return c;
}

// A value in [0, 1): the upper 24 bits of a word, exact in a float.
TL_INLINE float tl_uniform(tl_u32 word) { return (float)(tl_i32)(word >> 8) * 5.9604644775390625e-8f; }

// The first words of a stream: no codec launches it, checks of the generator alone do.
TL_ENTRY(tl_philox_words)(tl_u32 *out, tl_i64 num_words, tl_u64 key, tl_u64 upper) {
    TL_COLS(block, (num_words + 3) / 4) {
        tl_u32x4 c = tl_philox4x32(block, upper, key);
        const tl_u32 w[4] = {c.w0, c.w1, c.w2, c.w3};
        for (tl_i64 k = 0; k < 4 && 4 * block + k < num_words; ++k) out[4 * block + k] = w[k];
    }
}
