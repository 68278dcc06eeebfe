//! Faults that a reader of the source found, each once.

use crate::commit::{batches, python};
use crate::harness::*;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

/// Takes away the room a log has in reserve, as another mount of the store may, and all other.
fn fill(disk: &SmallDisk, log: &Path) {
    let end = read(log).iter().rposition(|&b| b != 0).unwrap() + 1;
    let file = OpenOptions::new().write(true).open(log).unwrap();
    file.set_len(end as u64).unwrap();
    disk.fill();
}

// One open file, several writers.

#[test]
fn what_another_wrote_during_a_commit_stays_when_a_third_is_killed() {
    let m = Mnt::new();
    for turn in 0..8 {
        let s = m.stream(format!("s{turn}"));
        ok(&python(
            &s,
            &format!(
                r"
                fd = appender()
                closing, wrote, died = Gate(), Gate(), Gate()
                def slow():
                    for _ in range(4): os.write(fd, b'0123456789abcde\n' * (1 << 16))
                    closing.open()
                    os.close(fd)
                def writes():
                    closing.wait()
                    time.sleep(0.003 * {turn})
                    os.write(fd, b'a\n')
                    wrote.open()
                    died.wait()
                    if {turn} % 2: time.sleep(0.3)
                    os.close(fd)
                def dies():
                    wrote.wait()
                    os.write(fd, b'bbbb')
                    die(signal.SIGKILL)
                first, second, third = fork(slow), fork(writes), fork(dies)
                assert wait(third) == -signal.SIGKILL
                died.open()
                assert wait(second) == 0
                assert wait(first) == 0
                "
            ),
        ));
        let all = text(&read(s.join("events")));
        let others = all.lines().filter(|line| *line != "0123456789abcde");
        assert_eq!(others.collect::<Vec<_>>(), ["a"], "turn {turn}");
    }
}

#[test]
fn whose_line_was_lost_with_a_failed_commit_is_told() {
    let disk = SmallDisk::new(24);
    let m = Mnt::on(&disk.path(), &[]);
    let s = m.stream("s");
    append(s.join("events"), "first\n");
    for say in ["os.fsync(fd)", "os.close(fd)"] {
        let (base, out) = (tempfile::TempDir::new().unwrap(), s.clone());
        let gates = base.path().to_str().unwrap().to_string();
        let script = format!(
            r"
            def until(name):
                while not os.path.exists('{gates}/' + name): time.sleep(0.01)
            fd = appender()
            wrote, failed = Gate(), Gate()
            def second():
                wrote.wait()
                os.write(fd, b'b\nc')
                open('{gates}/written', 'w')
                failed.wait()
                assert error(os.write, fd, b'd\n') == 'No space left on device', 'write'
                assert error(lambda: {say}) == 'No space left on device', 'commit'
            child = fork(second)
            os.write(fd, b'0123456789abcde\n' * 32768)
            wrote.open()
            until('full')
            assert error(os.close, fd) == 'No space left on device', 'close'
            open('{gates}/failed', 'w')
            until('empty')
            failed.open()
            assert wait(child) == 0
            "
        );
        let program = std::thread::spawn(move || python(&out, &script));
        let come = |gate: &str| {
            eventually(gate, || program.is_finished() || base.path().join(gate).exists());
        };
        come("written");
        fill(&disk, &disk.path().join("s/log"));
        fs::write(base.path().join("full"), "").unwrap();
        come("failed");
        disk.empty();
        fs::write(base.path().join("empty"), "").unwrap();
        ok(&program.join().unwrap());
        assert_eq!(batches(&s), ["first\n"], "{say}");
    }
}

#[test]
fn a_torn_line_whose_head_was_lost_is_not_glued_to_the_next() {
    for (file, flags) in [("lines", 0), ("events", libc::O_DSYNC)] {
        let disk = SmallDisk::new(24);
        let m = Mnt::on(&disk.path(), &[]);
        let s = m.stream("s");
        append(s.join("events"), "first\n");
        // A batch that is given up leaves the log with room for the next one.
        ok(&python(
            &s,
            r"
            def body():
                os.write(appender(), b'0123456789abcde\n' * 49152)
                die(signal.SIGKILL)
            assert wait(fork(body)) == -signal.SIGKILL
            ",
        ));
        let mut options = OpenOptions::new();
        let options = options.append(true).custom_flags(flags);
        let mut lines = options.open(s.join(file)).unwrap();
        // The commit has to wait, so that the room is taken between the write and it.
        let log = disk.path().join("s/log");
        let lock = File::open(&log).unwrap();
        lock.lock().unwrap();
        let mut writer = lines.try_clone().unwrap();
        let torn = "0123456789abcde\n".repeat(32768) + "b";
        // It comes back, for closing it would clear the failure.
        let write = std::thread::spawn(move || (writer.write_all(torn.as_bytes()), writer));
        std::thread::sleep(Duration::from_millis(500));
        fill(&disk, &log);
        lock.unlock().unwrap();
        let (wrote, _writer) = write.join().unwrap();
        assert_eq!(errno_of(wrote), libc::ENOSPC, "{file}");
        disk.empty();
        // Each write commits by itself, and so each is tried by itself.
        lines.write_all(b"c\n").unwrap();
        lines.sync_all().unwrap();
        lines.write_all(b"works again\n").unwrap();
        close(lines).unwrap();
        assert_eq!(batches(&s), ["first\n", "c\n", "works again\n"], "{file}");
    }
}

#[test]
fn a_torn_line_behind_a_lost_guard_is_not_glued_to_the_next() {
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("events"), "first\n");
    let mut options = OpenOptions::new();
    let options = options.append(true).custom_flags(libc::O_DSYNC);
    let mut loser = options.open(s.join("from/1")).unwrap();
    // Both wait for the same lock, the winner in front.
    let lock = File::open(m.store().join("s/log")).unwrap();
    lock.lock().unwrap();
    let events = s.join("events");
    let winner = std::thread::spawn(move || append(events, "winner\n"));
    std::thread::sleep(Duration::from_millis(300));
    let mut other = loser.try_clone().unwrap();
    let write = std::thread::spawn(move || (other.write_all(b"a\nb"), other));
    std::thread::sleep(Duration::from_millis(300));
    lock.unlock().unwrap();
    winner.join().unwrap();
    let (wrote, _other) = write.join().unwrap();
    assert_eq!(errno_of(wrote), libc::EEXIST);
    assert_eq!(errno_of(loser.write_all(b"c\n")), libc::EEXIST);
    loser.sync_all().expect("each write was told, and nothing is pending");
    close(loser).unwrap();
    assert_eq!(batches(&s), ["first\n", "winner\n"]);
}

#[test]
fn a_failed_fsync_of_the_only_writer_left_is_told_once() {
    let m = Mnt::new();
    let s = m.stream("s");
    ok(&python(
        &s,
        r"
        fd = appender('from/0')
        os.write(fd, b'loser\n')
        def last_to_write():
            os.write(fd, b'torn')
            die(signal.SIGKILL)
        assert wait(fork(last_to_write)) == -signal.SIGKILL
        winner = appender()
        os.write(winner, b'winner\n')
        os.close(winner)
        assert error(os.fsync, fd) == 'File exists'
        os.close(fd)
        ",
    ));
    assert_eq!(batches(&s), ["winner\n"]);
}

/// Two processes close one guarded file, the second while the first is committing; `first` may
/// come before both. Says what the two closes said.
fn closes_of_a_guarded_file(stream: &Path, log: &Path, first: &str) -> String {
    let script = format!(
        r"
        import fcntl
        fd = appender('from/1')
        said = {{}}
        def closes(who, fd):
            said[who] = error(os.close, fd)
        gate = Gate()
        def second():
            gate.wait()
            os.write(fd, b'second\n')
            closes('second', fd)
            print(said, flush=True)
        child = fork(second)
        os.write(fd, b'first\n')
        # A commit waits for this lock.
        log = open('{}')
        fcntl.flock(log, fcntl.LOCK_EX)
        waiting = ':%d ' % os.fstat(log.fileno()).st_ino
        def until_it_waits():
            while not any('->' in l and waiting in l for l in open('/proc/locks')): time.sleep(0.01)
        {first}
        thread = threading.Thread(target=closes, args=('first', os.dup(fd)))
        thread.start()
        until_it_waits()
        time.sleep(0.1)
        gate.open()
        time.sleep(0.3)
        fcntl.flock(log, fcntl.LOCK_UN)
        assert wait(child) == 0
        thread.join()
        print(said)
        ",
        log.display()
    );
    ok(&python(stream, &script))
}

#[test]
fn a_guard_follows_the_commit_before_it() {
    let m = Mnt::new();
    let (s, log) = (m.stream("s"), m.store().join("s/log"));
    append(s.join("events"), "zero\n");
    let said = closes_of_a_guarded_file(&s, &log, "");
    assert_eq!(said, "{'second': None}\n{'first': None}\n");
    assert_eq!(batches(&s), ["zero\n", "first\n", "second\n"]);
}

#[test]
fn a_guard_is_lost_with_the_commit_before_it() {
    let m = Mnt::new();
    let (s, log) = (m.stream("s"), m.store().join("s/log"));
    append(s.join("events"), "zero\n");
    // The winner is of the length of the first: the second would get the index it counted on.
    let winner = "
        def wins():
            fd = appender()
            os.write(fd, b'winner\\n')
            os.close(fd)
        winner = fork(wins)
        until_it_waits()";
    let said = closes_of_a_guarded_file(&s, &log, winner);
    assert_eq!(said, "{'second': 'File exists'}\n{'first': 'File exists'}\n");
    assert_eq!(batches(&s), ["zero\n", "winner\n"]);
}

/// Two processes write to one guarded file, which loses its guard while B commits what both wrote.
/// Says what B heard of that, and A, who asked after the commit had begun.
fn who_asks_while_another_commits_for_it(call: &str) -> String {
    let m = Mnt::new();
    let (s, log) = (m.stream("s"), m.store().join("s/log"));
    append(s.join("events"), "zero\n");
    let script = format!(
        r"
        import fcntl
        fd = appender('from/1')
        wrote = Gate()
        def user(name, gate, call):
            os.write(fd, name)
            wrote.open()
            gate.wait()
            print(name.decode(), error(call, fd), flush=True)
        gates = [Gate(), Gate()]
        a = fork(lambda: user(b'A', gates[0], {call}))
        wrote.wait()
        b = fork(lambda: user(b'B\n', gates[1], os.close))
        wrote.wait()
        os.close(fd)
        log = open('{}')
        fcntl.flock(log, fcntl.LOCK_EX)
        waiting = ':%d ' % os.fstat(log.fileno()).st_ino
        def wins():
            fd = appender()
            os.write(fd, b'winner\n')
            os.close(fd)
        winner = fork(wins)
        while not any('->' in l and waiting in l for l in open('/proc/locks')): time.sleep(0.01)
        gates[1].open()
        time.sleep(0.3)
        gates[0].open()
        time.sleep(0.3)
        fcntl.flock(log, fcntl.LOCK_UN)
        assert [wait(user) for user in [winner, a, b]] == [0, 0, 0]
        ",
        log.display()
    );
    let said = ok(&python(&s, &script));
    assert_eq!(batches(&s), ["zero\n", "winner\n"]);
    let mut said: Vec<_> = said.split_whitespace().collect();
    said.sort_unstable();
    said.join(" ")
}

#[test]
fn a_close_tells_what_became_of_bytes_that_another_one_commits() {
    let said = who_asks_while_another_commits_for_it("os.close");
    assert_eq!(said, "A B File File exists exists");
}

#[test]
fn an_fsync_tells_what_became_of_bytes_that_another_one_commits() {
    let said = who_asks_while_another_commits_for_it("os.fsync");
    assert_eq!(said, "A B File File exists exists");
}

#[test]
fn a_page_changed_through_a_map_is_no_event() {
    let m = Mnt::new();
    let s = m.stream("s");
    let all = "0123456789abcde\n".repeat(1024);
    append(s.join("events"), &all);
    for file in ["events", "lines", "from/1024"] {
        // The map, the change or the msync may fail, even by SIGBUS.
        ok(&python(
            &s,
            &format!(
                r"
                import mmap
                def body():
                    fd = os.open('{file}', os.O_RDWR | os.O_APPEND)
                    pages = mmap.mmap(fd, 4096, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
                    pages[:4] = b'x\ny\n'
                    error(pages.flush)
                    error(os.fsync, fd)
                    error(pages.close)
                    error(os.close, fd)
                os.dup2(os.open('/dev/null', os.O_WRONLY), 2)
                wait(fork(body))
                "
            ),
        ));
        assert_eq!(count(&s), 1024, "{file}");
    }
    std::thread::sleep(Duration::from_millis(200));
    assert!(read(s.join("events")) == all.as_bytes());
    m.restart();
    assert!(read(s.join("events")) == all.as_bytes());
}

// Two mounts.

#[test]
fn a_stream_renamed_elsewhere_before_its_first_event_loses_nothing() {
    let a = Mnt::new();
    let b = Mnt::on(a.store(), &[]);
    let mut turn = 0;
    for file in ["events", "lines", "new"] {
        for before in [false, true] {
            for again in [false, true] {
                turn += 1;
                let what = format!("{file}, written before: {before}, name reused: {again}");
                let (old, new) = (format!("s{turn}"), format!("t{turn}"));
                let s = a.stream(&old);
                assert_eq!(count(&s), 0);
                let mut open = OpenOptions::new().append(true).open(s.join(file)).unwrap();
                let mut result = Ok(());
                if before && file != "lines" {
                    open.write_all(b"x").unwrap();
                }
                fs::rename(b.path().join(&old), b.path().join(&new)).unwrap();
                if again {
                    b.stream(&old);
                }
                if !before || file == "lines" {
                    result = open.write_all(b"x\n"[..if file == "new" { 1 } else { 2 }].as_ref());
                }
                let result = result.and(close(open));
                if let Err(error) = result {
                    assert_eq!(error.raw_os_error(), Some(libc::ENOENT), "{what}");
                    // Nothing of it may come back beside what is tried again.
                    append(b.path().join(&new).join("events"), "x\n");
                }
                for m in [&a, &b] {
                    // A name may be remembered for a second.
                    eventually(&what, || m.path().join(&new).exists());
                    assert_eq!(batches(&m.path().join(&new)), ["x\n"], "{what}");
                }
                if again {
                    assert_eq!(count(&b.path().join(&old)), 0, "{what}");
                }
            }
        }
    }
    let names: Vec<_> = (1..=turn).map(|n| format!("t{n}")).collect();
    b.stop();
    a.restart();
    for name in names {
        assert_eq!(batches(&a.path().join(&name)), ["x\n"], "{name}");
    }
}

#[test]
fn what_a_crash_left_of_a_batch_does_not_keep_others_out() {
    let m = Mnt::new();
    let s = m.stream("s");
    let [log, index] = ["s/log", "s/index"].map(|file| m.store().join(file));
    let mut events = String::new();
    for turn in 0..3 {
        let before = if turn == 0 { Vec::new() } else { read(&index) };
        append(s.join("events"), format!("{turn}\n").repeat(4000));
        m.stop();
        // As after a power cut: its first pages came to the disk, its last did not, nor did `last`.
        let mut bytes = read(&log);
        let last = bytes.iter().rposition(|&byte| byte != 0).unwrap() / 4096 * 4096;
        bytes[last..].fill(0);
        fs::write(&log, bytes).unwrap();
        fs::write(&index, before).unwrap();
        m.restart();
        assert_eq!(text(&read(s.join("events"))), events);
        append(s.join("events"), "kept\n");
        events += "kept\n";
        assert_eq!(text(&read(s.join("events"))), events);
    }
    m.restart();
    assert_eq!(text(&read(s.join("events"))), events);
}
