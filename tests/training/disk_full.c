/* For LD_PRELOAD: below a folder, the so manieth call that puts something on the disk is the first that fails for want of
   room; a write puts half of its bytes there before. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

static char below[4096];
static long room = -1, calls = 0;

void disk_full_after(const char *folder, long number) { strncpy(below, folder, sizeof below - 1); room = number; calls = 0; }
long disk_full_calls(void) { return calls; }

static int counts(const char *path) { return room >= 0 && !strncmp(path, below, strlen(below)); }

static int counts_file(int file) {
    char link[64], path[4096];
    if (room < 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return counts(path);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FULL return (errno = ENOSPC, -1)

ssize_t write(int file, const void *bytes, size_t size) {
    if (counts_file(file) && ++calls > room) {
        if (calls == room + 1 && size > 1) return NEXT(write)(file, bytes, size / 2);
        FULL;
    }
    return NEXT(write)(file, bytes, size);
}
ssize_t writev(int file, const struct iovec *parts, int number) {
    if (counts_file(file) && ++calls > room) FULL;
    return NEXT(writev)(file, parts, number);
}
int fsync(int file) {
    if (counts_file(file) && ++calls > room) FULL;
    return NEXT(fsync)(file);
}
int mkdir(const char *path, mode_t mode) {
    if (counts(path) && ++calls > room) FULL;
    return NEXT(mkdir)(path, mode);
}
