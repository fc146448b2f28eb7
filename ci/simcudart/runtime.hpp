// A CUDA runtime (libcudart.so.13) on top of the driver: what all parts of it share.
#pragma once

#include <cuda.h>
#include <cuda_runtime_api.h>

#define RUNTIME_API extern "C" __attribute__((visibility("default")))

namespace runtime {

// Turns the driver's answer into the runtime's, and keeps an error as the thread's last one.
cudaError_t result(CUresult answer);
cudaError_t result(cudaError_t answer);

// The same for a failed call that must be known to nobody but its caller.
inline cudaError_t quiet(CUresult answer) { return static_cast<cudaError_t>(answer); }

// Initializes the driver, once.
CUresult initialize();

// Makes sure that a context is current: the one that is, or that of the thread's chosen device.
CUresult bind();

// Calls the driver with a context.
template <class Function, class... Arguments>
cudaError_t call(Function function, Arguments... arguments) {
    if (CUresult failed = bind()) return result(failed);
    return result(function(arguments...));
}

inline CUdeviceptr address(const void* pointer) { return reinterpret_cast<CUdeviceptr>(pointer); }

}  // namespace runtime
