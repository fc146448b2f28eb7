// Device and pinned memory, copies and fills.
#include <cstring>

#include "runtime.hpp"

using namespace runtime;

namespace {

// A size of zero gives no memory and no error.
template <class Allocate>
cudaError_t allocate(void** pointer, size_t bytes, Allocate driver) {
    *pointer = nullptr;
    if (CUresult failed = bind()) return result(failed);
    if (bytes == 0) return cudaSuccess;
    CUdeviceptr given = 0;
    const CUresult answer = driver(&given);
    if (answer == CUDA_SUCCESS) *pointer = reinterpret_cast<void*>(given);
    return result(answer);
}

cudaError_t copy_rows(void* to, size_t to_pitch, const void* from, size_t from_pitch, size_t width,
                      size_t height, CUstream stream, bool wait) {
    CUDA_MEMCPY2D plan = {};
    plan.srcMemoryType = plan.dstMemoryType = CU_MEMORYTYPE_UNIFIED;
    plan.srcDevice = address(from);
    plan.srcPitch = from_pitch;
    plan.dstDevice = address(to);
    plan.dstPitch = to_pitch;
    plan.WidthInBytes = width;
    plan.Height = height;
    return wait ? call(cuMemcpy2D, &plan) : call(cuMemcpy2DAsync, &plan, stream);
}

}  // namespace

RUNTIME_API cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
    return call(cuMemGetInfo, free, total);
}

RUNTIME_API cudaError_t cudaMalloc(void** pointer, size_t bytes) {
    return allocate(pointer, bytes, [=](CUdeviceptr* to) { return cuMemAlloc(to, bytes); });
}

RUNTIME_API cudaError_t cudaMallocAsync(void** pointer, size_t bytes, cudaStream_t stream) {
    return allocate(pointer, bytes,
                    [=](CUdeviceptr* to) { return cuMemAllocAsync(to, bytes, stream); });
}

RUNTIME_API cudaError_t cudaMallocFromPoolAsync(void** pointer, size_t bytes, cudaMemPool_t pool,
                                                cudaStream_t stream) {
    return allocate(pointer, bytes, [=](CUdeviceptr* to) {
        return cuMemAllocFromPoolAsync(to, bytes, pool, stream);
    });
}

RUNTIME_API cudaError_t cudaFree(void* pointer) { return call(cuMemFree, address(pointer)); }

RUNTIME_API cudaError_t cudaFreeAsync(void* pointer, cudaStream_t stream) {
    return pointer ? call(cuMemFreeAsync, address(pointer), stream) : cudaSuccess;
}

RUNTIME_API cudaError_t cudaHostAlloc(void** pointer, size_t bytes, unsigned flags) {
    *pointer = nullptr;
    return bytes ? call(cuMemHostAlloc, pointer, bytes, flags) : cudaSuccess;
}

RUNTIME_API cudaError_t cudaMallocHost(void** pointer, size_t bytes) {
    return cudaHostAlloc(pointer, bytes, 0);
}

RUNTIME_API cudaError_t cudaFreeHost(void* pointer) {
    return pointer ? call(cuMemFreeHost, pointer) : cudaSuccess;
}

RUNTIME_API cudaError_t cudaHostRegister(void* pointer, size_t bytes, unsigned flags) {
    return call(cuMemHostRegister, pointer, bytes, flags);
}

RUNTIME_API cudaError_t cudaHostUnregister(void* pointer) {
    return call(cuMemHostUnregister, pointer);
}

RUNTIME_API cudaError_t cudaHostGetDevicePointer(void** device, void* pointer, unsigned flags) {
    return call(cuMemHostGetDevicePointer, reinterpret_cast<CUdeviceptr*>(device), pointer, flags);
}

RUNTIME_API cudaError_t cudaHostGetFlags(unsigned* flags, void* pointer) {
    return call(cuMemHostGetFlags, flags, pointer);
}

RUNTIME_API cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes,
                                                 const void* pointer) {
    memset(attributes, 0, sizeof *attributes);
    attributes->type = cudaMemoryTypeUnregistered;
    attributes->device = -2;
    if (CUresult failed = initialize()) return result(failed);
    unsigned kind = 0;
    CUpointer_attribute wanted[] = {
        CU_POINTER_ATTRIBUTE_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL,
        CU_POINTER_ATTRIBUTE_DEVICE_POINTER, CU_POINTER_ATTRIBUTE_HOST_POINTER};
    void* values[] = {&kind, &attributes->device, &attributes->devicePointer,
                      &attributes->hostPointer};
    const CUresult answer = cuPointerGetAttributes(4, wanted, values, address(pointer));
    if (kind == CU_MEMORYTYPE_DEVICE) attributes->type = cudaMemoryTypeDevice;
    if (kind == CU_MEMORYTYPE_HOST) attributes->type = cudaMemoryTypeHost;
    return result(answer);
}

RUNTIME_API cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes,
                                        cudaMemcpyKind kind, cudaStream_t stream) {
    switch (kind) {
        case cudaMemcpyHostToDevice:
            return call(cuMemcpyHtoDAsync, address(to), from, bytes, stream);
        case cudaMemcpyDeviceToHost:
            return call(cuMemcpyDtoHAsync, to, address(from), bytes, stream);
        default:
            return call(cuMemcpyAsync, address(to), address(from), bytes, stream);
    }
}

RUNTIME_API cudaError_t cudaMemcpy(void* to, const void* from, size_t bytes, cudaMemcpyKind) {
    return call(cuMemcpy, address(to), address(from), bytes);
}

RUNTIME_API cudaError_t cudaMemcpyPeerAsync(void* to, int, const void* from, int, size_t bytes,
                                            cudaStream_t stream) {
    return call(cuMemcpyAsync, address(to), address(from), bytes, stream);
}

RUNTIME_API cudaError_t cudaMemcpy2DAsync(void* to, size_t to_pitch, const void* from,
                                          size_t from_pitch, size_t width, size_t height,
                                          cudaMemcpyKind, cudaStream_t stream) {
    return copy_rows(to, to_pitch, from, from_pitch, width, height, stream, false);
}

RUNTIME_API cudaError_t cudaMemcpy2D(void* to, size_t to_pitch, const void* from,
                                     size_t from_pitch, size_t width, size_t height,
                                     cudaMemcpyKind) {
    return copy_rows(to, to_pitch, from, from_pitch, width, height, nullptr, true);
}

RUNTIME_API cudaError_t cudaMemsetAsync(void* to, int value, size_t bytes, cudaStream_t stream) {
    return call(cuMemsetD8Async, address(to), static_cast<unsigned char>(value), bytes, stream);
}

RUNTIME_API cudaError_t cudaMemset(void* to, int value, size_t bytes) {
    return call(cuMemsetD8, address(to), static_cast<unsigned char>(value), bytes);
}

RUNTIME_API cudaError_t cudaDeviceGetDefaultMemPool(cudaMemPool_t* pool, int device) {
    if (CUresult failed = initialize()) return result(failed);
    return result(cuDeviceGetDefaultMemPool(pool, device));
}

RUNTIME_API cudaError_t cudaDeviceGetMemPool(cudaMemPool_t* pool, int device) {
    if (CUresult failed = initialize()) return result(failed);
    return result(cuDeviceGetMemPool(pool, device));
}

RUNTIME_API cudaError_t cudaDeviceSetMemPool(int device, cudaMemPool_t pool) {
    return result(cuDeviceSetMemPool(device, pool));
}

RUNTIME_API cudaError_t cudaMemPoolSetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute,
                                                void* value) {
    return result(cuMemPoolSetAttribute(pool, static_cast<CUmemPool_attribute>(attribute), value));
}

RUNTIME_API cudaError_t cudaMemPoolGetAttribute(cudaMemPool_t pool, cudaMemPoolAttr attribute,
                                                void* value) {
    return result(cuMemPoolGetAttribute(pool, static_cast<CUmemPool_attribute>(attribute), value));
}

RUNTIME_API cudaError_t cudaMemPoolTrimTo(cudaMemPool_t pool, size_t bytes) {
    return result(cuMemPoolTrimTo(pool, bytes));
}
