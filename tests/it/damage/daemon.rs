//! Damage to the files of a running daemon.

use crate::commit::batches;
use crate::format::{self, Block, PAGE, blocks};
use crate::harness::*;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

/// One of the files of a stream is changed, of whose log these are the blocks; which events that hits, for
/// better or worse, and whether the end is lost.
fn damage_in_use(turn: usize, stream: &Path, random: &mut Random) -> (Vec<u64>, bool) {
    let open = |name| File::options().read(true).write(true).open(stream.join(name));
    let (log, index) = (open("log").unwrap(), open("index").unwrap());
    let blocks = blocks(&read(stream.join("log")));
    let flip = |file: &File, at: usize, bit: usize| {
        let mut byte = [0];
        file.read_exact_at(&mut byte, at as u64).unwrap();
        file.write_all_at(&[byte[0] ^ 1 << bit], at as u64).unwrap();
    };
    let len = index.metadata().unwrap().len() as usize;
    let hit = &blocks[random.below(blocks.len())];
    let at = hit.at + random.below(hit.end() - hit.at);
    match turn % 8 {
        0..=2 => flip(&log, at, random.below(8)),
        3 => log.set_len(at as u64).unwrap(),
        4 => index.set_len(random.below(len) as u64).unwrap(),
        5 => fs::remove_file(stream.join("index")).unwrap(),
        6 => flip(&index, 8 + random.below(len - 8), random.below(8)),
        _ => flip(&index, 1 + random.below(7), random.below(8)),
    }
    let behind = |block: &&Block| match turn % 8 {
        0..=2 => block.at >= hit.at && block.at / PAGE == hit.at / PAGE,
        3 => block.at >= hit.at,
        _ => false,
    };
    let mut bad: Vec<u64> = Vec::new();
    for block in blocks.iter().filter(behind) {
        let more = block.flags & format::MORE > 0;
        bad.extend(block.index..block.next() + u64::from(more));
    }
    bad.dedup();
    let last = hit.at == blocks[blocks.len() - 1].at;
    (bad, turn % 8 == 3 || turn % 8 < 3 && last)
}

#[test]
fn a_daemon_that_meets_damage_says_so_and_serves_the_rest() {
    const TURNS: usize = 48;
    let (m, mut random) = (Mnt::new(), Random(6));
    let other = m.stream("other");
    let event = |n: u64| format!("{n:0>1700}\n");
    let check = |name: &str, bad: &[u64], lost: bool, len: u64| {
        let s = m.path().join(name);
        let counted = count(&s);
        assert!(counted == len || lost && counted < len, "{name}: {counted}");
        let mut first = counted;
        for n in 0..len {
            match fs::read(s.join(format!("at/{n}"))) {
                Ok(got) => assert_eq!(text(&got) + "\n", event(n), "{name}"),
                Err(error) => {
                    assert!(bad.contains(&n) || n >= counted, "{name} {n}: {error}");
                    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{name} {n}");
                    let line = format!("stream {name:?}, event {n}: ");
                    assert!(m.log().contains(&line), "no {line:?}: {}", m.log());
                    first = first.min(n);
                }
            }
        }
        // As far as it goes, and then an error: no end where events are missing.
        let (mut all, mut piece) = (Vec::new(), [0; 1000]);
        let mut file = File::open(s.join("from/0")).unwrap();
        let ended = loop {
            match file.read(&mut piece) {
                Ok(0) => break Ok(()),
                Ok(n) => all.extend(&piece[..n]),
                Err(error) => break Err(error),
            }
        };
        let whole: String = (0..len).map(event).collect();
        assert!(whole.starts_with(&*text(&all)), "{name}");
        assert!(all.len() >= (0..first).map(event).collect::<String>().len(), "{name}");
        match ended {
            Ok(()) => assert!(all.len() == whole.len() && !lost, "{name}: an end"),
            Err(error) => {
                assert!(first < len || lost, "{name}");
                assert_eq!(error.raw_os_error(), Some(libc::EIO), "{name}");
            }
        }
    };
    let mut damaged = Vec::new();
    for turn in 0..TURNS {
        let name = format!("s{turn}");
        let s = m.stream(&name);
        for batch in [0..2, 2..3, 3..5] {
            append(s.join("events"), batch.map(event).collect::<String>());
        }
        check(&name, &[], false, 5);
        let (bad, lost) = damage_in_use(turn, &m.store().join(&name), &mut random);
        for n in &bad {
            let got = fs::read(m.path().join(format!("{name}/at/{n}")));
            assert!(turn % 8 <= 3 || got.is_ok(), "{name} {n}");
        }
        append(other.join("events"), event(turn as u64));
        let appended = try_append(s.join("events"), event(5));
        assert_eq!(appended.is_err(), lost, "{name}: {appended:?}");
        let len = if lost { 5 } else { 6 };
        check(&name, &bad, lost, len);
        damaged.push((name, bad, lost, len));
    }
    m.restart();
    for (name, bad, lost, len) in &damaged {
        check(name, bad, *lost, *len);
    }
    let all: String = (0..TURNS as u64).map(event).collect();
    assert_eq!(text(&read(other.join("events"))), all);
}

#[test]
fn a_count_that_cannot_be_is_damage_and_no_hang() {
    let m = Mnt::new();
    m.stream("s");
    for n in 0..5 {
        append(m.path().join("s/events"), format!("event {n}\n"));
    }
    for wrong in [3000, (1 << 40) + 5, (1 << 48) - 1] {
        m.stop();
        format::set_last(&m.store().join("s"), wrong);
        m.restart();
        let s = m.path().join("s");
        within(30, move || {
            for n in 0..5 {
                let event = read(s.join(format!("at/{n}")));
                assert_eq!(event, format!("event {n}").into_bytes(), "{wrong:x}");
            }
            let mut file = File::open(s.join("from/0")).unwrap();
            let (mut all, mut piece) = (Vec::new(), [0; 4096]);
            let error = loop {
                match file.read(&mut piece) {
                    Ok(0) => panic!("{wrong:x}: an end, where events are missing"),
                    Ok(n) => all.extend(&piece[..n]),
                    Err(error) => break error,
                }
            };
            assert_eq!(error.raw_os_error(), Some(libc::EIO), "{wrong:x}");
            let intact = "event 0\nevent 1\nevent 2\nevent 3\nevent 4\n";
            assert_eq!(text(&all), intact, "{wrong:x}");
            let refused = try_append(s.join("events"), "x\n");
            assert_eq!(errno_of(refused), libc::EIO, "{wrong:x}");
        });
        let link = m.path().join("s/from/@5000000000");
        // What it says of a time behind all events is open; that it says something is not.
        let _ = within(5, move || fs::read_link(link));
        assert_eq!(m.wait(Duration::ZERO), None, "{wrong:x}: {}", m.log());
    }
}

#[test]
fn another_streams_index_copied_over_a_live_one_is_not_believed() {
    let m = Mnt::new();
    let long = m.stream("long");
    append(long.join("events"), "a longer line\n".repeat(100));
    let short = m.stream("short");
    append(short.join("events"), "x\n");
    for other in ["long", "short"] {
        let s = m.stream(format!("s-{other}"));
        append(s.join("events"), "0\n1\n");
        append(s.join("events"), "2\n");
        let mut open = appender(s.join("events")).unwrap();
        open.write_all(b"3\n").unwrap();
        ok(&sh("sh", &format!("cp {other}/index s-{other}/index"), m.store()));
        assert_eq!(text(&read(s.join("events"))), "0\n1\n2\n", "{other}");
        assert_eq!(read(s.join("at/2")), b"2", "{other}");
        close(open).unwrap();
        ok(&sh("sh", &format!("cp {other}/index s-{other}/index"), m.store()));
        append(s.join("from/4"), "4\n");
        let all = ["0\n1\n", "2\n", "3\n", "4\n"];
        assert_eq!(batches(&s), all, "{other}");
        m.restart();
        assert_eq!(batches(&s), all, "{other}");
    }
}
