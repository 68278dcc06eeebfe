//! Guarded appends: whoever commits index N first has it, everybody else is told so.

use crate::commit::{batches, put, python, small, too_much};
use crate::harness::*;
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::path::Path;
use std::thread;

/// Asks for an index: `from/N` is there already, `at/N` is created.
fn ask(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
}

/// Runs a contest for index 1 through `from/1` and through `at/1`; what is there in the end is
/// "first" and "winner", whatever the losers tried.
fn contest(run: fn(stream: &Path, one: &Path)) {
    contest_on(&Mnt::new(), run);
}

fn contest_on(m: &Mnt, run: fn(stream: &Path, one: &Path)) {
    for way in ["from", "at"] {
        let s = m.stream(way);
        append(s.join("events"), "first\n");
        run(&s, &s.join(way).join("1"));
        assert_eq!(batches(&s), ["first\n", "winner\n"], "{way}");
    }
}

#[test]
fn a_guarded_batch_gets_its_index() {
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("from/0"), "zero\none\n");
    put(s.join("at/2"), "two").unwrap();
    append(s.join("from/next"), "three\n");
    assert_eq!(batches(&s), ["zero\none\n", "two\n", "three\n"]);
}

#[test]
fn a_taken_index_is_eexist_at_open() {
    contest(|s, one| {
        append(s.join("events"), "winner\n");
        assert_eq!(errno_of(ask(one)), libc::EEXIST);
        assert_eq!(errno_of(File::create_new(one)), libc::EEXIST);
    });
}

#[test]
fn a_taken_index_is_eexist_at_write_and_then_at_close() {
    contest(|s, one| {
        let mut loser = ask(one).unwrap();
        append(s.join("events"), "winner\n");
        assert_eq!(errno_of(loser.write_all(b"loser\n")), libc::EEXIST);
        assert_eq!(errno_of(loser.write_all(b"loser\n")), libc::EEXIST);
        assert_eq!(errno_of(close(loser)), libc::EEXIST);
    });
}

#[test]
fn a_taken_index_is_eexist_at_close() {
    contest(|_, one| {
        let (mut winner, mut loser) = (ask(one).unwrap(), ask(one).unwrap());
        loser.write_all(b"loser\nand more").unwrap();
        winner.write_all(b"winner").unwrap();
        close(winner).unwrap();
        assert_eq!(errno_of(close(loser)), libc::EEXIST);
    });
}

#[test]
fn a_taken_index_is_eexist_at_fsync_and_stays_taken() {
    contest(|_, one| {
        let (mut winner, mut loser) = (ask(one).unwrap(), ask(one).unwrap());
        winner.write_all(b"winner").unwrap();
        loser.write_all(b"loser\n").unwrap();
        winner.sync_all().unwrap();
        assert_eq!(errno_of(loser.sync_all()), libc::EEXIST);
        let again = loser.write_all(b"loser\n").and_then(|()| loser.sync_all());
        assert!(again.is_err(), "the same open file asks for the same index");
    });
}

#[test]
fn an_index_is_not_taken_before_its_winner_committed() {
    contest(|s, one| {
        // With O_EXCL where the name is a new one.
        let open = if one.starts_with(s.join("at")) { File::create_new } else { ask };
        let mut loser = open(one).unwrap();
        loser.write_all(b"first to write").unwrap();
        assert!(!s.join("at/1").exists());
        let mut winner = open(one).unwrap();
        winner.write_all(b"winner").unwrap();
        close(winner).unwrap();
        assert_eq!(errno_of(close(loser)), libc::EEXIST);
    });
}

#[test]
fn a_guard_opened_and_never_used_takes_nothing() {
    contest(|_, one| {
        for _ in 0..3 {
            close(ask(one).unwrap()).unwrap();
        }
        let mut winner = ask(one).unwrap();
        winner.write_all(b"winner").unwrap();
        close(winner).unwrap();
    });
}

#[test]
fn an_index_beyond_the_end_is_enoent() {
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("events"), "zero\n");
    for n in [2, 3, 1_000_000_000] {
        for name in [format!("from/{n}"), format!("at/{n}")] {
            assert_eq!(errno_of(appender(s.join(&name))), libc::ENOENT, "{name}");
            assert_eq!(errno_of(ask(&s.join(&name))), libc::ENOENT, "{name} O_CREAT");
        }
    }
    // Asked for too early above, in its turn now.
    append(s.join("events"), "one\n");
    append(s.join("from/2"), "two\n");
    put(s.join("at/3"), "three").unwrap();
    assert_eq!(batches(&s), ["zero\n", "one\n", "two\n", "three\n"]);
}

#[test]
fn newest_is_taken_unless_the_stream_is_empty() {
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("from/newest"), "zero\n");
    assert_eq!(errno_of(appender(s.join("from/newest"))), libc::EEXIST);
    assert_eq!(errno_of(appender(s.join("from/beginning"))), libc::EEXIST);
    assert_eq!(batches(&s), ["zero\n"]);
}

#[test]
fn a_loser_looks_again_and_retries() {
    let m = Mnt::new();
    let s = m.stream("s");
    let mut late = ask(&s.join("from/0")).unwrap();
    late.write_all(b"retried\n").unwrap();
    append(s.join("events"), "winner\n");
    assert_eq!(errno_of(close(late)), libc::EEXIST);
    append(s.join(format!("from/{}", count(&s))), "retried\n");
    assert_eq!(batches(&s), ["winner\n", "retried\n"]);
}

#[test]
fn a_batch_without_room_takes_no_index() {
    let (_disk, m) = small();
    contest_on(&m, |_, one| {
        let mut huge = ask(one).unwrap();
        assert_eq!(errno_of(huge.write_all(&too_much())), libc::ENOSPC);
        assert_eq!(errno_of(close(huge)), libc::ENOSPC);
        append(one.parent().unwrap().with_file_name("from/1"), "winner\n");
    });
}

// Races. A racer prints "INDEX RACER" for each index it believes to have won.

const ROUNDS: u64 = 300;

/// Every index was won by exactly one racer, and it is that racer's event which is there.
#[track_caller]
fn one_winner_each(stream: &Path, said: &str, lines_each: u64) {
    let mut winners: BTreeMap<u64, &str> = BTreeMap::new();
    for line in said.lines() {
        let (index, racer) = line.split_once(' ').unwrap();
        let other = winners.insert(index.parse().unwrap(), racer);
        assert_eq!(other, None, "two winners of {index}");
    }
    let indexes: Vec<u64> = (0..ROUNDS).map(|round| round * lines_each).collect();
    assert!(winners.keys().eq(&indexes), "an index without a winner");
    let stored = text(&read(stream.join("events")));
    let expected: String = winners
        .iter()
        .flat_map(|(index, racer)| (0..lines_each).map(move |n| format!("{index} {racer} {n}\n")))
        .collect();
    assert!(stored == expected, "somebody else's events are there");
}

/// Eight processes race through these directories, which show one stream: in each round all try
/// to append so many lines at the same index.
fn race(streams: &[&Path], path: &str, flags: &str, lines_each: u64) {
    let script = format!(
        r"
        def wins(path, batch):
            fd = None
            try:
                fd = os.open(path, os.O_WRONLY | {flags}, 0o644)
                for line in batch:
                    os.write(fd, line)
                fd, closing = None, fd
                os.close(closing)
                return True
            except FileExistsError:
                if fd is not None:
                    assert error(os.close, fd) == 'File exists'
                os.stat(path)  # told so only once the winner is there
                return False

        def body(me, stream):
            os.chdir(stream)
            for index in range(0, {ROUNDS} * {lines_each}, {lines_each}):
                batch = [b'%d %d %d\n' % (index, me, n) for n in range({lines_each})]
                if 'at/' in {path:?}:
                    batch[-1] = batch[-1][:-1]
                if wins({path:?} % index, batch):
                    os.write(1, b'%d %d\n' % (index, me))

        streams = {streams:?}
        racers = [fork(lambda: body(me, streams[me % len(streams)])) for me in range(8)]
        assert [wait(racer) for racer in racers] == [0] * 8
        "
    );
    one_winner_each(streams[0], &ok(&python(Path::new("/"), &script)), lines_each);
}

#[test]
fn racing_batches_through_from() {
    let m = Mnt::new();
    race(&[&m.stream("s")], "from/%d", "os.O_APPEND", 3);
}

#[test]
fn racing_events_through_at() {
    let m = Mnt::new();
    race(&[&m.stream("s")], "at/%d", "os.O_CREAT | os.O_EXCL", 1);
}

#[test]
fn racing_through_two_mounts_of_one_store() {
    for (path, flags, lines_each) in
        [("from/%d", "os.O_APPEND", 3), ("at/%d", "os.O_CREAT | os.O_EXCL", 1)]
    {
        let one = Mnt::new();
        let two = Mnt::on(one.store(), &[]);
        race(&[&one.stream("s"), &two.path().join("s")], path, flags, lines_each);
    }
}

#[test]
fn racing_dd_processes_of_shell_scripts() {
    let m = Mnt::new();
    let s = m.stream("s");
    let racer = |me: u64| {
        let script = format!(
            r#"
            index=0
            while [ $index -lt {ROUNDS} ]; do
                if said=$(echo $index {me} 0 | dd oflag=append conv=notrunc of=from/$index 2>&1)
                then echo $index {me}
                else case $said in *"File exists"*) ;; *) echo "$said" >&2; exit 1 ;; esac
                fi
                index=$((index + 1))
            done
            "#
        );
        ok(&sh("sh", &script, &s))
    };
    let said: Vec<String> = thread::scope(|scope| {
        let racers: Vec<_> = (0..4).map(|me| scope.spawn(move || racer(me))).collect();
        racers.into_iter().map(|racer| racer.join().unwrap()).collect()
    });
    one_winner_each(&s, &said.concat(), 1);
}
