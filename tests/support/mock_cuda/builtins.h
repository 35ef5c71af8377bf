// A mock, not a GPU: CUDA's built-ins for g++, so that the GPU's side of the kernel headers runs on a CPU. Blocks run one
// after the other; threads are fibers, those of a warp meet at every shuffle and those of a block at every barrier. It
// shows wrong indices, wrong bytes, warps and blocks that do not come together; nothing about speed, races between warps
// or memory ordering.
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
#define __shared__ static  // of the one block that runs; holds what the last one left there

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

constexpr unsigned LANES = 32, THREADS = 1024, STACK = 1 << 16;
enum State { RUNS, SHUFFLES, WAITS, DONE };
struct Thread {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    State state;
    int slot[2];
};
Thread threads[THREADS];
ucontext_t scheduler;
std::function<void()> body;
unsigned current, turn;
bool diverged;

inline void thread_main() {
    body();
    threads[current].state = DONE;
    swapcontext(&threads[current].context, &scheduler);
}

// Back to the scheduler, until all threads that have to be there are.
inline void meet(State state) {
    threads[current].state = state;
    swapcontext(&threads[current].context, &scheduler);
}

// Threads `first` to `end` of a block up to the next barrier or their end, told in *state. False if they part.
inline bool run_warp(unsigned first, unsigned end, State *state) {
    for (*state = SHUFFLES; *state == SHUFFLES; ++turn) {
        for (current = first; current < end; ++current) {
            threadIdx = {current, 0, 0};
            swapcontext(&scheduler, &threads[current].context);
            if (threads[current].state != threads[first].state) return false;
        }
        *state = threads[first].state;
    }
    return true;
}

inline bool run_block(unsigned num) {
    for (unsigned i = 0; i < num; ++i) {
        Thread &it = threads[i];
        if (!it.stack) it.stack.reset(new char[STACK]);
        it.state = RUNS;
        getcontext(&it.context);
        it.context.uc_stack.ss_sp = it.stack.get();
        it.context.uc_stack.ss_size = STACK;
        makecontext(&it.context, thread_main, 0);
    }
    for (State all = WAITS; all == WAITS;)
        for (unsigned first = 0; first < num; first += LANES) {
            State state;
            if (!run_warp(first, num - first < LANES ? num : first + LANES, &state)) return false;
            if (first && state != all) return false;
            all = state;
        }
    return !diverged;
}

inline bool run_grid(MockDim grid, MockDim block, std::function<void()> entry) {
    gridDim = grid, blockDim = block, body = std::move(entry), diverged = false;
    for (unsigned y = 0; y < grid.y; ++y)
        for (unsigned x = 0; x < grid.x; ++x) {
            blockIdx = {x, y, 0};
            if (!run_block(block.x)) return false;
        }
    return true;
}

}  // namespace mock

__attribute__((noinline)) static int __shfl_xor_sync(unsigned mask, int value, int step) {
    unsigned thread = mock::current, turn = mock::turn % 2;
    if (mask != 0xffffffffu || blockDim.x % mock::LANES) mock::diverged = true;
    mock::threads[thread].slot[turn] = value;
    mock::meet(mock::SHUFFLES);
    return mock::threads[thread ^ step].slot[turn];
}

__attribute__((noinline)) static void __syncthreads() { mock::meet(mock::WAITS); }
