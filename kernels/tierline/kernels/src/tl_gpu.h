// How the entries touch memory on a GPU: groups of 8 neighbouring values per thread, in 16-byte accesses where the
// addresses allow it, so that a warp moves whole sectors; and one atomic per warp. Nothing here on a CPU.
#pragma once
#include "tl.h"
#if TL_GPU

// Group `group` of a row: values past the end repeat its first one, which no minimum, maximum or NaN test notices.
TL_INLINE void tl_read_group(const float *row, tl_i64 group, tl_i64 num_values, float v[8]) {
    const float *x = row + 8 * group;
    tl_i64 left = num_values - 8 * group;
    if (left >= 8 && (tl_u64)x % 16 == 0) {
        float4 a = ((const float4 *)x)[0], b = ((const float4 *)x)[1];
        v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w, v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
    } else {
#pragma unroll
        for (int k = 0; k < 8; ++k) v[k] = x[k < left ? k : 0];
    }
}

TL_INLINE void tl_write_group(float *row, tl_i64 group, tl_i64 num_values, const float v[8]) {
    float *x = row + 8 * group;
    tl_i64 left = num_values - 8 * group;
    if (left >= 8 && (tl_u64)x % 16 == 0) {
        ((float4 *)x)[0] = make_float4(v[0], v[1], v[2], v[3]);
        ((float4 *)x)[1] = make_float4(v[4], v[5], v[6], v[7]);
    } else {
#pragma unroll
        for (int k = 0; k < 8; ++k)
            if (k < left) x[k] = v[k];
    }
}

// The lowest `num_bytes` bytes, 1 to 8, of a little-endian word.
TL_INLINE tl_u64 tl_read_word(const tl_u8 *data, tl_i32 num_bytes) {
    if (num_bytes == 8 && (tl_u64)data % 8 == 0) return *(const tl_u64 *)data;
    if (num_bytes == 4 && (tl_u64)data % 4 == 0) return *(const tl_u32 *)data;
    tl_u64 word = 0;
    for (tl_i32 k = 0; k < num_bytes; ++k) word |= (tl_u64)data[k] << (8 * k);
    return word;
}

TL_INLINE void tl_write_word(tl_u8 *data, tl_u64 word, tl_i32 num_bytes) {
    if (num_bytes == 8 && (tl_u64)data % 8 == 0)
        *(tl_u64 *)data = word;
    else if (num_bytes == 4 && (tl_u64)data % 4 == 0)
        *(tl_u32 *)data = (tl_u32)word;
    else
        for (tl_i32 k = 0; k < num_bytes; ++k) data[k] = (tl_u8)(word >> (8 * k));
}

// Whole warps come here together, so blocks have a multiple of 32 threads. The plain read spares most atomics: a value
// that another warp has lowered since only makes one superfluous.
TL_INLINE void tl_warp_min_into(tl_i32 *place, tl_i32 value) {
    for (int step = 16; step; step /= 2) value = tl_min(value, __shfl_xor_sync(0xffffffffu, value, step));
    if (threadIdx.x % 32 == 0 && value < *(volatile tl_i32 *)place) atomicMin(place, value);
}

TL_INLINE void tl_warp_max_into(tl_i32 *place, tl_i32 value) {
    for (int step = 16; step; step /= 2) value = tl_max(value, __shfl_xor_sync(0xffffffffu, value, step));
    if (threadIdx.x % 32 == 0 && value > *(volatile tl_i32 *)place) atomicMax(place, value);
}

// Counts of a block, in memory that its threads share: where values are alike, adding to a row's counts at once would
// make all of a GPU wait for a few addresses. All threads of a block come to both.
TL_INLINE void tl_shared_clear(tl_i32 *bins, tl_i32 num) {
    for (tl_i32 i = (tl_i32)threadIdx.x; i < num; i += (tl_i32)blockDim.x) bins[i] = 0;
    __syncthreads();
}

TL_INLINE void tl_shared_add(const tl_i32 *bins, tl_i32 num, tl_i32 *counts) {
    __syncthreads();
    for (tl_i32 i = (tl_i32)threadIdx.x; i < num; i += (tl_i32)blockDim.x)
        if (bins[i]) atomicAdd(&counts[i], bins[i]);
    __syncthreads();
}

#endif
