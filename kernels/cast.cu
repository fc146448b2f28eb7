// Converts floating-point numbers between types, many tensors in one launch. Integer code
// throughout: the hardware's conversions to bf16 need sm_80, and memory is what bounds this kernel.
//
// Rounds to nearest, ties to even; what is too large becomes infinity; zeros keep their sign and
// subnormals are not flushed. All as torch does. A NaN keeps its sign and the upper bits of its
// payload and becomes quiet; torch has no rule of its own for that.
#include "bytes.cuh"

// An enumeration, since a constant variable would become one of the module.
enum : u32 { SIGN = 0x80000000u, F32_INFINITY = 0x7f800000u };

// `bits >> shift`, rounded to nearest, ties to even; `shift` is 1 to 24.
static __device__ inline u32 rounded(u32 bits, u32 shift) {
    return (bits + (1u << (shift - 1)) - 1 + ((bits >> shift) & 1)) >> shift;
}

static __device__ inline u16 bf16_of_f32(u32 bits) {
    // Rounding would carry a NaN's payload into its exponent and sign.
    if ((bits & ~SIGN) > F32_INFINITY) return (u16)((bits >> 16) | 0x40);
    return (u16)rounded(bits, 16);
}

static __device__ inline u16 f16_of_f32(u32 bits) {
    const u32 sign = (bits & SIGN) >> 16;
    const u32 magnitude = bits & ~SIGN;
    if (magnitude > F32_INFINITY) return (u16)(sign | 0x7e00 | ((magnitude >> 13) & 0x3ff));
    // From 65520 on, half-way between the largest f16 and what would be the next.
    if (magnitude >= 0x477ff000) return (u16)(sign | 0x7c00);
    // From 2^-14 on: a normal f16. The bias of its exponent is smaller by 112.
    if (magnitude >= 0x38800000) {
        return (u16)(sign | rounded(magnitude - (112u << 23), 13));
    }
    const u32 exponent = magnitude >> 23;
    if (exponent < 102) return (u16)sign; // below 2^-25, which is half of the smallest subnormal
    const u32 significand = (magnitude & 0x7fffff) | 0x800000;
    return (u16)(sign | rounded(significand, 126 - exponent)); // in units of 2^-24
}

// Exact: every f16, also a subnormal one, is a normal f32.
static __device__ inline u32 f32_of_f16(u32 half) {
    const u32 sign = (half & 0x8000) << 16;
    const u32 magnitude = half & 0x7fff;
    if (magnitude >= 0x7c00) return sign | F32_INFINITY | ((magnitude & 0x3ff) << 13);
    if (magnitude >= 0x400) return sign | ((magnitude << 13) + (112u << 23));
    if (magnitude == 0) return sign;
    // A subnormal: its leading bit moves up to the implicit one of an f32, which adds one to the
    // exponent.
    const u32 places = __clz((int)magnitude) - 8;
    return sign | (((125 - places) << 23) + (magnitude << places));
}

struct F32ToBf16 {
    enum : u32 { width = 4 };
    static __device__ inline u16 of(u32 bits) { return bf16_of_f32(bits); }
};
struct F32ToF16 {
    enum : u32 { width = 4 };
    static __device__ inline u16 of(u32 bits) { return f16_of_f32(bits); }
};
struct F16ToBf16 {
    enum : u32 { width = 2 };
    static __device__ inline u16 of(u32 bits) { return bf16_of_f32(f32_of_f16(bits)); }
};

struct Bf16ToF16 {
    enum : u32 { width = 2 };
    static __device__ inline u16 of(u32 bits) { return f16_of_f32(bits << 16); }
};

template <class To> static __device__ inline u32 two(u32 first, u32 second) {
    return (u32)To::of(first) | ((u32)To::of(second) << 16);
}

// Eight elements at `source`, converted: 16 bytes.
template <class To> static __device__ inline Sixteen eight(u64 source) {
    const Sixteen a = load(source);
    if (To::width == 2) {
        return {two<To>(a.x & 0xffff, a.x >> 16), two<To>(a.y & 0xffff, a.y >> 16),
                two<To>(a.z & 0xffff, a.z >> 16), two<To>(a.w & 0xffff, a.w >> 16)};
    }
    const Sixteen b = load(source + 16);
    return {two<To>(a.x, a.y), two<To>(a.z, a.w), two<To>(b.x, b.y), two<To>(b.z, b.w)};
}

template <class To> static __device__ inline void convert(const Cast& piece, Share share) {
    ANNOUNCE(share.first == 0, piece.source, piece.elements * To::width, 0);
    ANNOUNCE(share.first == 0, piece.target, piece.elements * sizeof(u16), 1);
    u16* target = (u16*)piece.target;
    const Split parts = split(piece.target, piece.elements, sizeof(u16));
    FEW_TURNS
    for (u64 number = share.first; number < parts.singles; number += share.step) {
        const u64 at = parts.single(number);
        target[at] = To::of((u32)load_number(piece.source + at * To::width, To::width));
    }
    for (u64 group = share.first; group < parts.groups; group += share.step) {
        const u64 at = parts.head + group * 8;
        store(piece.target + at * sizeof(u16), eight<To>(piece.source + at * To::width));
    }
}

extern "C" __global__ void cast(const Cast* pieces, u32 count) {
    const Share share = share_of_piece();
    ANNOUNCE(share.first == 0 && blockIdx.x == 0, pieces, count * sizeof(Cast), 0);
    for (u64 at = blockIdx.x; at < count; at += gridDim.x) {
        const Cast piece = pieces[at];
        switch (piece.kind) {
        case F32_TO_BF16: convert<F32ToBf16>(piece, share); break;
        case F32_TO_F16: convert<F32ToF16>(piece, share); break;
        case F16_TO_BF16: convert<F16ToBf16>(piece, share); break;
        case BF16_TO_F16: convert<Bf16ToF16>(piece, share); break;
        default: __trap(); // a table that is not ours: an error, not a tensor left as it was
        }
    }
}
