// A mock of libcuda.so.1 for tests without a GPU. Its devices run the kernel headers through builtins.h on the CPU;
// "device" memory is host memory with guards around it. Work on a stream waits until something synchronises, so that a
// result read too early is seen. Included after the kernels and `entry_table`, which tests/support/mock_cuda.py writes.
#include <chrono>
#include <deque>
#include <map>
#include <string>
#include <vector>

using Result = int;
using Pointer = unsigned long long;
using Work = std::function<Result()>;
enum { OK = 0, INVALID_VALUE = 1, NO_MEMORY = 2, INVALID_IMAGE = 200, NO_CONTEXT = 201, NOT_FOUND = 500, FAILED = 719 };

namespace {

struct Stream {
    std::deque<Work> queue;
    size_t num_done = 0;
    std::vector<Work> *recorded = nullptr;  // a graph, while one is captured
};
struct Event {
    Stream *stream = nullptr;
    size_t position = 0;
    std::chrono::steady_clock::time_point time;
};
struct Allocation {
    size_t size;
    int context;  // a device's primary context is its number + 1; 100 more is one that somebody created
};

constexpr size_t GUARD = 256;
std::map<Pointer, Allocation> allocations;
std::map<void *, Stream> streams;
int num_devices = 1, integrated = 0;
thread_local std::vector<int> contexts;

Result run_until(Stream &stream, size_t position) {
    while (stream.num_done < position) {
        Work work = stream.queue.front();
        stream.queue.pop_front();
        ++stream.num_done;
        if (Result result = work()) return result;
    }
    return OK;
}

Result check_guards() {
    for (auto &[pointer, allocation] : allocations)
        for (size_t i = 0; i < GUARD; ++i)
            if (((unsigned char *)pointer - GUARD)[i] != 0xA5 || ((unsigned char *)pointer + allocation.size)[i] != 0xA5)
                return FAILED;  // somebody wrote outside an allocation
    return OK;
}

Result run_all() {
    for (auto &item : streams)
        if (Result result = run_until(item.second, item.second.num_done + item.second.queue.size())) return result;
    return check_guards();
}

bool known(Pointer pointer, size_t size) {
    auto after = allocations.upper_bound(pointer);
    if (after == allocations.begin()) return false;
    auto it = std::prev(after);
    return pointer + size <= it->first + it->second.size;
}

Result queue(void *stream, Work work) {
    if (contexts.empty()) return NO_CONTEXT;
    Stream &it = streams[stream];
    if (it.recorded) return it.recorded->push_back(std::move(work)), OK;
    it.queue.push_back(std::move(work));
    return OK;
}

Result allocate(Pointer *out, size_t size) {
    if (contexts.empty()) return NO_CONTEXT;
    if (size == 0) return INVALID_VALUE;
    auto *memory = (unsigned char *)aligned_alloc(GUARD, (size + 3 * GUARD - 1) / GUARD * GUARD);
    memset(memory, 0xA5, (size + 3 * GUARD - 1) / GUARD * GUARD);
    *out = (Pointer)(memory + GUARD);
    allocations[*out] = {size, contexts.back()};
    return OK;
}

Result release(Pointer pointer) {
    if (!allocations.count(pointer)) return INVALID_VALUE;
    Result result = run_all();  // freeing waits for the device
    free((void *)(pointer - GUARD));
    allocations.erase(pointer);
    return result;
}

}  // namespace

extern "C" {
void mock_configure(int devices, int shares_memory) { num_devices = devices, integrated = shares_memory; }
int mock_num_allocations() { return (int)allocations.size(); }
int mock_queue(void *stream, int (*work)()) { return queue(stream, work); }  // somebody else's kernel

Result cuInit(unsigned) { return OK; }
Result cuDriverGetVersion(int *version) { return *version = 13000, OK; }
Result cuGetErrorName(Result status, const char **text) { return *text = status == 1 ? "CUDA_ERROR_INVALID_VALUE" : "MOCK", OK; }
Result cuGetErrorString(Result, const char **text) { return *text = "an error of the mock", OK; }
Result cuDeviceGetCount(int *count) { return *count = num_devices, OK; }
Result cuDeviceGet(int *device, int ordinal) { return *device = ordinal, OK; }
Result cuDeviceGetName(char *name, int size, int) { return snprintf(name, size, "Mock (a CPU)"), OK; }
Result cuDeviceGetAttribute(int *value, int attribute, int) {
    switch (attribute) {
        case 16: return *value = 2, OK;   // multiprocessors
        case 18: return *value = integrated, OK;
        case 75: return *value = 8, OK;   // compute capability
        case 76: return *value = 7, OK;
        default: return INVALID_VALUE;
    }
}
Result cuDevicePrimaryCtxRetain(void **context, int device) { return *context = (void *)(size_t)(device + 1), OK; }
Result cuCtxPushCurrent_v2(void *context) { return contexts.push_back((int)(size_t)context), OK; }
Result cuCtxPopCurrent_v2(void **context) {
    if (contexts.empty()) return NO_CONTEXT;
    *context = (void *)(size_t)contexts.back();
    return contexts.pop_back(), OK;
}
Result cuModuleLoadData(void **module, const char *image) {
    if (contexts.empty()) return NO_CONTEXT;
    return *module = (void *)1, memcmp(image, "\177ELF", 4) ? INVALID_IMAGE : OK;
}
Result cuModuleGetFunction(void **function, void *, const char *name) {
    for (const Entry &entry : entry_table)
        if (!strcmp(entry.name, name)) return *function = (void *)&entry, OK;
    return NOT_FOUND;
}
Result cuLaunchKernel(void *function, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                      unsigned, void *stream, void **arguments, void **) {
    if (!gx || !gy || gy > 65535 || gz != 1 || !bx || bx > 1024 || by != 1 || bz != 1) return INVALID_VALUE;
    Work entry = ((const Entry *)function)->bind(arguments);
    return queue(stream, [=] { return mock::run_grid({gx, gy, 1}, {bx, 1, 1}, [=] { entry(); }) ? OK : FAILED; });
}
Result cuMemAlloc_v2(Pointer *out, size_t size) { return allocate(out, size); }
Result cuMemFree_v2(Pointer pointer) { return release(pointer); }
Result cuMemHostAlloc(void **out, size_t size, unsigned) { return allocate((Pointer *)out, size); }
Result cuMemFreeHost(void *pointer) { return release((Pointer)pointer); }
Result cuMemHostGetDevicePointer_v2(Pointer *out, void *host, unsigned) { return *out = (Pointer)host, OK; }
Result cuPointerGetAttribute(void *value, int attribute, Pointer pointer) {
    if (!known(pointer, 1)) return INVALID_VALUE;
    int context = std::prev(allocations.upper_bound(pointer))->second.context;
    if (attribute == 1) return *(size_t *)value = context, OK;
    return *(int *)value = (context - 1) % 100, OK;
}
static Result copy(Pointer to, Pointer from, size_t size, bool to_device, bool from_device, void *stream) {
    if ((to_device && !known(to, size)) || (from_device && !known(from, size))) return INVALID_VALUE;
    return queue(stream, [=] { return memcpy((void *)to, (void *)from, size), OK; });
}
Result cuMemcpyDtoHAsync_v2(void *to, Pointer from, size_t size, void *stream) { return copy((Pointer)to, from, size, false, true, stream); }
Result cuMemcpyHtoDAsync_v2(Pointer to, void *from, size_t size, void *stream) { return copy(to, (Pointer)from, size, true, false, stream); }
Result cuMemcpyDtoDAsync_v2(Pointer to, Pointer from, size_t size, void *stream) { return copy(to, from, size, true, true, stream); }
Result cuMemsetD8Async(Pointer to, unsigned char value, size_t size, void *stream) {
    if (!known(to, size)) return INVALID_VALUE;
    return queue(stream, [=] { return memset((void *)to, value, size), OK; });
}
Result cuStreamCreate(void **stream, unsigned) {
    static size_t next = 16;
    return *stream = (void *)++next, OK;
}
Result cuStreamDestroy_v2(void *stream) { return streams.erase(stream), OK; }
Result cuStreamBeginCapture_v2(void *stream, int) {
    if (!stream || streams[stream].recorded) return INVALID_VALUE;
    return streams[stream].recorded = new std::vector<Work>, OK;
}
Result cuStreamEndCapture(void *stream, void **graph) {
    if (!streams[stream].recorded) return INVALID_VALUE;
    *graph = streams[stream].recorded;
    return streams[stream].recorded = nullptr, OK;
}
Result cuGraphInstantiateWithFlags(void **exec, void *graph, unsigned long long) {
    return *exec = new std::vector<Work>(*(std::vector<Work> *)graph), OK;
}
Result cuGraphLaunch(void *exec, void *stream) {
    for (const Work &work : *(std::vector<Work> *)exec)
        if (Result result = queue(stream, work)) return result;
    return OK;
}
Result cuGraphExecDestroy(void *exec) { return delete (std::vector<Work> *)exec, OK; }
Result cuGraphDestroy(void *graph) { return delete (std::vector<Work> *)graph, OK; }
Result cuStreamSynchronize(void *stream) {
    Stream &it = streams[stream];
    if (it.recorded) return INVALID_VALUE;  // a capture does not run
    if (Result result = run_until(it, it.num_done + it.queue.size())) return result;
    return check_guards();
}
Result cuEventCreate(void **event, unsigned) { return *event = new Event, OK; }
Result cuEventDestroy_v2(void *) { return OK; }  // kept: queued waits may name it
Result cuEventRecord(void *event, void *stream) {
    auto *it = (Event *)event;
    it->stream = &streams[stream];
    it->position = it->stream->num_done + it->stream->queue.size() + 1;
    return queue(stream, [=] { return it->time = std::chrono::steady_clock::now(), OK; });
}
Result cuEventSynchronize(void *event) { return run_until(*((Event *)event)->stream, ((Event *)event)->position); }
Result cuStreamWaitEvent(void *stream, void *event, unsigned) {
    return queue(stream, [=] { return cuEventSynchronize(event); });
}
Result cuEventElapsedTime(float *milliseconds, void *start, void *end) {
    *milliseconds = std::chrono::duration<float, std::milli>(((Event *)end)->time - ((Event *)start)->time).count();
    return OK;
}
}
