/* What io_uring and AIO do with a stream, in the current directory: see programs.rs. */
#include <fcntl.h>
#include <liburing.h>
#include <linux/aio_abi.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static struct io_uring ring;
static char bytes[1 << 20];
static char lines[4 << 20];

static int done(const char *what)
{
    struct io_uring_cqe *cqe;
    io_uring_submit(&ring);
    if (io_uring_wait_cqe(&ring, &cqe) != 0)
        exit(3);
    int result = cqe->res;
    io_uring_cqe_seen(&ring, cqe);
    if (result < 0) {
        fprintf(stderr, "%s: %s\n", what, strerror(-result));
        exit(2);
    }
    return result;
}

/* One read by AIO, as libaio makes it. */
static int aio_read(int fd)
{
    aio_context_t context = 0;
    struct iocb read = {
        .aio_lio_opcode = IOCB_CMD_PREAD,
        .aio_fildes = fd,
        .aio_buf = (unsigned long)bytes,
        .aio_nbytes = sizeof bytes,
    };
    struct iocb *reads[] = {&read};
    struct io_event event;
    if (syscall(SYS_io_setup, 1, &context) != 0 || syscall(SYS_io_submit, context, 1, reads) != 1 ||
        syscall(SYS_io_getevents, context, 1, 1, &event, NULL) != 1)
        exit(5);
    return event.res;
}

/* To the slot, of which no process has a descriptor. */
static void put(const char *from, unsigned len)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&ring);
    io_uring_prep_write(sqe, 0, from, len, 0);
    sqe->flags |= IOSQE_FIXED_FILE;
    if (done("write") != len)
        exit(4);
}

int main(int argc, char **argv)
{
    if (argc < 3 || io_uring_queue_init(8, &ring, 0) != 0)
        return 77;
    if (strcmp(argv[1], "aio") == 0) {
        int got = aio_read(open(argv[2], O_RDONLY));
        fwrite(bytes, 1, got, stdout);
    } else if (strcmp(argv[1], "read") == 0) {
        /* More than there is, from the beginning on. */
        int fd = open(argv[2], O_RDONLY);
        io_uring_prep_read(io_uring_get_sqe(&ring), fd, bytes, sizeof bytes, 0);
        int got = done("read");
        fwrite(bytes, 1, got, stdout);
    } else {
        int slot = -1;
        if (io_uring_register_files(&ring, &slot, 1) != 0)
            return 77;
        io_uring_prep_openat_direct(io_uring_get_sqe(&ring), AT_FDCWD, argv[2],
                                    O_WRONLY | O_APPEND, 0, 0);
        done("openat");
        if (strcmp(argv[1], "long") == 0) {
            /* One write of many pieces. */
            for (int n = 0; n < (4 << 20) / 16; n++)
                sprintf(lines + 16 * n, "%015d", n), lines[16 * n + 15] = '\n';
            put(lines, sizeof lines);
        } else {
            put("one\n", 4);
            put("two\n", 4);
        }
        io_uring_prep_close_direct(io_uring_get_sqe(&ring), 0);
        done("close");
    }
    io_uring_queue_exit(&ring);
    return 0;
}
