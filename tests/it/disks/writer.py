"""Appends to a store without end, and writes down which of its batches were acknowledged.

    writer.py KIND NAME MOUNTPOINT FILE

Batch B of writer W is the lines "W B 1 of N" to "W B N of N". FILE gets a line for each: "B" when
it was acknowledged, "B ERRNO" when it was not, and may be there or not. What fails is not tried
again, except by the guarded, which find out what became of it.
"""
import errno, os, sys, time

kind, me, root, notes = sys.argv[1:]
parent = os.getppid()
notes = os.open(notes, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
held = None


def put(path, lines, flags=os.O_APPEND):
    fd = os.open(f'{root}/{path}', os.O_WRONLY | flags)
    try:
        for line in lines:
            os.write(fd, line)
    finally:
        os.close(fd)


def hold(path, flags=0):
    global held
    if held is None:
        held = os.open(f'{root}/{path}', os.O_WRONLY | os.O_APPEND | flags)
    return held


def let_go():
    global held
    fd, held = held, None
    try:
        if fd is not None:
            os.close(fd)
    except OSError:
        pass  # what it says is known


def by_close(batch, lines):
    put('s/events', lines)


def by_fsync(batch, lines):
    fd = hold('s/events')
    for line in lines:
        os.write(fd, line)
    os.fsync(fd)


def by_write(batch, lines):
    os.write(hold('s/events', os.O_DSYNC), b''.join(lines))


def by_lines(batch, lines):
    os.write(hold('s/lines'), b''.join(lines))


def spilled(batch, lines):
    time.sleep(0.05)
    put('s/events', [line[:-1] + b' ' + b'x' * 100000 + b'\n' for line in lines])


def new(batch, lines):
    put('s/new', [b'%s %d 1 of 1' % (me.encode(), batch)], flags=0)


def holder(n):
    """The event at index n, without its newline; None when there is none, or nobody answers."""
    try:
        with open(f'{root}/g/at/{n}', 'rb') as event:
            return event.read()
    except OSError:
        return None


def guarded(batch, lines):
    n = None
    while os.getppid() == parent:
        try:
            if n is None:
                with open(f'{root}/g/count') as count:
                    n = int(count.read())
            return put(f'g/from/{n}', lines)
        except OSError:
            # Was it we, before the answer got lost?
            event = n is not None and holder(n)
            if event:
                if event + b'\n' == lines[0]:
                    return
                n = None
            time.sleep(0.002)


def maker(batch, lines):
    """A stream for each batch; every other one gets another name."""
    time.sleep(0.02)
    name = f'{me}-{batch}'
    os.mkdir(f'{root}/{name}')
    put(f'{name}/events', lines)
    if batch % 2:
        os.rename(f'{root}/{name}', f'{root}/{name}-renamed')


commit = globals()[kind]
batch = 0
while os.getppid() == parent:
    lines = batch % 5 + 1
    lines = [f'{me} {batch} {n} of {lines}\n'.encode() for n in range(1, lines + 1)]
    try:
        commit(batch, lines)
        os.write(notes, b'%d\n' % batch)
    except OSError as error:
        let_go()
        os.write(notes, b'%d %s\n' % (batch, errno.errorcode[error.errno].encode()))
        time.sleep(0.005)
    batch += 1
    time.sleep(0.001)
