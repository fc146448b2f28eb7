// Places many small pieces in one launch: one copy brings a chunk of the file to the device, this
// puts its tensors in their places.
#include "bytes.cuh"

static __device__ inline void place(Piece piece, Share share) {
    ANNOUNCE(share.first == 0, piece.source, piece.bytes, 0);
    ANNOUNCE(share.first == 0, piece.target, piece.bytes, 1);
    const u8* source = (const u8*)piece.source;
    u8* target = (u8*)piece.target;
    const Split parts = split(piece.target, piece.bytes, 1);
    FEW_TURNS
    for (u64 number = share.first; number < parts.singles; number += share.step) {
        const u64 at = parts.single(number);
        target[at] = source[at];
    }
    for (u64 group = share.first; group < parts.groups; group += share.step) {
        const u64 at = parts.head + group * 16;
        store(piece.target + at, load(piece.source + at));
    }
}

extern "C" __global__ void scatter(const Piece* pieces, u32 count) {
    const Share share = share_of_piece();
    ANNOUNCE(share.first == 0 && blockIdx.x == 0, pieces, count * sizeof(Piece), 0);
    for (u64 at = blockIdx.x; at < count; at += gridDim.x) place(pieces[at], share);
}
