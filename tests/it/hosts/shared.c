/* A file system that hosts share, preloaded into a daemon, which is one of these hosts. statfs says that it
 * is of the type TYPE. What is read without O_DIRECT is kept as it was then, whatever others write: a page
 * cache that nobody tells. The files in the directory HOST say what happens to this host:
 *
 *     anew        all files that were opened before its last change are dead (ENOTCONN)
 *     fenced      open files answer EPERM, names ENOENT
 *     unwritten   pwrite on a log comes to its second page, and then fails with EIO
 *     indirect    nothing can be opened with O_DIRECT
 *     unmarked    the first open of the store's mark finds nothing
 *     hung        no stat of a name in the store comes back
 *     lacking     there is no O_TMPFILE, no fallocate, no birth time, no file handle
 *
 *     counted     each open, stat and pread is added to the file `asked` there
 *
 * Each ftruncate is added to the file `truncated` there, each of what is lacking to `lacked`. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#define PAGE 4096
#define FILES 4096
#define PAGES 4096

/* Of an open file of a stream. */
static struct { char known, log, direct; long long opened; } files[FILES];
/* What this host's page cache holds. */
static struct { ino_t file; off_t at; char bytes[PAGE]; } cache[PAGES];
static int cached, marked;
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

/* When this was said, 0 when it is not. */
static long long said(const char *what)
{
    char path[4096];
    struct stat found;
    int before = errno;
    snprintf(path, sizeof path, "%s/%s", getenv("HOST"), what);
    long failed = syscall(SYS_newfstatat, AT_FDCWD, path, &found, 0);
    errno = before;
    return failed ? 0 : found.st_mtim.tv_sec * 1000000000LL + found.st_mtim.tv_nsec;
}

static int ends(const char *path, const char *with)
{
    size_t all = strlen(path), tail = strlen(with);
    return all >= tail && strcmp(path + all - tail, with) == 0;
}

/* Adds a line to a file of the host's. */
static void note(const char *what)
{
    char path[4096];
    snprintf(path, sizeof path, "%s/%s", getenv("HOST"), what);
    int file = syscall(SYS_openat, AT_FDCWD, path, O_WRONLY | O_APPEND | O_CREAT, 0600);
    if (write(file, "\n", 1) != 1)
        abort();
    close(file);
}

static void ask(void)
{
    if (said("counted"))
        note("asked");
}

/* Whether a call on an open file fails, with errno set. */
static int fails(int fd)
{
    if (fd < 0 || fd >= FILES || !files[fd].known)
        return 0;
    if (said("anew") > files[fd].opened)
        errno = ENOTCONN;
    else if (said("fenced"))
        errno = EPERM;
    else
        return 0;
    return 1;
}

/* Whether the file system cannot do this, with errno set. */
static int lacks(void)
{
    if (!said("lacking"))
        return 0;
    note("lacked");
    errno = EOPNOTSUPP;
    return 1;
}

static int in_store(const char *path)
{
    return strstr(path, "/store") || strstr(path, "/proc/thread-self/fd/");
}

int open64(const char *path, int flags, ...)
{
    va_list rest;
    va_start(rest, flags);
    int mode = va_arg(rest, int), log = ends(path, "/log");
    va_end(rest);
    if (in_store(path))
        ask();
    errno = 0;
    if (in_store(path) && said("fenced"))
        errno = ENOENT;
    if (ends(path, "/.smolstore") && said("unmarked") && !marked++)
        errno = ENOENT;
    if ((flags & O_DIRECT) && said("indirect"))
        errno = EINVAL;
    if ((flags & O_TMPFILE) == O_TMPFILE && lacks())
        return -1;
    if (errno)
        return -1;
    int fd = syscall(SYS_openat, AT_FDCWD, path, flags, mode);
    if (fd >= 0 && fd < FILES) {
        files[fd].known = log || ends(path, "/index");
        files[fd].log = log;
        files[fd].direct = (flags & O_DIRECT) != 0;
        files[fd].opened = said("anew");
    }
    return fd;
}

int statfs(const char *path, struct statfs *out)
{
    int failed = syscall(SYS_statfs, path, out);
    out->f_type = strtol(getenv("TYPE"), 0, 16);
    return failed;
}

int statx(int fd, const char *path, int flags, unsigned mask, struct statx *out)
{
    if (*path ? in_store(path) : fd < FILES && files[fd].known)
        ask();
    while (in_store(path) && said("hung"))
        usleep(10000);
    if (!*path ? fails(fd) : in_store(path) && said("fenced") && (errno = ENOENT))
        return -1;
    long failed = syscall(SYS_statx, fd, path, flags, mask, out);
    if (!failed && said("lacking"))
        out->stx_mask &= ~STATX_BTIME;
    return failed;
}

int fallocate(int fd, int mode, off_t from, off_t len)
{
    return lacks() ? -1 : syscall(SYS_fallocate, fd, mode, from, len);
}

int name_to_handle_at(int dir, const char *path, struct file_handle *handle, int *mount, int flags)
{
    return lacks() ? -1 : syscall(SYS_name_to_handle_at, dir, path, handle, mount, flags);
}

/* The page of the cache, read when it is new. */
static char *page(int fd, ino_t file, off_t at)
{
    for (int i = 0; i < cached; i++)
        if (cache[i].file == file && cache[i].at == at)
            return cache[i].bytes;
    if (cached == PAGES)
        abort();
    cache[cached].file = file;
    cache[cached].at = at;
    if (syscall(SYS_pread64, fd, cache[cached].bytes, PAGE, at) < 0)
        abort();
    return cache[cached++].bytes;
}

ssize_t pread64(int fd, void *bytes, size_t len, off64_t at)
{
    struct stat found;
    ask();
    if (fails(fd))
        return -1;
    if (fd >= FILES || !files[fd].known || files[fd].direct || fstat(fd, &found) || at >= found.st_size)
        return syscall(SYS_pread64, fd, bytes, len, at);
    off_t from = at - at % PAGE;
    size_t most = from + PAGE - at, left = found.st_size - at;
    len = len < most ? len : most;
    len = len < left ? len : left;
    pthread_mutex_lock(&mutex);
    memcpy(bytes, page(fd, found.st_ino, from) + (at - from), len);
    pthread_mutex_unlock(&mutex);
    return len;
}

ssize_t pwrite64(int fd, const void *bytes, size_t len, off64_t at)
{
    struct stat found;
    if (fails(fd))
        return -1;
    int known = fd < FILES && files[fd].known;
    if (known && files[fd].log && said("unwritten")) {
        if (at >= PAGE) {
            errno = EIO;
            return -1;
        }
        len = at + (off_t)len > PAGE ? (size_t)(PAGE - at) : len;
    }
    if (known && !files[fd].direct && !fstat(fd, &found)) {
        pthread_mutex_lock(&mutex);
        for (off_t here = at - at % PAGE; here < at + (off_t)len; here += PAGE) {
            off_t from = here > at ? here : at, to = here + PAGE < at + (off_t)len ? here + PAGE : at + (off_t)len;
            memcpy(page(fd, found.st_ino, here) + (from - here), (char *)bytes + (from - at), to - from);
        }
        pthread_mutex_unlock(&mutex);
    }
    return syscall(SYS_pwrite64, fd, bytes, len, at);
}

int ftruncate64(int fd, off64_t len)
{
    note("truncated");
    return fails(fd) ? -1 : syscall(SYS_ftruncate, fd, len);
}

int fdatasync(int fd)
{
    return fails(fd) ? -1 : syscall(SYS_fdatasync, fd);
}

int flock(int fd, int how)
{
    return fails(fd) ? -1 : syscall(SYS_flock, fd, how);
}
