// Repeats recorded calls of a kernel library and compares what they leave behind, byte by byte: what a library does on
// a processor that no Python runs on here. Usage: replay LIBRARY CALLS; tests/support/replay.py writes CALLS.
#include <dlfcn.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

// Integers and pointers travel in registers of their own and floats in others, in the procedure call standards of both
// x86-64 and aarch64, so one type of function with spare parameters calls them all.
using Entry = long long (*)(long long, long long, long long, long long, long long, long long, long long, long long, long long,
                       long long, long long, long long, float, float, float, float);

static FILE *calls;

template <class T> static T take() {
    T value;
    if (fread(&value, sizeof value, 1, calls) != 1) exit(2);
    return value;
}

static std::string take_bytes() {
    std::string bytes(take<uint64_t>(), '\0');
    if (!bytes.empty() && fread(&bytes[0], bytes.size(), 1, calls) != 1) exit(2);
    return bytes;
}

int main(int, char **arguments) {
    void *library = dlopen(arguments[1], RTLD_NOW);
    if (!library) return fprintf(stderr, "%s\n", dlerror()), 2;
    calls = fopen(arguments[2], "rb");
    if (!calls) return perror(arguments[2]), 2;
    uint32_t num_calls = take<uint32_t>();
    for (uint32_t call = 0; call < num_calls; ++call) {
        std::string name = take_bytes(), kinds = take_bytes();
        long long integers[12] = {};
        float floats[4] = {};
        size_t num_integers = 0, num_floats = 0;
        std::vector<std::string> expected;
        std::vector<char *> memory;
        for (char kind : kinds) {
            if (kind == 'p') {
                std::string before = take_bytes();
                expected.push_back(take_bytes());
                memory.push_back((char *)malloc(before.size() + 1));
                memcpy(memory.back(), before.data(), before.size());
                integers[num_integers++] = (long long)memory.back();
            } else if (kind == 'f') {
                floats[num_floats++] = (float)take<double>();
            } else {
                integers[num_integers++] = take<int64_t>();
            }
        }
        auto entry = (Entry)dlsym(library, name.c_str());
        if (!entry) return fprintf(stderr, "%s\n", dlerror()), 2;
        long long *i = integers;
        long long returned = entry(i[0], i[1], i[2], i[3], i[4], i[5], i[6], i[7], i[8], i[9], i[10], i[11], floats[0], floats[1], floats[2],
              floats[3]);
        bool answers = take_bytes() == "i";
        int64_t answer = take<int64_t>();
        if (answers && (int)returned != answer)
            return printf("call %u, %s: returned %d, expected %d\n", call, name.c_str(), (int)returned, (int)answer), 1;
        for (size_t k = 0; k < memory.size(); ++k) {
            for (size_t at = 0; at < expected[k].size(); ++at)
                if (memory[k][at] != expected[k][at])
                    return printf("call %u, %s: byte %zu of pointer %zu is %02x, expected %02x\n", call, name.c_str(), at,
                                  k, (unsigned char)memory[k][at], (unsigned char)expected[k][at]),
                           1;
            free(memory[k]);
        }
    }
    printf("%u calls, equal bytes\n", num_calls);
    return 0;
}
