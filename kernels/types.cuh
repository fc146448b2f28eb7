// Types that the kernels and their callers share. NVRTC reads this for the device, g++ for the
// simulator.
#pragma once

#ifdef __CUDACC__
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
// Before a loop that is not worth unrolling: less code to assemble when the module is loaded.
#define FEW_TURNS _Pragma("unroll 1")
#define ANNOUNCE(when, address, bytes, write) // only the simulator listens: see simulated.h
#else
#include "simulated.h"
#endif

// All addresses are addresses of the device. No two pieces of one launch may write the same byte,
// and none may write what one reads.

// `bytes` bytes from `source` to `target`, both at any alignment.
struct Piece {
    u64 target;
    u64 source;
    u64 bytes;
};

// `elements` elements from `source`, at any alignment, to `target`, aligned to its element.
struct Cast {
    u64 target;
    u64 source;
    u64 elements;
    u64 kind;
};

enum Kind : u64 { F32_TO_BF16 = 0, F32_TO_F16 = 1, F16_TO_BF16 = 2, BF16_TO_F16 = 3 };

static_assert(sizeof(Piece) == 24 && sizeof(Cast) == 32, "the host writes these tables");
