// How the threads of a launch share the pieces of a table, and how they move 16 bytes at a time.
#pragma once
#include "types.cuh"

// What one thread does of one piece: the units `first`, `first + step`, `first + 2 * step`, ...
struct Share {
    u64 first;
    u64 step;
};

// Blocks with the same blockIdx.x work on the same pieces, the others on others.
static __device__ inline Share share_of_piece() {
    return {(u64)blockIdx.y * blockDim.x + threadIdx.x, (u64)gridDim.y * blockDim.x};
}

// How a piece's units (bytes or elements) are moved: in groups of 16 bytes that begin at 16-byte
// boundaries of the target; singly the `head` units before the groups, and those after them.
struct Split {
    u64 head;
    u64 groups;
    u64 grouped; // units in the groups
    u64 singles; // units outside of them

    // The index of the unit that is the `number`th single one.
    __device__ inline u64 single(u64 number) const {
        return number < head ? number : number + grouped;
    }
};

static __device__ inline Split split(u64 target, u64 units, u32 width) {
    const u64 before = ((0 - target) & 15) / width;
    const u64 head = before < units ? before : units;
    const u64 groups = (units - head) / (16 / width);
    const u64 grouped = groups * (16 / width);
    return {head, groups, grouped, units - grouped};
}

struct alignas(16) Sixteen {
    u32 x, y, z, w;
};

// The 32 bits that start `shift` bits up in the 64 bits of two neighbouring words.
static __device__ inline u32 funnel(u32 low, u32 high, u32 shift) {
    return (u32)((((u64)high << 32) | low) >> shift);
}

// 16 bytes from any address. Reads the aligned words that hold them and no other, so it touches no
// page that holds none of them.
static __device__ inline Sixteen load(u64 source) {
    if ((source & 15) == 0) return *(const Sixteen*)source;
    const u32* words = (const u32*)(source & ~3ull);
    const u32 shift = (u32)(source & 3) * 8;
    // With a shift the fifth word holds the last of the 16 bytes, without one none of them.
    const u32 fifth = shift ? words[4] : 0;
    return {funnel(words[0], words[1], shift), funnel(words[1], words[2], shift),
            funnel(words[2], words[3], shift), funnel(words[3], fifth, shift)};
}

static __device__ inline void store(u64 target, Sixteen value) { *(Sixteen*)target = value; }

// The little-endian number in `width` bytes from any address.
static __device__ inline u64 load_number(u64 source, u64 width) {
    u64 number = 0;
    for (u64 at = 0; at < width; at++) number |= (u64)((const u8*)source)[at] << (8 * at);
    return number;
}
