// Lets g++ compile the kernels for a simulated driver, whose device memory is the process's own.
//
// A launch runs the body once, as the only thread of a grid of one block, whatever grid was asked
// for. That is equivalent: a kernel splits its work into units that no two threads share, thread
// `first` of `step` takes the units first, first + step, ..., and nothing but a commutative
// atomicAdd passes between threads. So every grid does the same units once each. With constant
// dimensions g++ makes plain loops of them, which move gigabytes a second.
// SIMULATED_EVERY_THREAD runs the grid as asked for, one thread after another; the tests run both.
#pragma once
#include <cstddef>
#include <cstdint>
#include <utility>

typedef uint8_t u8;
typedef uint16_t u16;
typedef uint32_t u32;
typedef unsigned long long u64;

#define __global__
#define __device__
#define FEW_TURNS

struct Dimensions {
    u32 x, y, z;
};
#ifdef SIMULATED_EVERY_THREAD
inline thread_local Dimensions threadIdx, blockIdx, blockDim, gridDim;
#else
constexpr Dimensions threadIdx{0, 0, 0}, blockIdx{0, 0, 0}, blockDim{1, 1, 1}, gridDim{1, 1, 1};
#endif

static inline int __clz(int value) { return value ? __builtin_clz((unsigned)value) : 32; }
static inline void __trap() { __builtin_trap(); }
static inline u64 atomicAdd(u64* target, u64 value) {
    return __atomic_fetch_add(target, value, __ATOMIC_RELAXED);
}

extern "C" {
// Set by the simulator, null otherwise: called by a kernel before it touches a range that it was
// given, once for the table and for each piece's source and target. Empty ranges are not announced.
extern void (*simcuda_touch)(const void* address, size_t bytes, int write);

struct SimKernel {
    const char* name;
    size_t nargs;
    const size_t* sizes; // of the arguments, in bytes
    // `dims6` is grid x, y, z and block x, y, z; `args` points at the arguments.
    void (*run)(const uint32_t* dims6, uint32_t shared_bytes, void* const* args);
};
const SimKernel* simcuda_kernels(size_t* count);
}

template <class Address> static inline void announce(Address address, size_t bytes, int write) {
    if (simcuda_touch && bytes) simcuda_touch((const void*)address, bytes, write);
}
// `when` holds for one thread of those that share the range.
#define ANNOUNCE(when, address, bytes, write) \
    do { \
        if (when) announce(address, bytes, write); \
    } while (0)
