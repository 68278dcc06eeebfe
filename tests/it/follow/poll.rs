//! poll(2), select(2) and epoll(7) on what grows.

use super::{A_WHILE, Follower, status_kib, three};
use crate::commit::python;
use crate::harness::*;
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::time::Duration;

#[test]
fn poll_tells_of_what_was_not_read() {
    let m = Mnt::new();
    for file in ["events", "from/1", "follow/1", "from/next", "follow/newest"] {
        let s = m.stream(file.replace('/', "-"));
        append(s.join("events"), "0\n1\n2\n");
        ok(&python(
            &s,
            &format!(
                r"
        import select, threading, time
        fd = os.open('{file}', os.O_RDONLY)
        poll, epoll = select.poll(), select.epoll()
        poll.register(fd, select.POLLIN)
        epoll.register(fd, select.EPOLLIN)
        def ready(seconds):
            'Whether it is readable, as all three say.'
            begin = time.monotonic()
            said = [bool(select.select([fd], [], [], seconds)[0]),
                    bool(poll.poll(seconds * 1000)), bool(epoll.poll(seconds))]
            assert said in ([True] * 3, [False] * 3), said
            return said[0]
        def drain():
            'Where a read at the end does not wait, the end is one of the things to be read.'
            while ready(0):
                last = os.read(fd, 1)
            assert bool(last) == ('{file}'.startswith('follow'))
        def append(text):
            with open('events', 'a') as f:
                f.write(text)
        assert ready(0) and ready(5), 'there is something'
        if '{file}' != 'from/next':
            assert os.read(fd, 1)
            assert ready(0), 'level-triggered: there is more'
        drain()
        assert not ready(0) and not ready(.2), 'all is read'
        append('3\n')
        assert ready(5) and ready(0)
        drain()
        assert not ready(.1)
        for wait in (lambda: select.select([fd], [], [], 10)[0], lambda: poll.poll(10_000),
                     lambda: epoll.poll(10)):
            threading.Timer(.3, append, ['x\n']).start()
            begin = time.monotonic()
            assert wait(), 'woken by a commit'
            assert .2 < time.monotonic() - begin < 2, time.monotonic() - begin
            assert os.read(fd, 1) == b'x'
            assert ready(0)
            drain()
        "
            ),
        ));
    }
}

#[test]
fn poll_of_what_does_not_grow_is_ready() {
    let m = Mnt::new();
    let s = three(&m);
    ok(&python(
        &s,
        r"
        import select
        for name in ['count', 'at/1', 'new']:
            fd = os.open(name, os.O_RDONLY)
            assert select.select([fd], [], [], 0)[0], name
        fd = os.open('lines', os.O_WRONLY | os.O_APPEND)
        assert select.select([], [fd], [], 0)[1]
        ",
    ));
}

#[test]
fn poll_is_woken_by_another_mount() {
    let m = Mnt::new();
    let s = three(&m);
    let other = Mnt::on(m.store(), &[]);
    let script = "
import os, select
fd = os.open('follow/next', os.O_RDONLY)
print(select.select([fd], [], [], 20)[0] == [fd], os.read(fd, 100))
";
    let mut reader = Follower::start(&s, &["python3", "-ISc", script]);
    reader.is_quiet(A_WHILE);
    append(other.path().join("s/events"), "3\n");
    reader.prints(&["True b'3\\n'"]);
}

#[test]
fn a_poll_with_many_streams_says_which() {
    let m = Mnt::new();
    let s = m.stream("s0");
    for n in 1..50 {
        m.stream(format!("s{n}"));
    }
    ok(&python(
        &s,
        r"
        import selectors
        selector = selectors.DefaultSelector()
        for n in range(50):
            selector.register(open(f'../s{n}/follow/0', 'rb', buffering=0), selectors.EVENT_READ, n)
        for n in (7, 0, 49):
            assert selector.select(.05) == []
            with open(f'../s{n}/events', 'a') as f:
                f.write(f'{n}\n')
            (key, _), = selector.select(5)
            assert key.data == n and key.fileobj.read(100) == b'%d\n' % n
        ",
    ));
}

/// A program that polls with a short timeout asks again and again, and then goes away.
#[test]
fn polling_a_quiet_stream_takes_no_memory() {
    let m = Mnt::new();
    let s = three(&m);
    let poll = r"
        import select
        for _ in range(10):
            fd = os.open('follow/next', os.O_RDONLY)
            for _ in range(3000):
                assert not select.select([fd], [], [], 1e-6)[0]
            os.close(fd)
        ";
    ok(&python(&s, poll));
    let before = status_kib(m.pid(), "VmRSS:");
    ok(&python(&s, poll));
    ok(&python(&s, poll));
    let grown = status_kib(m.pid(), "VmRSS:").saturating_sub(before);
    eprintln!("60,000 polls: {grown} KiB");
    assert!(grown < 2000, "{grown} KiB");
}

#[test]
fn edge_triggered_polls_are_woken_each_time() {
    let m = Mnt::new();
    let s = m.stream("s");
    ok(&python(
        &s,
        r"
        import select
        for name in ['follow/next', 'events', 'from/next']:
            fd = os.open(name, os.O_RDONLY | os.O_NONBLOCK)
            poll = select.epoll()
            poll.register(fd, select.EPOLLIN | select.EPOLLET)
            def drain():
                try:
                    while os.read(fd, 100): pass
                except BlockingIOError: pass
            drain()
            while poll.poll(0.2): drain()
            for n in range(5):
                os.system(f'echo {n} | cat >> events')
                assert poll.poll(20), (name, n)
                # Who does not read at once is not told again.
                assert not poll.poll(0.4), (name, n)
                drain()
        # Also who has read some of an object only.
        fd = os.open('follow/0.json', os.O_RDONLY | os.O_NONBLOCK)
        os.read(fd, 10)
        poll = select.epoll()
        poll.register(fd, select.EPOLLIN | select.EPOLLET)
        assert poll.poll(20)
        drain()
        os.system('echo more | cat >> events')
        assert poll.poll(20), 'JSON'
        ",
    ));
}

#[test]
fn a_waiting_poll_is_woken_by_rename_and_removal() {
    let m = Mnt::new();
    for command in ["mv s t", "rmdir s"] {
        let s = m.stream("s");
        let script = "
import os, select
fd = os.open('follow/next', os.O_RDONLY | os.O_NONBLOCK)
poll = select.poll()
poll.register(fd, select.POLLIN)
print('waits', flush=True)
print(len(poll.poll(20000)), os.read(fd, 9), flush=True)
try: print(poll.poll(0), os.read(fd, 9))
except BlockingIOError: print('no more')
except FileNotFoundError: print('no more')
";
        let mut reader = Follower::start(&s, &["python3", "-ISc", script]);
        reader.prints(&["waits"]);
        std::thread::sleep(Duration::from_millis(500));
        ok(&sh("sh", command, m.path()));
        reader.prints(&["1 b''", "no more"]);
        reader.ends_well();
    }
}

/// Is it readable, at the latest after so many milliseconds?
fn polls(file: &File, timeout: i32) -> bool {
    let mut fd = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    assert!(unsafe { libc::poll(&raw mut fd, 1, timeout) } >= 0);
    fd.revents & libc::POLLIN != 0
}

#[test]
fn pollers_that_went_away_are_forgotten() {
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("events"), "x\n");
    let rss = || {
        let status = fs::read_to_string(format!("/proc/{}/status", m.pid())).unwrap();
        let line = status.lines().find(|l| l.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap()
    };
    // Ready at once: whoever polls both is told to wait for the first, and does not.
    let ready = File::open("/dev/null").unwrap();
    let run = |opens: usize| {
        for _ in 0..opens {
            let mut file = File::open(s.join("events")).unwrap();
            file.read_to_end(&mut Vec::new()).unwrap();
            for _ in 0..10 {
                let mut fds = [&file, &ready].map(|file| libc::pollfd {
                    fd: file.as_raw_fd(),
                    events: libc::POLLIN,
                    revents: 0,
                });
                assert!(unsafe { libc::poll(fds.as_mut_ptr(), 2, 1000) } >= 0);
                assert_eq!(fds.map(|fd| fd.revents & libc::POLLIN), [0, libc::POLLIN]);
            }
        }
    };
    run(200);
    let before = rss();
    run(2000);
    let grown = rss().saturating_sub(before);
    assert!(grown <= 2048, "{grown} KiB more");
    // And those that are there are still told.
    let mut file = File::open(s.join("events")).unwrap();
    file.read_to_end(&mut Vec::new()).unwrap();
    let waits = std::thread::spawn(move || polls(&file, 10_000));
    std::thread::sleep(Duration::from_millis(100));
    append(s.join("events"), "y\n");
    assert!(waits.join().unwrap());
}

#[test]
fn poll_is_quiet_once_the_end_was_read_but_not_before() {
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("events"), "0\n1\n");
    need("busybox", "busybox");
    // Its `read` polls before each byte, also at the end.
    let script = "while read x; do echo got $x; done < events; echo end";
    let command = format!("timeout 10 busybox sh -c '{script}'");
    assert_eq!(ok(&sh("sh", &command, &s)), "got 0\ngot 1\nend\n");
    for name in ["events", "from/1"] {
        let mut file = File::open(s.join(name)).unwrap();
        assert!(polls(&file, 0), "{name}: there is something");
        let mut rest = [0; 100];
        while file.read(&mut rest).unwrap() > 0 {
            assert!(polls(&file, 0), "{name}: more, or an end nobody was told of");
        }
        for timeout in [0, 200] {
            assert!(!polls(&file, timeout), "{name}: nothing new");
        }
        append(s.join("events"), "more\n");
        assert!(polls(&file, 2000), "{name}: a commit");
        assert_eq!(file.read(&mut rest).unwrap(), 5);
        assert_eq!(file.read(&mut rest).unwrap(), 0);
        assert!(!polls(&file, 0), "{name}: quiet again");
    }
}
