// A libnvidia-ml.so.1 beside the simulated driver: what a loader asks about its devices.
//
// SIMCUDA_DEVICES, SIMCUDA_MEM and SIMCUDA_DRIVER mean what they mean to the driver.
// SIMNVML_GEN, SIMNVML_WIDTH: generation and width of the PCI link at present (5, 16).
// SIMNVML_NUMA: the devices' NUMA node (0); negative: not supported.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPORT __attribute__((visibility("default")))

typedef int Result;
enum {
    SUCCESS = 0,
    UNINITIALIZED = 1,
    INVALID_ARGUMENT = 2,
    NOT_SUPPORTED = 3,
    NOT_FOUND = 6,
    DRIVER_NOT_LOADED = 9,
};
enum { MAX_GENERATION = 5, MAX_WIDTH = 16 };

// Index of the device, plus one.
typedef void* Device;

typedef struct {
    unsigned long long total, free, used;
} Memory;

typedef struct {
    unsigned version;
    unsigned long long total, reserved, free, used;
} Memory2;

typedef struct {
    char legacy_bus_id[16];
    unsigned domain, bus, device, device_id, subsystem_id;
    char bus_id[32];
} PciInfo;

static int initialized;

static long long number(const char* name, long long otherwise) {
    const char* value = getenv(name);
    return value && *value ? atoll(value) : otherwise;
}

static unsigned index_of(Device device) { return (unsigned)(size_t)device - 1; }

static unsigned count(void) { return (unsigned)number("SIMCUDA_DEVICES", 1); }

static Result find(unsigned index, Device* device) {
    if (!initialized) return UNINITIALIZED;
    if (index >= count()) return NOT_FOUND;
    *device = (Device)(size_t)(index + 1);
    return SUCCESS;
}

// Asks the simulated driver, if this process has it.
static Memory memory_of(Device device) {
    Memory memory = {(unsigned long long)number("SIMCUDA_MEM", 4ll << 30), 0, 0};
    size_t free_bytes = memory.total, total = memory.total;
    void* driver = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
    if (driver) {
        void (*ask)(size_t, size_t*, size_t*);
        *(void**)&ask = dlsym(driver, "simcuda_memory");
        if (ask) ask(index_of(device), &free_bytes, &total);
        dlclose(driver);
    }
    memory.total = total;
    memory.free = free_bytes;
    memory.used = total - free_bytes;
    return memory;
}

static Result put(unsigned* target, long long value) {
    if (!target) return INVALID_ARGUMENT;
    *target = (unsigned)value;
    return SUCCESS;
}

static Result put_text(char* target, unsigned size, const char* text) {
    if (!target || size <= strlen(text)) return INVALID_ARGUMENT;
    strcpy(target, text);
    return SUCCESS;
}

EXPORT Result nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    if (count() == 0) return DRIVER_NOT_LOADED;
    initialized = 1;
    return SUCCESS;
}

EXPORT Result nvmlInit_v2(void) { return nvmlInitWithFlags(0); }

EXPORT Result nvmlShutdown(void) {
    initialized = 0;
    return SUCCESS;
}

EXPORT const char* nvmlErrorString(Result result) {
    switch (result) {
        case SUCCESS: return "Success";
        case UNINITIALIZED: return "Uninitialized";
        case INVALID_ARGUMENT: return "Invalid Argument";
        case NOT_SUPPORTED: return "Not Supported";
        case NOT_FOUND: return "Not Found";
        case DRIVER_NOT_LOADED: return "Driver Not Loaded";
        default: return "Unknown Error";
    }
}

EXPORT Result nvmlSystemGetDriverVersion(char* version, unsigned size) {
    return put_text(version, size, "580.65.06");
}

EXPORT Result nvmlSystemGetCudaDriverVersion_v2(int* version) {
    *version = (int)number("SIMCUDA_DRIVER", 13000);
    return SUCCESS;
}

EXPORT Result nvmlDeviceGetCount_v2(unsigned* devices) {
    return initialized ? put(devices, count()) : UNINITIALIZED;
}

EXPORT Result nvmlDeviceGetHandleByIndex_v2(unsigned index, Device* device) {
    return find(index, device);
}

EXPORT Result nvmlDeviceGetHandleByPciBusId_v2(const char* text, Device* device) {
    unsigned domain, bus;
    if (sscanf(text, "%x:%x:", &domain, &bus) != 2 || bus == 0) return INVALID_ARGUMENT;
    return find(bus - 1, device);
}

EXPORT Result nvmlDeviceGetIndex(Device device, unsigned* index) {
    return put(index, index_of(device));
}

EXPORT Result nvmlDeviceGetName(Device device, char* name, unsigned size) {
    (void)device;
    return put_text(name, size, "Simulated CUDA device");
}

EXPORT Result nvmlDeviceGetPciInfo_v3(Device device, PciInfo* info) {
    memset(info, 0, sizeof *info);
    info->bus = index_of(device) + 1;
    snprintf(info->bus_id, sizeof info->bus_id, "00000000:%02X:00.0", info->bus);
    snprintf(info->legacy_bus_id, sizeof info->legacy_bus_id, "0000:%02X:00.0", info->bus);
    return SUCCESS;
}

EXPORT Result nvmlDeviceGetCurrPcieLinkGeneration(Device device, unsigned* generation) {
    (void)device;
    return put(generation, number("SIMNVML_GEN", MAX_GENERATION));
}

EXPORT Result nvmlDeviceGetMaxPcieLinkGeneration(Device device, unsigned* generation) {
    (void)device;
    return put(generation, MAX_GENERATION);
}

EXPORT Result nvmlDeviceGetCurrPcieLinkWidth(Device device, unsigned* width) {
    (void)device;
    return put(width, number("SIMNVML_WIDTH", MAX_WIDTH));
}

EXPORT Result nvmlDeviceGetMaxPcieLinkWidth(Device device, unsigned* width) {
    (void)device;
    return put(width, MAX_WIDTH);
}

EXPORT Result nvmlDeviceGetNumaNodeId(Device device, unsigned* node) {
    (void)device;
    const long long value = number("SIMNVML_NUMA", 0);
    return value < 0 ? NOT_SUPPORTED : put(node, value);
}

EXPORT Result nvmlDeviceGetMemoryInfo(Device device, Memory* memory) {
    *memory = memory_of(device);
    return SUCCESS;
}

EXPORT Result nvmlDeviceGetMemoryInfo_v2(Device device, Memory2* memory) {
    const Memory known = memory_of(device);
    memory->total = known.total;
    memory->free = known.free;
    memory->used = known.used;
    memory->reserved = 0;
    return SUCCESS;
}

// Other processes are not seen.
EXPORT Result nvmlDeviceGetComputeRunningProcesses(Device device, unsigned* processes, void* infos) {
    (void)device, (void)infos;
    return put(processes, 0);
}

// What torch looks up together with the others.
EXPORT Result nvmlDeviceGetNvLinkRemoteDeviceType(void) { return NOT_SUPPORTED; }
EXPORT Result nvmlDeviceGetNvLinkRemotePciInfo_v2(void) { return NOT_SUPPORTED; }
EXPORT Result nvmlDeviceGetGpuFabricInfoV(void) { return NOT_SUPPORTED; }

EXPORT Result nvmlDeviceGetCpuAffinity(Device device, unsigned words, unsigned long* mask) {
    (void)device;
    if (words == 0) return INVALID_ARGUMENT;
    memset(mask, 0, words * sizeof *mask);
    mask[0] = 3; // the first two processors
    return SUCCESS;
}
