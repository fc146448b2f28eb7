// Kernels of programs: known by name, never run. With SIMCUDART_SKIP_KERNELS=1 launches are ignored,
// else they fail, and the name is on stderr.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <string>

#include "runtime.hpp"

namespace {

// Names by the address of the host function that stands for a kernel.
struct Names {
    std::mutex mutex;
    std::map<const void*, std::string> known;
};

Names& names() {
    static Names* const table = new Names;  // other libraries unregister after our destructors
    return *table;
}

struct Configuration {
    dim3 grid, block;
    size_t shared_bytes;
    void* stream;
};
thread_local Configuration configuration;

cudaError_t launch(const void* function) {
    static const bool skip = getenv("SIMCUDART_SKIP_KERNELS") != nullptr;
    if (skip) return cudaSuccess;
    const std::lock_guard<std::mutex> locked(names().mutex);
    const auto name = names().known.find(function);
    const char* shown = name == names().known.end() ? "?" : name->second.c_str();
    fprintf(stderr, "simcudart: kernel not simulated: %.160s\n", shown);
    return runtime::result(cudaErrorNotSupported);
}

}  // namespace

RUNTIME_API void** __cudaRegisterFatBinary(void*) {
    static void* handle = nullptr;
    return &handle;
}

RUNTIME_API void __cudaRegisterFatBinaryEnd(void**) {}
RUNTIME_API void __cudaUnregisterFatBinary(void**) {}
RUNTIME_API char __cudaInitModule(void**) { return 1; }
RUNTIME_API void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}

RUNTIME_API void __cudaRegisterFunction(void**, const char* function, char*, const char* name, int,
                                        void*, void*, void*, void*, int*) {
    const std::lock_guard<std::mutex> locked(names().mutex);
    names().known[function] = name;
}

RUNTIME_API unsigned __cudaPushCallConfiguration(dim3 grid, dim3 block, size_t shared_bytes,
                                                 void* stream) {
    configuration = {grid, block, shared_bytes, stream};
    return 0;
}

RUNTIME_API cudaError_t __cudaPopCallConfiguration(dim3* grid, dim3* block, size_t* shared_bytes,
                                                   void* stream) {
    *grid = configuration.grid;
    *block = configuration.block;
    *shared_bytes = configuration.shared_bytes;
    *static_cast<void**>(stream) = configuration.stream;
    return cudaSuccess;
}

RUNTIME_API cudaError_t __cudaGetKernel(void** kernel, const void* function) {
    *kernel = const_cast<void*>(function);
    return cudaSuccess;
}

RUNTIME_API cudaError_t __cudaLaunchKernel(void* kernel, dim3, dim3, void**, size_t,
                                           cudaStream_t) {
    return launch(kernel);
}

RUNTIME_API cudaError_t cudaLaunchKernel(const void* function, dim3, dim3, void**, size_t,
                                         cudaStream_t) {
    return launch(function);
}

RUNTIME_API cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void* function,
                                            void**) {
    return launch(function);
}

RUNTIME_API cudaError_t cudaLaunchCooperativeKernel(const void* function, dim3, dim3, void**,
                                                    size_t, cudaStream_t) {
    return launch(function);
}

RUNTIME_API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, const void*, int,
                                                                      size_t) {
    *blocks = 1;
    return cudaSuccess;
}

RUNTIME_API cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int* blocks,
                                                                               const void*, int,
                                                                               size_t, unsigned) {
    *blocks = 1;
    return cudaSuccess;
}

RUNTIME_API cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, const void*) {
    memset(attributes, 0, sizeof *attributes);
    attributes->maxThreadsPerBlock = 1024;
    attributes->binaryVersion = attributes->ptxVersion = 90;
    return cudaSuccess;
}

RUNTIME_API cudaError_t cudaFuncSetAttribute(const void*, cudaFuncAttribute, int) {
    return cudaSuccess;
}
