// CRC-32 by multiplication without carries: bytes are folded into 16 that have the same CRC, which zlib then takes.
//
// A message is a polynomial over GF(2), and its CRC what is left of it modulo P. Its first 128 bits weigh x^D more than
// those D bits behind them; so they may be replaced by themselves times x^D mod P, added to the latter. In the mirrored
// order of bits that CRC-32 has, the halves of 128 bits are multiplied by the mirrored x^(D+32) and x^(D-32) mod P.
// Method: Gopal et al., "Fast CRC Computation for Generic Polynomials Using PCLMULQDQ Instruction", Intel 2009.
#pragma once
#include "tl.h"

#if TL_X86
// x^544, x^480 and x^160, x^96 modulo P, mirrored in 33 bits: folding over four lanes of 16 bytes, and over one.
#define TL_CRC32_FAR 0x1c6e41596LL, 0x154442bd4LL
#define TL_CRC32_NEAR 0x0ccaa009eLL, 0x1751997d0LL
#define TL_CRC32_TARGET __attribute__((target("pclmul,sse4.1")))

static inline TL_CRC32_TARGET __m128i tl_crc32_step(__m128i before, __m128i weights, __m128i next) {
    __m128i low = _mm_clmulepi64_si128(before, weights, 0x00), high = _mm_clmulepi64_si128(before, weights, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

// `num_blocks` of 64 bytes, one at least; the CRC's start, all ones, is added to the first four bytes.
static TL_CRC32_TARGET void tl_crc32_blocks(const tl_u8 *data, tl_i64 num_blocks, tl_u8 *out) {
    const __m128i *at = (const __m128i *)data, far = _mm_set_epi64x(TL_CRC32_FAR), near = _mm_set_epi64x(TL_CRC32_NEAR);
    __m128i lane[4];
    for (int k = 0; k < 4; ++k) lane[k] = _mm_loadu_si128(at + k);
    lane[0] = _mm_xor_si128(lane[0], _mm_cvtsi32_si128(-1));
    for (tl_i64 block = 1; block < num_blocks; ++block)
        for (int k = 0; k < 4; ++k) lane[k] = tl_crc32_step(lane[k], far, _mm_loadu_si128(at + 4 * block + k));
    for (int k = 1; k < 4; ++k) lane[k] = tl_crc32_step(lane[k - 1], near, lane[k]);
    _mm_storeu_si128((__m128i *)out, lane[3]);
}
#endif

// 16 bytes for `num_blocks` of 64; returns 0 where the processor has no such multiplication.
#if !TL_GPU
extern "C" __attribute__((visibility("default"))) tl_i32 tl_crc32_fold(const tl_u8 *data, tl_i64 num_blocks, tl_u8 *out) {
#if TL_X86
    if (__builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1")) {
        tl_crc32_blocks(data, num_blocks, out);
        return 1;
    }
#endif
    (void)data, (void)num_blocks, (void)out;
    return 0;
}
#endif
