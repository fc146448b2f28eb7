// Devices, errors, versions.
#include <cstring>
#include <map>
#include <mutex>

#include "runtime.hpp"

namespace runtime {
namespace {

thread_local cudaError_t last_error = cudaSuccess;
thread_local int chosen_device = 0;

// Makes the primary context of a device current.
CUresult enter(int device) {
    static std::mutex mutex;
    static std::map<int, CUcontext> contexts;
    const std::lock_guard<std::mutex> locked(mutex);
    auto known = contexts.find(device);
    if (known == contexts.end()) {
        CUcontext context = nullptr;
        if (CUresult failed = cuDevicePrimaryCtxRetain(&context, device)) return failed;
        known = contexts.emplace(device, context).first;
    }
    return cuCtxSetCurrent(known->second);
}

int attribute(CUdevice_attribute number, int device) {
    int value = 0;
    cuDeviceGetAttribute(&value, number, device);
    return value;
}

}  // namespace

cudaError_t result(cudaError_t answer) {
    if (answer != cudaSuccess && answer != cudaErrorNotReady) last_error = answer;
    return answer;
}

cudaError_t result(CUresult answer) { return result(static_cast<cudaError_t>(answer)); }

CUresult initialize() {
    static const CUresult answer = cuInit(0);
    return answer;
}

CUresult bind() {
    if (CUresult failed = initialize()) return failed;
    CUcontext current = nullptr;
    if (CUresult failed = cuCtxGetCurrent(&current)) return failed;
    return current ? CUDA_SUCCESS : enter(chosen_device);
}

}  // namespace runtime

using namespace runtime;

RUNTIME_API cudaError_t cudaGetDeviceCount(int* count) {
    *count = 0;
    if (CUresult failed = initialize()) return result(failed);
    return result(cuDeviceGetCount(count));
}

RUNTIME_API cudaError_t cudaGetDevice(int* device) {
    CUcontext current = nullptr;
    *device = chosen_device;
    if (initialize() || cuCtxGetCurrent(&current) || !current) return cudaSuccess;
    return result(cuCtxGetDevice(device));
}

RUNTIME_API cudaError_t cudaSetDevice(int device) {
    if (CUresult failed = initialize()) return result(failed);
    if (CUresult failed = enter(device)) return result(failed);
    chosen_device = device;
    return cudaSuccess;
}

RUNTIME_API cudaError_t cudaSetDeviceFlags(unsigned) { return cudaSuccess; }

RUNTIME_API cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr number, int device) {
    if (CUresult failed = initialize()) return result(failed);
    return result(cuDeviceGetAttribute(value, static_cast<CUdevice_attribute>(number), device));
}

RUNTIME_API cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
    memset(properties, 0, sizeof *properties);
    if (CUresult failed = initialize()) return result(failed);
    if (CUresult failed = cuDeviceGetName(properties->name, sizeof properties->name, device)) {
        return result(failed);
    }
    cuDeviceTotalMem(&properties->totalGlobalMem, device);
    cuDeviceGetUuid(reinterpret_cast<CUuuid*>(&properties->uuid), device);
    const auto get = [device](CUdevice_attribute number) { return attribute(number, device); };
    properties->major = get(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR);
    properties->minor = get(CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR);
    properties->warpSize = get(CU_DEVICE_ATTRIBUTE_WARP_SIZE);
    properties->multiProcessorCount = get(CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT);
    properties->maxThreadsPerBlock = get(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_BLOCK);
    properties->maxThreadsPerMultiProcessor =
        get(CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR);
    properties->maxBlocksPerMultiProcessor =
        get(CU_DEVICE_ATTRIBUTE_MAX_BLOCKS_PER_MULTIPROCESSOR);
    properties->regsPerBlock = get(CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_BLOCK);
    properties->regsPerMultiprocessor = get(CU_DEVICE_ATTRIBUTE_MAX_REGISTERS_PER_MULTIPROCESSOR);
    properties->sharedMemPerBlock = get(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK);
    properties->sharedMemPerBlockOptin =
        get(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN);
    properties->sharedMemPerMultiprocessor =
        get(CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_MULTIPROCESSOR);
    properties->l2CacheSize = get(CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE);
    properties->asyncEngineCount = get(CU_DEVICE_ATTRIBUTE_ASYNC_ENGINE_COUNT);
    properties->memoryPoolsSupported = get(CU_DEVICE_ATTRIBUTE_MEMORY_POOLS_SUPPORTED);
    properties->pciBusID = get(CU_DEVICE_ATTRIBUTE_PCI_BUS_ID);
    properties->unifiedAddressing = properties->canMapHostMemory = 1;
    properties->hostRegisterSupported = properties->concurrentKernels = 1;
    const int block[3] = {1024, 1024, 64}, grid[3] = {0x7FFFFFFF, 0xFFFF, 0xFFFF};
    memcpy(properties->maxThreadsDim, block, sizeof block);
    memcpy(properties->maxGridSize, grid, sizeof grid);
    return cudaSuccess;
}

RUNTIME_API cudaError_t cudaDeviceGetPCIBusId(char* text, int size, int device) {
    if (CUresult failed = initialize()) return result(failed);
    return result(cuDeviceGetPCIBusId(text, size, device));
}

RUNTIME_API cudaError_t cudaDeviceGetByPCIBusId(int* device, const char* text) {
    if (CUresult failed = initialize()) return result(failed);
    return result(cuDeviceGetByPCIBusId(device, text));
}

RUNTIME_API cudaError_t cudaDeviceCanAccessPeer(int* can, int device, int peer) {
    if (CUresult failed = initialize()) return result(failed);
    return result(cuDeviceCanAccessPeer(can, device, peer));
}

RUNTIME_API cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
    return call(cuCtxGetStreamPriorityRange, least, greatest);
}

RUNTIME_API cudaError_t cudaDeviceSynchronize() { return call(cuCtxSynchronize); }

RUNTIME_API cudaError_t cudaGetLastError() {
    const cudaError_t error = last_error;
    last_error = cudaSuccess;
    return error;
}

RUNTIME_API cudaError_t cudaPeekAtLastError() { return last_error; }

RUNTIME_API const char* cudaGetErrorString(cudaError_t error) {
    const char* text = nullptr;
    cuGetErrorString(static_cast<CUresult>(error), &text);
    return text ? text : "unrecognized error code";
}

RUNTIME_API const char* cudaGetErrorName(cudaError_t error) {
    const char* name = nullptr;
    cuGetErrorName(static_cast<CUresult>(error), &name);
    return name ? name : "unrecognized error code";
}

RUNTIME_API cudaError_t cudaDriverGetVersion(int* version) {
    return result(cuDriverGetVersion(version));
}

RUNTIME_API cudaError_t cudaRuntimeGetVersion(int* version) {
    *version = CUDART_VERSION;
    return cudaSuccess;
}

RUNTIME_API cudaError_t cudaGetDriverEntryPointByVersion(const char* symbol, void** function,
                                                         unsigned version,
                                                         unsigned long long flags,
                                                         cudaDriverEntryPointQueryResult* status) {
    if (CUresult failed = initialize()) return result(failed);
    CUdriverProcAddressQueryResult found = CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    cuGetProcAddress(symbol, function, static_cast<int>(version), flags, &found);
    if (status) *status = static_cast<cudaDriverEntryPointQueryResult>(found);
    return cudaSuccess;
}

RUNTIME_API cudaError_t cudaGetDriverEntryPoint(const char* symbol, void** function,
                                                unsigned long long flags,
                                                cudaDriverEntryPointQueryResult* status) {
    return cudaGetDriverEntryPointByVersion(symbol, function, CUDART_VERSION, flags, status);
}

RUNTIME_API cudaError_t cudaProfilerStart() { return cudaSuccess; }
RUNTIME_API cudaError_t cudaProfilerStop() { return cudaSuccess; }
