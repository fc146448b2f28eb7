// A checksum of what lies on the device, so that a test or benchmark can verify it without copying
// it back. Not a cryptographic one. The sum does not depend on the order in which threads add to
// it, and every word is mixed with its index, so words that changed places change it.
#include "bytes.cuh"

// The finaliser of splitmix64: every bit of the input changes about half of the output.
static __device__ inline u64 mix(u64 value) {
    value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ull;
    value = (value ^ (value >> 27)) * 0x94d049bb133111ebull;
    return value ^ (value >> 31);
}

static __device__ inline u64 mix_word(u64 word, u64 index) {
    return mix(word + (index + 1) * 0x9e3779b97f4a7c15ull);
}

static __device__ inline u64 join(u32 low, u32 high) { return ((u64)high << 32) | low; }

// Adds to `*sum`, which the caller has set to zero, and mixes in the number of bytes once.
extern "C" __global__ void checksum(const u8* data, u64 bytes, u64* sum) {
    const u64 block = (u64)blockIdx.y * gridDim.x + blockIdx.x;
    const u64 thread = block * blockDim.x + threadIdx.x;
    const u64 step = (u64)gridDim.x * gridDim.y * blockDim.x;
    ANNOUNCE(thread == 0, data, bytes, 0);
    ANNOUNCE(thread == 0, sum, sizeof(u64), 1);
    const u64 source = (u64)data;
    const u64 pairs = bytes / 16;
    u64 part = 0;
    for (u64 pair = thread; pair < pairs; pair += step) {
        const Sixteen words = load(source + pair * 16);
        part += mix_word(join(words.x, words.y), pair * 2);
        part += mix_word(join(words.z, words.w), pair * 2 + 1);
    }
    if (thread == 0) { // the last one or two words, padded with zeros, and the length
        for (u64 at = pairs * 16; at < bytes; at += 8) {
            const u64 left = bytes - at;
            part += mix_word(load_number(source + at, left < 8 ? left : 8), at / 8);
        }
        part += mix(bytes);
    }
    if (part != 0) atomicAdd(sum, part);
}
