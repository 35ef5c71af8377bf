// A mock, not a GPU: CUDA's built-ins for g++, so that the GPU's side of the kernel headers runs on a CPU. Blocks and
// warps run one after the other; the 32 lanes of a warp are fibers that meet at every shuffle. It shows wrong indices,
// wrong bytes and warps that do not come together; nothing about speed, races between warps or memory ordering.
#pragma once
#include <ucontext.h>

#include <cstdint>
#include <cstring>
#include <functional>
#include <memory>

#define __CUDACC__ 1
#define __device__ static
#define __forceinline__ inline
#define __global__

struct float4 {
    float x, y, z, w;
} __attribute__((aligned(16)));
static inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct MockDim {
    unsigned x, y, z;
};
MockDim gridDim, blockDim, blockIdx, threadIdx;

static inline int __float_as_int(float x) {
    int bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
static inline float __int_as_float(int bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}
static inline int atomicMin(int *place, int value) { return *place = value < *place ? value : *place; }
static inline int atomicMax(int *place, int value) { return *place = value > *place ? value : *place; }
static inline int atomicOr(int *place, int value) { return *place |= value; }
static inline unsigned long long __umul64hi(unsigned long long a, unsigned long long b) {
    return (unsigned long long)((unsigned __int128)a * b >> 64);
}
static inline int __popcll(unsigned long long x) { return __builtin_popcountll(x); }
static inline int atomicAdd(int *place, int value) { return *place += value; }

namespace mock {

constexpr unsigned LANES = 32, STACK = 1 << 16;
struct Lane {
    ucontext_t context;
    std::unique_ptr<char[]> stack{new char[STACK]};
    bool done;
    int slot[2];
};
Lane lanes[LANES];
ucontext_t scheduler;
std::function<void()> body;
unsigned current, turn;
bool diverged;

inline void lane_main() {
    body();
    lanes[current].done = true;
    swapcontext(&lanes[current].context, &scheduler);
}

// Threads `first` to `first + num` of the block. False if some lanes end while others wait for them.
inline bool run_warp(unsigned first, unsigned num) {
    for (unsigned lane = 0; lane < num; ++lane) {
        Lane &it = lanes[lane];
        it.done = false;
        getcontext(&it.context);
        it.context.uc_stack.ss_sp = it.stack.get();
        it.context.uc_stack.ss_size = STACK;
        makecontext(&it.context, lane_main, 0);
    }
    for (unsigned num_done = 0; num_done == 0; ++turn) {
        for (current = 0; current < num; ++current) {
            threadIdx = {first + current, 0, 0};
            swapcontext(&scheduler, &lanes[current].context);
            num_done += lanes[current].done;
        }
        if (num_done && num_done < num) return false;
    }
    return !diverged;
}

inline bool run_grid(MockDim grid, MockDim block, std::function<void()> entry) {
    gridDim = grid, blockDim = block, body = std::move(entry), diverged = false;
    for (unsigned y = 0; y < grid.y; ++y)
        for (unsigned x = 0; x < grid.x; ++x)
            for (unsigned first = 0; first < block.x; first += LANES) {
                blockIdx = {x, y, 0};
                if (!run_warp(first, block.x - first < LANES ? block.x - first : LANES)) return false;
            }
    return true;
}

}  // namespace mock

__attribute__((noinline)) static int __shfl_xor_sync(unsigned mask, int value, int step) {
    unsigned lane = mock::current, turn = mock::turn % 2;
    if (mask != 0xffffffffu || blockDim.x % mock::LANES) mock::diverged = true;
    mock::lanes[lane].slot[turn] = value;
    swapcontext(&mock::lanes[lane].context, &mock::scheduler);
    return mock::lanes[lane ^ step].slot[turn];
}
