/* Steps the wall clock and slows the disk of the processes that preload this, and of no others.

   A time namespace offsets the monotonic clocks only, and `date -s` would hit the whole machine. The
   file named by CHAOS_SHIM holds two 64-bit numbers, shared by every process: seconds that are added
   to the wall clock, and microseconds that each write to a regular file takes longer. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct control {
    volatile int64_t step_s;
    volatile int64_t delay_us;
};

static struct control nothing;
static struct control *control = &nothing;

__attribute__((constructor)) static void attach(void) {
    const char *path = getenv("CHAOS_SHIM");
    int file = path ? open(path, O_RDONLY | O_CLOEXEC) : -1;
    if (file < 0) return;
    void *found = mmap(NULL, sizeof(struct control), PROT_READ, MAP_SHARED, file, 0);
    if (found != MAP_FAILED) control = found;
    close(file);
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    int result = real(clock, now);
    if (result == 0 && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE))
        now->tv_sec += control->step_s;
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec exact;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &exact);
    now->tv_sec = exact.tv_sec;
    now->tv_usec = exact.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *kept) {
    struct timespec exact;
    clock_gettime(CLOCK_REALTIME, &exact);
    if (kept) *kept = exact.tv_sec;
    return exact.tv_sec;
}

static void delay(int file) {
    struct stat what;
    if (control->delay_us > 0 && fstat(file, &what) == 0 && S_ISREG(what.st_mode)) {
        struct timespec pause = {control->delay_us / 1000000, control->delay_us % 1000000 * 1000};
        nanosleep(&pause, NULL);
    }
}

ssize_t write(int file, const void *data, size_t size) {
    delay(file);
    return syscall(SYS_write, file, data, size);
}

ssize_t writev(int file, const struct iovec *parts, int count) {
    delay(file);
    return syscall(SYS_writev, file, parts, count);
}

int fsync(int file) {
    delay(file);
    return syscall(SYS_fsync, file);
}
