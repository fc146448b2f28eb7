// Streams, their capture, and events.
#include "runtime.hpp"

using namespace runtime;

RUNTIME_API cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags,
                                                     int priority) {
    return call(cuStreamCreateWithPriority, stream, flags, priority);
}

RUNTIME_API cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
    return call(cuStreamCreate, stream, flags);
}

RUNTIME_API cudaError_t cudaStreamCreate(cudaStream_t* stream) {
    return cudaStreamCreateWithFlags(stream, cudaStreamDefault);
}

RUNTIME_API cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    return call(cuStreamDestroy, stream);
}

RUNTIME_API cudaError_t cudaStreamGetPriority(cudaStream_t stream, int* priority) {
    return call(cuStreamGetPriority, stream, priority);
}

RUNTIME_API cudaError_t cudaStreamGetFlags(cudaStream_t stream, unsigned* flags) {
    return call(cuStreamGetFlags, stream, flags);
}

RUNTIME_API cudaError_t cudaStreamGetId(cudaStream_t stream, unsigned long long* id) {
    return call(cuStreamGetId, stream, id);
}

RUNTIME_API cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    return call(cuStreamSynchronize, stream);
}

RUNTIME_API cudaError_t cudaStreamQuery(cudaStream_t stream) { return call(cuStreamQuery, stream); }

RUNTIME_API cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event,
                                            unsigned flags) {
    return call(cuStreamWaitEvent, stream, event, flags);
}

RUNTIME_API cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function,
                                           void* argument) {
    return call(cuLaunchHostFunc, stream, function, argument);
}

RUNTIME_API cudaError_t cudaStreamAddCallback(cudaStream_t stream, cudaStreamCallback_t function,
                                              void* argument, unsigned flags) {
    return call(cuStreamAddCallback, stream, reinterpret_cast<CUstreamCallback>(function), argument,
                flags);
}

RUNTIME_API cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
    return call(cuStreamBeginCapture, stream, static_cast<CUstreamCaptureMode>(mode));
}

RUNTIME_API cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    return call(cuStreamEndCapture, stream, graph);
}

RUNTIME_API cudaError_t cudaStreamIsCapturing(cudaStream_t stream,
                                              cudaStreamCaptureStatus* status) {
    return call(cuStreamIsCapturing, stream, reinterpret_cast<CUstreamCaptureStatus*>(status));
}

RUNTIME_API cudaError_t cudaStreamGetCaptureInfo(cudaStream_t stream,
                                                 cudaStreamCaptureStatus* status,
                                                 unsigned long long* id, cudaGraph_t* graph,
                                                 const cudaGraphNode_t** dependencies,
                                                 const cudaGraphEdgeData** edges, size_t* count) {
    return call(cuStreamGetCaptureInfo, stream, reinterpret_cast<CUstreamCaptureStatus*>(status),
                reinterpret_cast<cuuint64_t*>(id), graph, dependencies,
                reinterpret_cast<const CUgraphEdgeData**>(edges), count);
}

RUNTIME_API cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
    return call(cuThreadExchangeStreamCaptureMode, reinterpret_cast<CUstreamCaptureMode*>(mode));
}

RUNTIME_API cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return call(cuGraphDestroy, graph); }

RUNTIME_API cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
    return call(cuEventCreate, event, flags);
}

RUNTIME_API cudaError_t cudaEventCreate(cudaEvent_t* event) {
    return cudaEventCreateWithFlags(event, cudaEventDefault);
}

RUNTIME_API cudaError_t cudaEventDestroy(cudaEvent_t event) { return call(cuEventDestroy, event); }

RUNTIME_API cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    return call(cuEventRecord, event, stream);
}

RUNTIME_API cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream,
                                                 unsigned flags) {
    return call(cuEventRecordWithFlags, event, stream, flags);
}

RUNTIME_API cudaError_t cudaEventQuery(cudaEvent_t event) { return call(cuEventQuery, event); }

RUNTIME_API cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    return call(cuEventSynchronize, event);
}

RUNTIME_API cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from,
                                             cudaEvent_t to) {
    return call(cuEventElapsedTime, milliseconds, from, to);
}
