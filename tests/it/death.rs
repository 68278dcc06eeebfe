//! What a writer leaves that ends with a batch uncommitted: by exit all of it, by a signal nothing.

use crate::commit::{batches, python};
use crate::harness::*;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

const DEADLY: [i32; 7] = [
    libc::SIGTERM,
    libc::SIGINT,
    libc::SIGKILL,
    libc::SIGSEGV,
    libc::SIGABRT,
    libc::SIGHUP,
    libc::SIGPIPE,
];

/// Runs a script which must die by this signal.
#[track_caller]
fn dies(stream: &Path, signal: i32, script: &str) {
    let out = python(stream, script);
    assert_eq!(out.status.signal(), Some(signal), "{} {}", out.status, text(&out.stderr));
}

#[test]
fn a_writer_killed_by_a_signal_leaves_nothing() {
    let m = Mnt::new();
    let s = m.stream("s");
    for signal in DEADLY {
        for batch in [r"one\ntwo\n", r"one\ntorn", "torn"] {
            let script = format!(
                r"
                fd = appender()
                os.write(fd, b'{batch}')
                os.write(fd, b'{batch}')
                die({signal})
                "
            );
            dies(&s, signal, &script);
            assert_eq!(count(&s), 0, "{batch} and signal {signal}");
        }
    }
    append(s.join("events"), "later\n");
    assert_eq!(batches(&s), ["later\n"]);
}

#[test]
fn what_a_killed_writer_had_committed_stays() {
    let m = Mnt::new();
    for signal in DEADLY {
        let s = m.stream(format!("s{signal}"));
        let script = format!(
            r"
            fd = appender()
            os.write(fd, b'one\ntwo\n')
            os.fsync(fd)
            os.write(fd, b'three\nfour')
            die({signal})
            "
        );
        dies(&s, signal, &script);
        assert_eq!(batches(&s), ["one\ntwo\n"], "signal {signal}");
    }
}

#[test]
fn of_lines_that_were_committed_one_by_one_a_killed_writer_leaves_the_complete_ones() {
    let m = Mnt::new();
    for (n, open) in
        ["appender('lines')", "appender(flags=os.O_SYNC)", "appender(flags=os.O_DSYNC)"]
            .into_iter()
            .enumerate()
    {
        let s = m.stream(format!("s{n}"));
        let script = format!(
            r"
            fd = {open}
            os.write(fd, b'one\ntwo\ntorn')
            die(signal.SIGTERM)
            "
        );
        dies(&s, libc::SIGTERM, &script);
        assert_eq!(batches(&s).concat(), "one\ntwo\n", "{open}");
    }
}

#[test]
fn a_killed_writer_leaves_nothing_through_any_file() {
    let m = Mnt::new();
    let s = m.stream("s");
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        for name in ["from/0", "from/next", "new", "at/0"] {
            let script = format!(
                r"
                fd = appender('{name}', os.O_CREAT)
                os.write(fd, b'one\ntwo\n')
                die({signal})
                "
            );
            dies(&s, signal, &script);
            assert_eq!(count(&s), 0, "{name} and signal {signal}");
            assert!(!s.join("at/0").exists());
        }
    }
}

#[test]
fn a_cat_killed_from_outside_leaves_nothing() {
    let m = Mnt::new();
    let s = m.stream("s");
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGKILL] {
        let script = format!(
            r"
            cat = subprocess.Popen('exec cat >> events', shell=True, stdin=subprocess.PIPE)
            # More than the pipe holds: when this returns, cat has read and written some.
            cat.stdin.write(b'line\n' * 200_000)
            cat.stdin.flush()
            assert count() == 0
            cat.send_signal({signal})
            assert cat.wait() == -{signal}
            assert count() == 0
            "
        );
        ok(&python(&s, &script));
        assert_eq!(count(&s), 0, "signal {signal}");
    }
}

#[test]
fn a_writer_which_exits_commits_whatever_its_status_says() {
    let m = Mnt::new();
    // Among them what shells report for a signal, and the numbers of signals.
    for status in [0, 1, 2, 3, 9, 11, 15, 127, 130, 137, 143, 255] {
        let s = m.stream(format!("s{status}"));
        let script = format!(
            r"
            fd = appender()
            os.write(fd, b'one\nto')
            os.write(fd, b'rn')
            os._exit({status})
            "
        );
        assert_eq!(python(&s, &script).status.code(), Some(status));
        assert_eq!(batches(&s), ["one\ntorn\n"], "status {status}");
    }
}

/// Forks one writer after another, each with sleeping threads, which of its threads dies last
/// being chance, and lets each end this way.
fn many_threaded_writers(stream: &Path, ends: &str, code: i32, commits: u64) {
    let script = format!(
        r"
        import ctypes
        def body():
            for _ in range(8):
                threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
            fd = appender()
            os.write(fd, b'one\ntorn')
            {ends}
            time.sleep(60)
        for n in range(1, 26):
            code = wait(fork(body))
            assert code == {code}, code
            assert count() == {commits} * n, (n, count())
        "
    );
    ok(&python(stream, &script));
    assert_eq!(batches(stream), vec!["one\ntorn\n"; 25 * commits as usize / 2]);
}

#[test]
fn a_multi_threaded_writer_which_exits_commits_all() {
    let m = Mnt::new();
    many_threaded_writers(&m.stream("exit"), "ctypes.CDLL(None).exit(0)", 0, 2);
    many_threaded_writers(&m.stream("_exit"), "os._exit(3)", 3, 2);
    let in_a_thread = "threading.Thread(target=lambda: os._exit(3)).start()";
    many_threaded_writers(&m.stream("thread"), in_a_thread, 3, 2);
}

#[test]
fn a_multi_threaded_writer_killed_by_a_signal_leaves_nothing() {
    let m = Mnt::new();
    let s = m.stream("s");
    for signal in [libc::SIGKILL, libc::SIGTERM, libc::SIGSEGV] {
        many_threaded_writers(&s, &format!("die({signal})"), -signal, 0);
    }
}

#[test]
fn a_python_program_which_ends_the_ordinary_way_commits_beside_sleeping_threads() {
    let m = Mnt::new();
    let s = m.stream("s");
    let script = r"
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        file = open('events', 'a')
        file.write('one\ntorn')
        sys.exit(3)
        ";
    assert_eq!(python(&s, script).status.code(), Some(3));
    assert_eq!(batches(&s), ["one\ntorn\n"]);
}

#[test]
fn a_killed_writer_which_wrote_alone_leaves_nothing_to_those_who_share_the_file() {
    let m = Mnt::new();
    let s = m.stream("s");
    ok(&python(
        &s,
        r"
        fd = appender()
        def body():
            os.write(fd, b'killed\ntorn')
            die(signal.SIGKILL)
        assert wait(fork(body)) == -signal.SIGKILL
        os.write(fd, b'living\n')
        os.close(fd)
        ",
    ));
    assert_eq!(batches(&s), ["living\n"]);
}

#[test]
fn the_complete_lines_of_a_killed_writer_come_with_the_close_of_one_who_shared_its_batch() {
    let m = Mnt::new();
    for signal in [libc::SIGTERM, libc::SIGKILL] {
        let s = m.stream(format!("s{signal}"));
        let script = format!(
            r"
            fd = appender()
            os.write(fd, b'living\n')
            def body():
                os.write(fd, b'killed\ntorn')
                die({signal})
            assert wait(fork(body)) == -{signal}
            assert count() == 0
            os.write(fd, b'living again\n')
            os.close(fd)
            "
        );
        ok(&python(&s, &script));
        assert_eq!(batches(&s), ["living\nkilled\nliving again\n"], "signal {signal}");
    }
}

#[test]
fn a_batch_passed_on_by_exec_dies_with_the_program_that_got_it() {
    let m = Mnt::new();
    let s = m.stream("s");
    let script = r"
        fd = appender()
        os.write(fd, b'before exec\n')
        os.set_inheritable(fd, True)
        os.execvp('sh', ['sh', '-c', 'kill -KILL $$'])
        ";
    dies(&s, libc::SIGKILL, script);
    assert_eq!(count(&s), 0);
}

#[test]
fn a_command_killed_in_a_script_takes_its_own_batch_only() {
    let m = Mnt::new();
    for shell in ["bash", "dash", "busybox sh"] {
        let s = m.stream(shell.replace(' ', "-"));
        let script = r"
            exec 3>>events
            echo before >&3
            sh -c 'echo abandoned; kill -TERM $$' >&3
            echo after >&3
            ";
        ok(&sh(shell, script, &s));
        assert_eq!(batches(&s), ["before\n", "after\n"], "{shell}");
    }
}

#[test]
fn control_d_commits_what_was_typed_and_control_c_abandons_it() {
    let m = Mnt::new();
    for shell in ["'bash', '--norc', '--noediting', '-i'", "'dash', '-i'"] {
        let s = m.stream(if shell.contains("bash") { "bash" } else { "dash" });
        let script = format!(
            r"
            import pty
            shell, terminal = pty.fork()
            if shell == 0:
                signal.alarm(60)
                os.environ.update(ENV='', HISTFILE='')
                os.execvp([{shell}][0], [{shell}])

            def drain():
                try:
                    while os.read(terminal, 9999): pass
                except OSError:  # the shell has ended
                    pass
            threading.Thread(target=drain, daemon=True).start()

            def until_in_front(is_shell):
                while (os.tcgetpgrp(terminal) == shell) != is_shell:
                    time.sleep(0.01)

            def typed_into_cat(*keys):
                until_in_front(True)
                os.write(terminal, b'cat >> events\n')
                until_in_front(False)
                for key in keys:
                    os.write(terminal, key)
                    time.sleep(0.3)  # let cat read it
                until_in_front(True)

            typed_into_cat(b'abandoned\n', b'\x03')
            assert count() == 0
            typed_into_cat(b'kept\n', b'and more\n', b'\x04')
            assert count() == 2
            typed_into_cat(b'abandoned', b'\x04', b'\x03')
            assert count() == 2
            typed_into_cat(b'torn', b'\x04', b'\x04')
            assert count() == 3
            os.write(terminal, b'exit\n')
            assert wait(shell) == 0
            "
        );
        ok(&python(&s, &script));
        assert_eq!(batches(&s), ["kept\nand more\n", "torn\n"], "{shell}");
    }
}
