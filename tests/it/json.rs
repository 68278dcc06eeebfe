//! `H.json`: events as JSON, for programs that read it.

use crate::commit::python;
use crate::harness::*;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Events of every kind; each is `new`.
fn events() -> Vec<Vec<u8>> {
    let mut events: Vec<Vec<u8>> = (0..=255).map(|byte| vec![b'a', byte, b'z']).collect();
    events.push((0..=255).collect());
    let texts =
        ["", "plain", "quo\"te \\ / \t \r \n \u{0} \u{1f} \u{7f}", "äöü€ 😀 \u{2028}", "line\n"];
    events.extend(texts.map(|text| text.as_bytes().to_vec()));
    // Overlong, a surrogate, beyond the last character, cut.
    let invalid: [&[u8]; 4] = [b"\xc0\x80", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", "😀".as_bytes()];
    events.extend(invalid.map(|bytes| bytes[..bytes.len().min(3)].to_vec()));
    events
}

/// A stream of these events.
fn stream(m: &Mnt, events: &[Vec<u8>]) -> PathBuf {
    let s = m.stream("s");
    for event in events {
        fs::write(s.join("new"), event).unwrap();
        if event.is_empty() {
            append(s.join("events"), "\n");
        }
    }
    assert_eq!(count(&s), events.len() as u64);
    s
}

/// What Python reads of a file of objects, each as "index nanoseconds hex-of-event".
#[track_caller]
fn read_by_python(s: &Path, file: &str) -> String {
    ok(&python(
        s,
        &format!(
            r#"
            import json, base64, decimal
            for line in open("{file}", encoding="utf-8", newline="\n"):
                o = json.loads(line, parse_float=decimal.Decimal)
                index, time = o.pop("index"), int(o.pop("time") * 10 ** 9)
                (dress, event), = o.items()
                event = event.encode() if dress == "event" else base64.b64decode(event, validate=True)
                print(index, time, event.hex(), dress)
            "#
        ),
    ))
}

/// What it should.
fn expected(s: &Path, events: &[Vec<u8>], from: usize) -> String {
    let line = |(n, event): (usize, &Vec<u8>)| {
        let hex: String = event.iter().map(|byte| format!("{byte:02x}")).collect();
        let dress = if std::str::from_utf8(event).is_ok() { "event" } else { "base64" };
        format!("{n} {} {hex} {dress}\n", mtime(s.join(format!("at/{n}"))))
    };
    events.iter().enumerate().skip(from).map(line).collect()
}

#[test]
fn python_reads_every_event() {
    let m = Mnt::new();
    let events = events();
    let s = stream(&m, &events);
    assert_eq!(read_by_python(&s, "from/0.json"), expected(&s, &events, 0));
    assert_eq!(read_by_python(&s, "from/beginning.json"), expected(&s, &events, 0));
    assert_eq!(read_by_python(&s, "from/newest.json"), expected(&s, &events, events.len() - 1));
    assert_eq!(read_by_python(&s, "at/newest.json"), expected(&s, &events, events.len() - 1));
    assert_eq!(read_by_python(&s, "from/next.json"), "");
    let time = mtime(s.join("at/250"));
    let since = format!("from/@{}.{:09}.json", time / 1_000_000_000, time % 1_000_000_000);
    assert_eq!(read_by_python(&s, &since), expected(&s, &events, 250));
    let one: String =
        expected(&s, &events, 7).lines().take(1).map(|line| format!("{line}\n")).collect();
    assert_eq!(read_by_python(&s, "at/7.json"), one);
    assert_eq!(names(&s.join("from")), ["beginning", "newest", "next"]);
    assert_eq!(fs::read_link(s.join("at/newest.json")).unwrap(), Path::new("265.json"));
}

const DUCKDB: &str = r#"
import duckdb
print(duckdb.sql("""
    select count(*), sum((event->>'eur')::int) from read_json('/dev/stdin',
        format = 'newline_delimited', columns = {index: 'UBIGINT', time: 'DECIMAL(20, 9)',
        event: 'VARCHAR', base64: 'VARCHAR'}) where event like '{%'
""").fetchall())"#;

#[test]
fn jq_node_and_duckdb_read_it() {
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("events"), "{\"eur\": 5}\n{\"eur\": 7}\n");
    fs::write(s.join("new"), b"\xff\x00").unwrap();
    fs::write(s.join("new"), "😀 \"\n").unwrap();
    need("jq", "jq");
    let script = "jq -c '[.index, .event, .base64]' from/0.json";
    let wanted = "[0,\"{\\\"eur\\\": 5}\",null]\n[1,\"{\\\"eur\\\": 7}\",null]\n[2,null,\"/wA=\"]\n\
                  [3,\"😀 \\\"\\n\",null]\n";
    assert_eq!(ok(&sh("sh", script, &s)), wanted);
    let sum = "jq -s 'map(.event | fromjson? | .eur?) | add' from/0.json";
    assert_eq!(ok(&sh("sh", sum, &s)), "12\n");
    need("node", "nodejs");
    let script = "let all = require('fs').readFileSync('from/0.json', 'utf8').trim().split('\\n').map(JSON.parse);
        console.log(all.length, all[3].event === '😀 \"\\n', Buffer.from(all[2].base64, 'base64'), all[1].time > 1e9)";
    let mut node = Command::new("node");
    let said = ok(&node.args(["-e", script]).current_dir(&s).output().unwrap());
    assert_eq!(said, "4 true <Buffer ff 00> true\n");
    // It would look for its place in a file; a pipe it reads as it comes.
    let python = std::env::var("SMOLSTORE_PYTHON").unwrap_or("python3".into());
    let mut duckdb = Command::new("sh");
    let duckdb = duckdb.args(["-c", "cat from/0.json | \"$0\" -c \"$1\"", &python, DUCKDB]);
    assert_eq!(ok(&duckdb.current_dir(&s).output().unwrap()), "[(2, 12)]\n");
}

#[test]
fn long_events_take_no_more_memory_than_short_ones() {
    const LEN: usize = 100_000_000;
    let m = Mnt::new();
    let s = m.stream("s");
    let text: Vec<u8> = "äöü€😀xyz\"\\\n".bytes().cycle().take(LEN / 19 * 19).collect();
    let mut cut = text.clone();
    cut.extend_from_slice(&"😀".as_bytes()[..3]);
    for event in [&text, &cut] {
        fs::write(s.join("new"), event).unwrap();
    }
    append(s.join("events"), "last\n");
    let before = m.rss_peak_kib();
    let said = ok(&python(
        &s,
        r#"
        import json, base64
        want = open("at/0", "rb").read()
        a, b, c = (json.loads(line) for line in open("from/0.json", "rb"))
        assert a["event"].encode() == want
        assert base64.b64decode(b["base64"]) == open("at/1", "rb").read()
        print(c["event"])
        "#,
    ));
    assert_eq!(said, "last\n");
    let more = m.rss_peak_kib() - before;
    assert!(more < 64 << 10, "{more} KiB");
}

#[test]
fn it_is_a_stream_and_nothing_is_written_to_it() {
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("events"), "a\nb\n");
    for name in ["from/0.json", "at/0.json", "follow/0.json"] {
        let path = s.join(name);
        let mut file = File::open(&path).unwrap();
        assert_eq!(errno_of(file.seek(SeekFrom::Start(1))), libc::ESPIPE, "{name}");
        assert_eq!(errno_of(file.read_at(&mut [0; 9], 0)), libc::ESPIPE, "{name}");
        assert_eq!(file.metadata().unwrap().len(), 1);
        assert_eq!(errno_of(appender(&path)), libc::EPERM, "{name}");
        // By one byte or all at once.
        let whole = {
            let mut all = vec![0; 1 << 16];
            let len = file.read(&mut all).unwrap();
            text(&all[..len])
        };
        let bytes =
            ok(&sh("sh", &format!("dd bs=1 count={} < {name} 2> /dev/null", whole.len()), &s));
        assert_eq!(bytes, whole);
        assert_eq!(
            ok(&sh("busybox sh", &format!("busybox head -n 1 {name} | wc -l"), &s)).trim(),
            "1"
        );
    }
    assert_eq!(errno_of(File::create(s.join("at/2.json"))), libc::EPERM);
    for missing in
        ["at/2.json", "from/3.json", "from/.json", "from/x.json", "at/00.json", "count.json"]
    {
        assert_eq!(errno_of(File::open(s.join(missing))), libc::ENOENT, "{missing}");
    }
    assert_eq!(read(s.join("from/2.json")), b"");
}

#[test]
fn followers_get_whole_objects_as_they_come() {
    let m = Mnt::new();
    let s = m.stream("s");
    let mut follower = File::open(s.join("follow/next.json")).unwrap();
    let wanted = |n: usize| {
        let time = mtime(s.join(format!("at/{n}")));
        let time = format!("{}.{:09}", time / 1_000_000_000, time % 1_000_000_000);
        format!("{{\"index\":{n},\"time\":{time},\"event\":\"{n}\"}}\n")
    };
    let mut writer = appender(s.join("lines")).unwrap();
    for n in 0..20 {
        let script = move || {
            let mut bytes = [0; 1000];
            let len = follower.read(&mut bytes).unwrap();
            (follower, text(&bytes[..len]))
        };
        let read = std::thread::spawn(script);
        writeln!(writer, "{n}").unwrap();
        let (file, said) = read.join().unwrap();
        assert_eq!(said, wanted(n));
        follower = file;
    }
    // Two who share an open file share the events, and get whole ones.
    let file = File::open(s.join("from/0.json")).unwrap();
    let mut all = Vec::new();
    loop {
        let mut bytes = [0; 150];
        let len = (&file).read(&mut bytes).unwrap();
        if len == 0 {
            break;
        }
        assert_eq!(bytes[len - 1], b'\n');
        all.extend_from_slice(&bytes[..len]);
    }
    assert_eq!(text(&all), (0..20).map(wanted).collect::<String>());
    // The next event is seen behind the end, too.
    append(s.join("events"), "20\n");
    let mut more = String::new();
    (&file).read_to_string(&mut more).unwrap();
    assert_eq!(more, wanted(20));
}
