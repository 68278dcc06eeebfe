/* A failing disk, preloaded into the daemon: its calls fail as the file FAULTS says, read anew at
 * each call. A line of it is one fault:
 *
 *     CALL PATH-SUFFIX ERRNO SKIP FROM TO
 *
 * CALL (pread, pwrite, ftruncate, fdatasync, fsync, open) on a file of which the name ends so fails
 * with ERRNO, after the first SKIP of such calls; pread and pwrite only where they touch the bytes
 * FROM..TO, and like a kernel they come up to there first. ERRNO 0: the call waits until the line
 * is gone. What struck is added to the file FAULTS.struck, a line each. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static char faults[4096];
static int skipped[64];

static int raw_open(const char *path, int flags)
{
    return syscall(SYS_openat, AT_FDCWD, path, flags | O_CLOEXEC, 0600);
}

static void note(const char *call, const char *path)
{
    char name[4096], line[4096];
    snprintf(name, sizeof name, "%s.struck", getenv("FAULTS"));
    int len = snprintf(line, sizeof line, "%s %s\n", call, path);
    int fd = raw_open(name, O_WRONLY | O_APPEND | O_CREAT);
    if (write(fd, line, len) != len)
        abort();
    close(fd);
}

/* The errno that a call is to fail with, -1 when it is not to. A range is shortened to what comes
 * before the fault. */
static int fault(const char *call, const char *path, off_t from, size_t *len)
{
    char now[sizeof faults], waited = 0;
again:
    pthread_mutex_lock(&mutex);
    int fd = raw_open(getenv("FAULTS"), O_RDONLY);
    ssize_t size = fd < 0 ? 0 : read(fd, now, sizeof now - 1);
    now[size < 0 ? 0 : size] = 0;
    close(fd);
    if (strcmp(now, faults) != 0) {
        strcpy(faults, now);
        memset(skipped, 0, sizeof skipped);
    }
    int answer = -1, n = 0;
    for (char *rest, *line = strtok_r(now, "\n", &rest); line; line = strtok_r(0, "\n", &rest), n++) {
        char name[32], suffix[256];
        int error, skip;
        long long bad, end;
        if (sscanf(line, "%31s %255s %d %d %lld %lld", name, suffix, &error, &skip, &bad, &end) != 6)
            abort();
        size_t all = strlen(path), tail = strlen(suffix);
        if (strcmp(call, name) != 0 || all < tail || strcmp(path + all - tail, suffix) != 0)
            continue;
        if (len && (from >= end || from + (off_t)*len <= bad))
            continue;
        if (skipped[n] < skip) {
            skipped[n]++;
            continue;
        }
        if (len && from < bad) {
            *len = bad - from;
            continue;
        }
        answer = error;
        break;
    }
    pthread_mutex_unlock(&mutex);
    if (answer >= 0 && !waited)
        note(call, path);
    if (answer == 0) {
        waited = 1;
        usleep(1000);
        goto again;
    }
    return answer;
}

static int fault_of(const char *call, int fd, off_t from, size_t *len)
{
    int before = errno;
    char link[64], path[4096];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t size = readlink(link, path, sizeof path - 1);
    path[size < 0 ? 0 : size] = 0;
    int error = fault(call, path, from, len);
    errno = error > 0 ? error : before;
    return error > 0;
}

ssize_t pread64(int fd, void *bytes, size_t len, off64_t at)
{
    return fault_of("pread", fd, at, &len) ? -1 : syscall(SYS_pread64, fd, bytes, len, at);
}

ssize_t pwrite64(int fd, const void *bytes, size_t len, off64_t at)
{
    return fault_of("pwrite", fd, at, &len) ? -1 : syscall(SYS_pwrite64, fd, bytes, len, at);
}

int ftruncate64(int fd, off64_t len)
{
    return fault_of("ftruncate", fd, 0, 0) ? -1 : syscall(SYS_ftruncate, fd, len);
}

int fdatasync(int fd)
{
    return fault_of("fdatasync", fd, 0, 0) ? -1 : syscall(SYS_fdatasync, fd);
}

int fsync(int fd)
{
    return fault_of("fsync", fd, 0, 0) ? -1 : syscall(SYS_fsync, fd);
}

int open64(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    int mode = va_arg(rest, int), error = fault("open", path, 0, 0);
    va_end(rest);
    if (error > 0) {
        errno = error;
        return -1;
    }
    return syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}
