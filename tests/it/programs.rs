//! Programs that nobody here wrote for, and what they ask of a mount. Where a file's identity is
//! asked for see `identity.rs`.

use crate::commit::{batches, python};
use crate::follow::Follower;
use crate::harness::*;
use std::fs::{self, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tempfile::TempDir;

/// Compiles one of the programs beside this; says where it is. The directory keeps it.
fn compiled(tool: &str, package: &str, command: &str, source: &str) -> (TempDir, PathBuf) {
    need(tool, package);
    let dir = public_dir();
    let name = command.split(' ').find(|word| word.starts_with("program.")).unwrap();
    fs::write(dir.path().join(name), source).unwrap();
    ok(&sh("sh", command, dir.path()));
    let program = dir.path().join("program");
    (dir, program)
}

// Waiting.

#[test]
fn go_follows() {
    let source = include_str!("programs/follow.go");
    let build = "HOME=$PWD GOFLAGS=-mod=mod GO111MODULE=off go build -o program program.go";
    let (_dir, program) = compiled("go", "golang-go", build, source);
    let m = Mnt::new();
    let s = m.stream("s");
    for arguments in [&[][..], &["deadline"]] {
        let command = [&[program.to_str().unwrap()], arguments].concat();
        let mut go = Follower::start(&s, &command);
        go.prints(&["open"]);
        for n in 0..5 {
            append(s.join("events"), format!("event {n}\n"));
            go.prints(&[&format!("event {n}")]);
        }
        fs::rename(&s, m.path().join("t")).unwrap();
        go.prints(&["EOF"]);
        go.ends_well();
        fs::rename(m.path().join("t"), &s).unwrap();
    }
}

#[test]
fn processes_that_share_a_follower_share_its_events() {
    let m = Mnt::new();
    let s = m.stream("s");
    ok(&python(
        &s,
        r"
        fd = os.open('follow/next', os.O_RDONLY)
        out, into = os.pipe()
        def reader():
            while True:
                line = os.read(fd, 1 << 20)
                os.write(into, line)
        readers = [fork(reader) for _ in range(3)]
        time.sleep(0.5)
        events = [f'event {n}\n' for n in range(300)]
        for n in range(0, 300, 10):
            with open('events', 'a') as f: f.writelines(events[n:n + 10])
        os.set_blocking(out, True)
        got = ''
        while got.count('\n') < 300: got += os.read(out, 1 << 16).decode()
        assert sorted(got.splitlines(True)) == sorted(events)
        # All wait, and each can be killed; the others go on.
        time.sleep(0.5)
        for n, pid in enumerate(readers):
            os.kill(pid, signal.SIGKILL)
            started = time.monotonic()
            assert wait(pid) == -signal.SIGKILL
            assert time.monotonic() - started < 5
            if n < 2:
                with open('events', 'a') as f: f.write(f'after {n}\n')
                assert os.read(out, 100).decode() == f'after {n}\n'
        ",
    ));
}

#[test]
fn who_goes_through_a_tree_and_follows_links_comes_to_its_end() {
    need("busybox", "busybox");
    need("rsync", "rsync");
    let m = Mnt::new();
    append(m.stream("s").join("events"), "needle\n");
    let copies = public_dir();
    let to = copies.path().to_str().unwrap();
    for command in [
        "busybox grep -r needle .".to_string(),
        "grep -R needle .".into(),
        format!("cp -rL s {to}/cp"),
        format!("rsync -rL s {to}/rsync"),
        "find -L . -type f -exec cat {} +".into(),
    ] {
        // at/next leads to nothing, which some of them say.
        let out = sh("sh", &format!("timeout 60 {command}"), m.path());
        assert_ne!(out.status.code(), Some(124), "{command}: {}", text(&out.stderr));
    }
    assert_eq!(read(copies.path().join("cp/from/newest")), b"needle\n");
}

// io_uring.

#[test]
fn io_uring_and_aio_read_what_there_is_once() {
    let (_dir, program) = uring();
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("events"), "one\ntwo\n");
    for name in ["events", "from/0", "follow/0"] {
        for how in ["read", "aio"] {
            let command = format!("timeout 20 {} {how} {name}", program.display());
            assert_eq!(ok(&sh("sh", &command, &s)), "one\ntwo\n", "{how} {name}");
        }
    }
}

#[test]
fn a_long_read_of_a_follower_ends_with_what_there_is() {
    let (_dir, program) = uring();
    let m = Mnt::new();
    let s = m.stream("s");
    // More than the kernel asks for at a time, less than the read is long.
    let events: String = (0..8192).map(|n| format!("{n:063}\n")).collect();
    append(s.join("events"), &events);
    let uring = format!("timeout 20 {} read follow/0", program.display());
    let once = "timeout 20 dd if=follow/0 bs=1M count=1 status=none".to_string();
    for command in [uring, once] {
        let read = ok(&sh("sh", &command, &s));
        // Whole events, once; how many depends on how the kernel cuts the read into pieces.
        assert!(events.starts_with(&read) && read.ends_with('\n'), "{command}: {}", read.len());
    }
    // And one that is longer.
    let long = [&[b'x'; 999_999][..], b"\n"].concat();
    append(s.join("events"), &long);
    let mut file = fs::File::open(s.join("follow/8192")).unwrap();
    let mut bytes = vec![0; long.len()];
    within(20, move || file.read_exact(&mut bytes).map(|()| assert!(bytes == long)).unwrap());
}

#[test]
fn what_io_uring_writes_through_a_slot_is_committed() {
    let (_dir, program) = uring();
    let m = Mnt::new();
    let s = m.stream("s");
    ok(&sh("sh", &format!("{} write events", program.display()), &s));
    eventually("the last reference commits", || count(&s) == 2);
    assert_eq!(batches(&s), ["one\ntwo\n"]);
}

#[test]
fn a_long_write_of_io_uring_through_a_slot_comes_in_order_or_not_at_all() {
    let (_dir, program) = uring();
    let m = Mnt::new();
    let lines: String = (0..4 << 16).map(|n| format!("{n:015}\n")).collect();
    for n in 0..30 {
        let s = m.stream(format!("s{n}"));
        let out = sh("sh", &format!("{} long events", program.display()), &s);
        let said = text(&out.stderr);
        if out.status.success() {
            eventually("the last reference commits", || count(&s) > 0);
            assert!(read(s.join("events")) == lines.as_bytes());
        } else {
            assert!(said.contains("Input/output error") && count(&s) == 0, "{said}");
        }
    }
}

fn uring() -> (TempDir, PathBuf) {
    let source = include_str!("programs/uring.c");
    compiled("cc", "gcc", "cc -O1 -o program program.c -luring", source)
}

// Writing.

#[test]
fn mono_appends() {
    let source = include_str!("programs/append.cs");
    let (_dir, program) = compiled("mcs", "mono-mcs", "mcs -out:program program.cs", source);
    let m = Mnt::new();
    let s = m.stream("s");
    let said = ok(&sh("sh", &format!("mono {}", program.display()), &s));
    assert_eq!(said, "4\n5\nrefused\n");
    assert_eq!(batches(&s), ["one\n", "two\nthree\n", "four\n", "five\n", "six\n"]);
}

#[test]
fn fortran_appends() {
    let source = include_str!("programs/append.f90");
    let build = "gfortran -o program program.f90";
    let (_dir, program) = compiled("gfortran", "gfortran", build, source);
    let m = Mnt::new();
    let s = m.stream("s");
    ok(&sh("sh", program.to_str().unwrap(), &s));
    assert_eq!(batches(&s), ["line 1\nmore\n", "line 2\nmore\n"]);
}

#[test]
fn writes_to_the_end_are_a_guard() {
    let m = Mnt::new();
    let s = m.stream("s");
    let mut options = OpenOptions::new();
    let open = |name: &str| options.clone().write(true).open(s.join(name)).unwrap();
    let first = open("events");
    first.write_all_at(b"one\n", 0).unwrap();
    first.write_all_at(b"two\n", 4).unwrap();
    // Its own batch is the end; another place is none.
    let second = open("events");
    assert_eq!(errno_of(second.write_at(b"x\n", 4)), libc::EPERM);
    assert!(close(second).is_err());
    close(first).unwrap();
    // One that waits with its batch until somebody else was faster.
    let (late, torn) = (open("events"), open("events"));
    late.write_all_at(b"late\n", 8).unwrap();
    torn.write_all_at(b"torn", 8).unwrap();
    torn.sync_all().unwrap();
    assert_eq!(errno_of(late.sync_all()), libc::EEXIST);
    drop(late);
    // It knows no newline that it did not write.
    torn.write_all_at(b"next\n", 12).unwrap();
    close(torn).unwrap();
    let (from, also) = (open("from/4"), open("from/4"));
    from.write_all_at(b"four\n", 0).unwrap();
    close(from).unwrap();
    assert_eq!(errno_of(also.write_at(b"x\n", 0)), libc::EEXIST);
    drop(also);
    let through = options.write(true).custom_flags(libc::O_DSYNC).open(s.join("events")).unwrap();
    through.write_all_at(b"five\nsi", 23).unwrap();
    assert_eq!(count(&s), 6);
    through.write_all_at(b"x\n", 30).unwrap();
    assert_eq!(count(&s), 7);
    append(s.join("events"), "seven\n");
    assert_eq!(errno_of(through.write_at(b"x\n", 32)), libc::EEXIST);
    through.write_all_at(b"eight\n", 38).unwrap();
    assert_eq!(
        batches(&s),
        ["one\ntwo\n", "torn\n", "next\n", "four\n", "five\n", "six\n", "seven\n", "eight\n"]
    );
}

#[test]
fn line_by_line_goes_on_after_a_full_disk() {
    let disk = SmallDisk::new(24);
    fs::create_dir(disk.path().join("store")).unwrap();
    let m = Mnt::on(&disk.path().join("store"), &[]);
    let line = [&[b'x'; 99_999][..], b"\n"].concat();
    for (name, flags) in [("lines", 0), ("events", libc::O_DSYNC)] {
        let s = m.stream(name);
        let mut options = OpenOptions::new();
        let mut file =
            options.write(true).custom_flags(libc::O_APPEND | flags).open(s.join(name)).unwrap();
        file.write_all(&line).unwrap();
        disk.fill();
        let mut written = 1;
        let error = loop {
            match file.write_all(&line) {
                Ok(()) => written += 1,
                Err(error) => break error,
            }
        };
        assert_eq!(error.raw_os_error(), Some(libc::ENOSPC));
        disk.empty();
        file.write_all(&line).expect("it goes on");
        file.write_all(b"half a ").unwrap();
        file.write_all(b"line\n").unwrap();
        assert_eq!(count(&s), written + 2);
        close(file).unwrap();
    }
}

#[test]
fn half_a_line_that_is_lost_is_told_once() {
    let disk = SmallDisk::new(24);
    fs::create_dir(disk.path().join("store")).unwrap();
    let m = Mnt::on(&disk.path().join("store"), &[]);
    let s = m.stream("s");
    let mut file = appender(s.join("lines")).unwrap();
    disk.fill();
    // More than there is room for: a write of many pieces that fails behind the first.
    let long = vec![b'x'; 8 << 20];
    assert_eq!(errno_of(file.write_all(&long)), libc::ENOSPC);
    disk.empty();
    file.write_all(b"\nnext\n").unwrap();
    close(file).unwrap();
    assert_eq!(batches(&s), ["\nnext\n"]);
}

#[test]
fn ftruncate_drops_what_is_pending_of_one_event() {
    let m = Mnt::new();
    let s = m.stream("s");
    for path in ["new", "at/1"] {
        let mut file = fs::File::create(s.join(path)).unwrap();
        file.write_all(b"partial").unwrap();
        file.set_len(0).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        file.write_all(b"full").unwrap();
        file.set_len(4).expect("so long it is");
        assert_eq!(errno_of(file.set_len(2)), libc::EPERM);
        close(file).unwrap();
    }
    // All of it.
    let mut file = fs::File::create(s.join("new")).unwrap();
    file.write_all(b"partial").unwrap();
    file.set_len(0).unwrap();
    close(file).unwrap();
    assert_eq!(batches(&s), ["full\n", "full\n"]);
}

#[test]
fn curl_tries_again() {
    need("curl", "curl");
    let m = Mnt::new();
    let s = m.stream("s");
    let script = r"
        import http.server
        class Server(http.server.BaseHTTPRequestHandler):
            calls = 0
            def do_GET(self):
                Server.calls += 1
                body = b'busy' if Server.calls == 1 else b'the answer'
                self.send_response(503 if Server.calls == 1 else 200)
                self.send_header('Content-Length', str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            def log_message(self, *_): pass
        server = http.server.HTTPServer(('127.0.0.1', 0), Server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f'http://127.0.0.1:{server.server_port}/'
        subprocess.run(['curl', '-sS', '--noproxy', '*', '--retry', '2', '--retry-delay', '1',
                        '-o', 'new', url], check=True, stderr=subprocess.DEVNULL)
        assert Server.calls == 2
        ";
    ok(&python(&s, script));
    assert_eq!(batches(&s), ["the answer\n"]);
}

#[test]
fn who_copies_with_mode_and_owner_stores_one_event() {
    need("rsync", "rsync");
    let m = Mnt::new();
    let s = m.stream("s");
    let dir = public_dir();
    let source = dir.path().join("source");
    fs::write(&source, "copied").unwrap();
    fs::set_permissions(&source, fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(&source, Some(1234), Some(5678)).unwrap();
    let from = source.display();
    let mut copies = 0;
    for to in ["new", "at/$(cat count)"] {
        for command in ["cp -p", "cp -a", "rsync -a --inplace"] {
            // rsync makes a temporary name but for --inplace, and a new file only by it.
            ok(&sh("sh", &format!("{command} {from} {to}"), &s));
            copies += 1;
            assert_eq!(count(&s), copies, "{command} {to}");
        }
    }
    for copy in ["copy", "copy2"] {
        for to in ["new", "at/{count()}"] {
            ok(&python(&s, &format!("import shutil; shutil.{copy}('{from}', f'{to}')")));
            copies += 1;
            assert_eq!(count(&s), copies, "{copy} {to}");
        }
    }
    for n in 0..copies {
        assert_eq!(read(s.join(format!("at/{n}"))), b"copied");
        // An event has none.
        assert_eq!(fs::metadata(s.join("at/0")).unwrap().uid(), fs::metadata(&s).unwrap().uid());
    }
}

#[test]
fn a_batch_that_a_signal_abandons_leaves_a_trace() {
    let m = Mnt::new();
    let s = m.stream("s");
    let value = |name: &str| {
        let status = text(&read(m.path().join(".status")));
        let line = status.lines().find(|line| line.starts_with(name)).unwrap().to_string();
        line.split_whitespace().nth(1).unwrap().to_string()
    };
    assert_eq!(value("smolstore_batches_abandoned_total"), "0");
    let mut app = std::process::Command::new("sh");
    app.args(["-c", "echo one; echo two; kill -TERM $$"]);
    let file = appender(s.join("events")).unwrap();
    let mut app = app.stdout(file).spawn().unwrap();
    let pid = app.id();
    app.wait().unwrap();
    eventually("it is counted", || value("smolstore_batches_abandoned_total") == "1");
    assert_eq!(value("smolstore_events_abandoned_total"), "2");
    eventually("it is logged", || m.log().contains("before it committed"));
    let log = m.log();
    for word in ["\"s\"", "dropped: 2;", &format!("pid {pid} (sh)"), "signal 15", "`lines`"] {
        assert!(log.contains(word), "{word}: {log}");
    }
    assert_eq!(count(&s), 0);
    // Who closes, or has nothing pending, abandons nothing.
    ok(&sh("sh", "echo x >> events; (exec 3>> events; kill -KILL $BASHPID) || true", &s));
    assert_eq!(value("smolstore_batches_abandoned_total"), "1");
}

// The clock.

#[test]
fn a_clock_that_was_ahead_is_told_once() {
    let source = include_str!("programs/clock.c");
    let build = "cc -Wall -shared -fPIC -o program program.c";
    let (_dir, library) = compiled("cc", "gcc", build, source);
    let base = public_dir();
    let store = base.path().join("store");
    fs::create_dir(&store).unwrap();
    let ahead = Mnt::on_in_env(&store, &[("LD_PRELOAD", library), ("AHEAD", "3600".into())]);
    append(ahead.stream("s").join("events"), "ahead\n");
    drop(ahead);
    let m = Mnt::on(&store, &[]);
    let s = m.path().join("s");
    for event in ["one\n", "two\n", "three\n"] {
        append(s.join("events"), event);
    }
    let told = m.log().matches("behind the time of its last event").count();
    assert_eq!(told, 1, "{}", m.log());
    let time = |n: u64| {
        let found = fs::metadata(s.join(format!("at/{n}"))).unwrap();
        found.mtime() * 1_000_000_000 + found.mtime_nsec()
    };
    assert_eq!([1, 2, 3].map(|n| time(n) - time(0)), [1, 2, 3]);
    // All of them are in the future, and in the same second of it.
    let second = time(0) / 1_000_000_000;
    for (since, first) in [(second - 3000, "0"), (second, "0"), (second + 1, "4")] {
        let link = fs::read_link(s.join(format!("from/@{since}"))).unwrap();
        assert_eq!(link, Path::new(first), "{since}");
    }
}
