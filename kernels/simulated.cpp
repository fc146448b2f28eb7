// The kernels as a shared object for a simulated driver:
// g++ -std=c++17 -O2 -fPIC -shared -I kernels -o kernels.so kernels/simulated.cpp
#include "cast.cu"
#include "checksum.cu"
#include "scatter.cu"

extern "C" {
void (*simcuda_touch)(const void* address, size_t bytes, int write) = nullptr;
}

template <auto Kernel> struct Launch;
template <class... Arguments, void (*Kernel)(Arguments...)> struct Launch<Kernel> {
    static constexpr size_t count = sizeof...(Arguments);
    static constexpr size_t sizes[] = {sizeof(Arguments)...};

    template <size_t... Index>
    static void thread(void* const* args, std::index_sequence<Index...>) {
        Kernel(*(Arguments*)args[Index]...);
    }

    static void run(const uint32_t* dims6, uint32_t, void* const* args) {
        const auto indices = std::make_index_sequence<count>();
#ifdef SIMULATED_EVERY_THREAD
        gridDim = {dims6[0], dims6[1], dims6[2]};
        blockDim = {dims6[3], dims6[4], dims6[5]};
        // No kernel uses the third dimension of the grid, or a second one of the block.
        for (blockIdx = {0, 0, 0}; blockIdx.x < gridDim.x; blockIdx.x++) {
            for (blockIdx.y = 0; blockIdx.y < gridDim.y; blockIdx.y++) {
                for (threadIdx = {0, 0, 0}; threadIdx.x < blockDim.x; threadIdx.x++) {
                    thread(args, indices);
                }
            }
        }
#else
        (void)dims6;
        thread(args, indices);
#endif
    }
};

extern "C" const SimKernel* simcuda_kernels(size_t* count) {
#define KERNEL(name) {#name, Launch<name>::count, Launch<name>::sizes, Launch<name>::run}
    static const SimKernel kernels[] = {KERNEL(cast), KERNEL(checksum), KERNEL(scatter)};
    *count = sizeof kernels / sizeof *kernels;
    return kernels;
}
