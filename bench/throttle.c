// A source of a known rate: preloaded, it lets all threads of a process together read no faster than
// THROTTLE_GBPS by pread(2) and preadv2(2), in 10^9 bytes per second. Reads of less than 64 KiB, as a
// header's, are free.
//
//   gcc -std=c11 -O2 -fPIC -shared -o throttle.so bench/throttle.c
//   LD_PRELOAD=throttle.so THROTTLE_GBPS=2 SAFETENSORS_STREAMING_READER=pread program
//
// Each read books its bytes on one clock, the source's, and returns when that clock has come so far.
// A source that has idled owes nothing and is owed nothing: its clock does not lag behind real time.
#define _GNU_SOURCE
#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define FREE_BYTES (64 << 10)
#define SECOND_NS 1000000000LL

static _Atomic long long source_ns;

static long long now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * SECOND_NS + now.tv_nsec;
}

static double gigabytes_per_second(void) {
    const char *rate = getenv("THROTTLE_GBPS");
    return rate ? atof(rate) : 0;
}

// Books the bytes from the moment the read began, and waits for their end.
static void wait_for(size_t bytes, long long began_ns) {
    double rate = gigabytes_per_second();
    if (rate <= 0) return;
    long long cost_ns = (long long)((double)bytes / rate), end_ns;
    long long booked_ns = atomic_load(&source_ns);
    do {
        end_ns = (booked_ns > began_ns ? booked_ns : began_ns) + cost_ns;
    } while (!atomic_compare_exchange_weak(&source_ns, &booked_ns, end_ns));
    struct timespec end = {end_ns / SECOND_NS, end_ns % SECOND_NS};
    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &end, NULL) == EINTR) {}
}

static ssize_t booked(ssize_t read_bytes, long long began_ns) {
    if (read_bytes >= FREE_BYTES) wait_for((size_t)read_bytes, began_ns);
    return read_bytes;
}

ssize_t pread64(int file, void *buffer, size_t size, off64_t offset) {
    long long began_ns = now_ns();
    return booked(syscall(SYS_pread64, file, buffer, size, offset), began_ns);
}

ssize_t pread(int file, void *buffer, size_t size, off_t offset) {
    return pread64(file, buffer, size, offset);
}

ssize_t preadv64v2(int file, const struct iovec *parts, int count, off64_t offset, int flags) {
    long long began_ns = now_ns();
    return booked(syscall(SYS_preadv2, file, parts, count, offset, 0, flags), began_ns);
}

ssize_t preadv2(int file, const struct iovec *parts, int count, off_t offset, int flags) {
    return preadv64v2(file, parts, count, offset, flags);
}
