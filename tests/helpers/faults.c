/* A library to preload: counts the changes that a process makes on disk below a folder, and at a chosen one kills the
   process, sends it a signal, or makes this change, and every later one, fail as on a full or failing disk.

   cc -shared -fPIC -O1 -o faults.so faults.c -ldl; LD_PRELOAD=faults.so python ...; then call fault_arm. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static char root[4096];
static long chosen = -1, seen = 0;
static int failure = 0; /* 0: kill; above 0: errno; below 0: minus a signal */

void fault_arm(const char *folder, long change, int error) {
    strncpy(root, folder, sizeof root - 1);
    chosen = change, failure = error, seen = 0;
}

long fault_seen(void) { return seen; }

static int due(const char *path) {
    if (!root[0] || !path || strncmp(path, root, strlen(root))) return 0;
    long number = __atomic_add_fetch(&seen, 1, __ATOMIC_SEQ_CST);
    if (chosen < 0 || number < chosen) return 0;
    if (failure > 0) return errno = failure, 1;
    if (failure < 0) return number == chosen && kill(getpid(), -failure), 0;
    kill(getpid(), SIGKILL);
    return 1;
}

static int due_file(int file) {
    char link[64], path[4096];
    if (!root[0] || file < 3) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return due(path);
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = (__typeof__(name) *)dlsym(RTLD_NEXT, #name)

ssize_t write(int file, const void *data, size_t size) { REAL(write); return due_file(file) ? -1 : real(file, data, size); }
ssize_t pwrite(int file, const void *data, size_t size, off_t at) { REAL(pwrite); return due_file(file) ? -1 : real(file, data, size, at); }
ssize_t pwrite64(int file, const void *data, size_t size, off64_t at) { REAL(pwrite64); return due_file(file) ? -1 : real(file, data, size, at); }
ssize_t writev(int file, const struct iovec *parts, int count) { REAL(writev); return due_file(file) ? -1 : real(file, parts, count); }
int fsync(int file) { REAL(fsync); return due_file(file) ? -1 : real(file); }
int fdatasync(int file) { REAL(fdatasync); return due_file(file) ? -1 : real(file); }
int ftruncate(int file, off_t size) { REAL(ftruncate); return due_file(file) ? -1 : real(file, size); }
int rename(const char *from, const char *to) { REAL(rename); return due(to) ? -1 : real(from, to); }
int link(const char *from, const char *to) { REAL(link); return due(to) ? -1 : real(from, to); }
int mkdir(const char *path, mode_t mode) { REAL(mkdir); return due(path) ? -1 : real(path, mode); }
/* removing needs no space: it is a place to be killed at, but does not fail */
int unlink(const char *path) { REAL(unlink); if (failure <= 0) due(path); return real(path); }
int rmdir(const char *path) { REAL(rmdir); if (failure <= 0) due(path); return real(path); }

#define OPEN(name)                                                     \
    int name(const char *path, int flags, ...) {                       \
        REAL(name);                                                    \
        mode_t mode = 0;                                               \
        if (flags & (O_CREAT | O_TMPFILE)) {                           \
            va_list rest;                                              \
            va_start(rest, flags);                                     \
            mode = va_arg(rest, mode_t);                               \
            va_end(rest);                                              \
        }                                                              \
        if ((flags & (O_CREAT | O_TRUNC)) && due(path)) return -1;     \
        return real(path, flags, mode);                                \
    }
OPEN(open)
OPEN(open64)
