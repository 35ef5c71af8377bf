// What every codec header is written with: one text that a C++ compiler makes a CPU library of, and nvcc or NVRTC a
// cubin. An entry walks rows and columns; on a GPU rows are spread over blockIdx.y and columns over the threads of x,
// on a CPU both are plain loops that the compiler vectorises. Reductions are free of order, so both give equal bytes.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define TL_GPU 1
#define TL_X86 0
#else
#define TL_GPU 0
#include <cstdint>
#include <cstring>
#endif

typedef long long tl_i64;
typedef int tl_i32;
typedef unsigned int tl_u32;
typedef unsigned long long tl_u64;
typedef unsigned short tl_u16;
typedef unsigned char tl_u8;

#if TL_GPU
#define TL_INLINE __device__ __forceinline__
#define TL_ENTRY(name) extern "C" __global__ void name
#define TL_ROWS(b, num_rows) for (tl_i64 b = blockIdx.y; b < (num_rows); b += gridDim.y)
#define TL_COLS(i, num_cols)                                                                                          \
    for (tl_i64 i = blockIdx.x * (tl_i64)blockDim.x + threadIdx.x; i < (num_cols); i += (tl_i64)gridDim.x * blockDim.x)
// Combine one thread's partial result with the row's. Integers only: any order gives the same bits. MIN and MAX stand
// where all threads of a row pass, outside TL_COLS; OR may stand anywhere.
#define TL_MIN_INTO(place, value) tl_warp_min_into((place), (value))
#define TL_MAX_INTO(place, value) tl_warp_max_into((place), (value))
#define TL_OR_INTO(place, value) atomicOr((place), (value))
#define TL_TILE 8
#define TL_ADD_INTO(place, value) atomicAdd((place), (value))
#else
#define TL_INLINE static inline __attribute__((always_inline))
// One portable library: the loader picks the widest clone that this processor has. Elsewhere the baseline serves.
// Compilers that know no processor levels here (GCC below 12, clang) get clones by feature.
#if defined(__x86_64__) && defined(__gnu_linux__) && !defined(TL_NO_CLONES)
#define TL_X86 1
#include <immintrin.h>
#endif
#ifndef TL_X86
#define TL_X86 0
#endif
#if !TL_X86
#define TL_CLONES
#elif __GNUC__ >= 12 && !defined(__clang__)
#define TL_CLONES __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define TL_CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#endif
#define TL_ENTRY(name) extern "C" __attribute__((visibility("default"))) TL_CLONES void name
// An entry of the CPU library alone: does in one call what a GPU does in several launches, and returns what other
// entries leave in bad[0], since every argument costs a caller in Python time.
#define TL_CPU_ENTRY(name) extern "C" __attribute__((visibility("default"))) TL_CLONES tl_i32 name
#define TL_ROWS(b, num_rows) for (tl_i64 b = 0; b < (num_rows); ++b)
#define TL_COLS(i, num_cols) for (tl_i64 i = 0; i < (num_cols); ++i)
#define TL_MIN_INTO(place, value) (*(place) = tl_min(*(place), (value)))
#define TL_MAX_INTO(place, value) (*(place) = tl_max(*(place), (value)))
#define TL_OR_INTO(place, value) (*(place) |= (value))
// Values that one turn of a column loop takes where codes are narrower than a byte; a multiple of 8. On a CPU two short
// loops over a tile in the first-level cache vectorise where one long loop would not.
#define TL_TILE 512
#define TL_ADD_INTO(place, value) (*(place) += (value))
#endif

TL_INLINE tl_i32 tl_min(tl_i32 a, tl_i32 b) { return a < b ? a : b; }
TL_INLINE tl_i32 tl_max(tl_i32 a, tl_i32 b) { return a > b ? a : b; }

#if !TL_GPU
// How many values of a row lie before its first 64-byte line begins. A loop that starts there touches one line where one
// that starts at the row touches two, since arrays begin anywhere.
TL_INLINE tl_i64 tl_head(const float *row, tl_i64 num_values) {
    tl_i64 head = (tl_i64)(-(tl_u64)row % 64 / 4);
    return head < num_values ? head : num_values;
}
#endif

TL_INLINE tl_i32 tl_bits(float x) {
#if TL_GPU
    return __float_as_int(x);
#else
    tl_i32 bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
#endif
}

TL_INLINE float tl_float(tl_i32 bits) {
#if TL_GPU
    return __int_as_float(bits);
#else
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
#endif
}

// An integer in the order of the floats: NaN lies beyond the infinity of its sign, so one range check finds it.
TL_INLINE tl_i32 tl_key(float x) { return tl_bits(x) ^ ((tl_bits(x) >> 31) & 0x7fffffff); }
TL_INLINE float tl_unkey(tl_i32 key) { return tl_float(key ^ ((key >> 31) & 0x7fffffff)); }

#include "tl_gpu.h"
