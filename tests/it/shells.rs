//! What people type: bash, dash and busybox sh, with the tools beside them.
//!
//! Each script runs in the directory of a fresh stream; what it made is compared batch by batch.

use crate::commit::batches;
use crate::harness::*;
use std::path::Path;

const SHELLS: [&str; 3] = ["bash", "dash", "busybox sh"];

/// Runs a test in each shell on a stream of its own.
#[track_caller]
fn each(test: impl Fn(&str, &Path)) {
    let m = Mnt::new();
    for shell in SHELLS {
        test(shell, &m.stream(shell.replace(' ', "-")));
    }
}

/// In each shell all commands of the script succeed and it makes these batches.
#[track_caller]
fn makes(script: &str, expected: &[&str]) {
    each(|shell, s| {
        ok(&sh(shell, &format!("set -e\n{script}"), s));
        assert_eq!(batches(s), expected, "{shell}: {script}");
    });
}

/// In each shell the script fails, says this, and the stream stays as it was.
#[track_caller]
fn refuses(script: &str, message: &str) {
    each(|shell, s| {
        append(s.join("events"), "zero\none\n");
        let out = sh(shell, script, s);
        assert!(!out.status.success(), "{shell}: {script}");
        assert!(text(&out.stderr).contains(message), "{shell}: {script}: {}", text(&out.stderr));
        assert_eq!(batches(s), ["zero\none\n"], "{shell}: {script}");
    });
}

// Appending.

#[test]
fn builtins_append() {
    makes(r"echo one >> events; printf 'two\nthree\n' >> events", &["one\n", "two\nthree\n"]);
}

#[test]
fn external_commands_append() {
    makes(r"seq 3 >> events; env printf 'four\n' >> events", &["1\n2\n3\n", "four\n"]);
}

#[test]
fn cat_appends_pipes_and_files() {
    makes(
        r"
        printf 'a\nb\n' | cat >> events
        cat from/0 >> events
        cat < from/3 >> events
        echo c | cat from/4 - at/0 >> events
        ",
        &["a\nb\n", "a\nb\n", "b\n", "b\nc\na\n"],
    );
}

#[test]
fn tee_appends() {
    makes(
        r"
        [ $(printf 'a\nb\n' | tee -a events | wc -l) = 2 ]
        echo c | busybox tee -a events
        ",
        &["a\nb\n", "c\n"],
    );
}

#[test]
fn dd_appends() {
    makes(
        r"
        printf 'a\nb\n' | dd oflag=append conv=notrunc of=events
        printf 'c\nd\n' | dd oflag=append conv=notrunc of=events bs=1
        printf 'e\nf\n' | dd oflag=append conv=notrunc,fsync of=events
        printf 'g\nh\n' | busybox dd oflag=append conv=notrunc of=events
        ",
        &["a\nb\n", "c\nd\n", "e\nf\n", "g\nh\n"],
    );
}

#[test]
fn here_documents_append() {
    makes(
        "cat >> events <<END\none\n$((1 + 1))\n\nEND\ncat >> lines <<'END'\n$x\nEND\n",
        &["one\n2\n\n", "$x\n"],
    );
}

#[test]
fn a_group_is_one_batch() {
    makes("{ printf a; echo b; printf c; } >> events", &["ab\nc\n"]);
    makes("both() { echo a; echo b; }; both >> events; both >> events", &["a\nb\n"; 2]);
    makes("if true; then echo a; echo b; fi >> events", &["a\nb\n"]);
}

#[test]
fn commands_in_a_group_that_write_nothing_cut_nothing() {
    makes(
        r#"{ printf a; env true; printf "$(echo b)"; (true); true | true; echo c; } >> events"#,
        &["abc\n"],
    );
}

#[test]
fn a_subshell_is_one_batch() {
    makes("(printf a; echo b; cd /; printf c) >> events", &["ab\nc\n"]);
}

#[test]
fn an_external_command_that_wrote_in_a_group_ends_a_batch() {
    makes("{ echo a; seq 2; echo b; } >> events", &["a\n1\n2\n", "b\n"]);
    // Documented: the line is cut as well when the command left it open.
    makes(r"{ echo a | tr -d '\n'; echo x; } >> events", &["a\n", "x\n"]);
}

#[test]
fn the_end_of_a_pipeline_appends() {
    makes(r"printf '3\n1\n2\n' | sort | sed 's/^/n/' >> events", &["n1\nn2\nn3\n"]);
}

#[test]
fn while_read_loops_append_as_a_whole_or_line_by_line() {
    makes(r#"seq 3 | while read -r n; do echo "n$n"; done >> events"#, &["n1\nn2\nn3\n"]);
    makes(r#"seq 3 | while read -r n; do echo "n$n" >> events; done"#, &["n1\n", "n2\n", "n3\n"]);
}

#[test]
fn background_jobs_append_each_its_own_batch() {
    each(|shell, s| {
        let script = "for n in 1 2 3 4 5 6 7 8; do { echo $n; echo $n; } >> events & done; wait";
        ok(&sh(shell, script, s));
        // Those that shared a sync share their time, too.
        let all = text(&read(s.join("events")));
        let lines: Vec<&str> = all.split_inclusive('\n').collect();
        let mut made: Vec<String> = lines.chunks(2).map(<[&str]>::concat).collect();
        made.sort();
        let expected: Vec<String> = (1..=8).map(|n| format!("{n}\n{n}\n")).collect();
        assert_eq!(made, expected, "{shell}");
    });
}

#[test]
fn last_lines_without_a_newline_empty_lines_and_carriage_returns() {
    makes(
        r"
        printf 'a\nb' >> events
        printf '\n\n' >> events
        printf 'a\r\n\r\n' >> events
        ",
        &["a\nb\n", "\n\n", "a\r\n\r\n"],
    );
}

#[test]
fn nothing_written_is_nothing() {
    makes(
        ": >> events; true >> events; printf '' >> lines; cat /dev/null >> events; : >> from/0",
        &[],
    );
}

// A descriptor that stays open.

#[test]
fn builtins_on_an_open_descriptor_commit_each_for_itself() {
    // Documented: the shell closes a duplicate after each builtin, so this is two events.
    makes("exec 3>>events; printf a >&3; echo b >&3; exec 3>&-", &["a\n", "b\n"]);
}

#[test]
fn a_group_on_an_open_descriptor_is_one_batch() {
    makes("exec 3>>events; { printf a; echo b; echo c; } >&3", &["ab\nc\n"]);
}

#[test]
fn children_that_inherit_an_open_descriptor_and_write_nothing_cut_nothing() {
    makes(
        "exec 3>>events; sleep 0.1 & { printf a; wait; env true; echo b; } >&3; env true",
        &["ab\n"],
    );
}

#[test]
fn a_logger_that_keeps_lines_open_is_visible_at_once() {
    makes(
        "exec 3>>lines; for n in 1 2 3; do echo line >&3; [ $(cat count) = $n ]; done",
        &["line\n"; 3],
    );
    makes(
        "{ echo a; [ $(cat count) = 1 ]; printf b; [ $(cat count) = 1 ]; echo c; } >> lines",
        &["a\n", "bc\n"],
    );
}

// One event.

#[test]
fn new_and_at_take_one_event() {
    makes(
        r"
        echo one > new
        printf 'two' >> new
        { echo three; seq 2; } | cat > at/2
        set -C; echo four > at/3
        ",
        &["one\n\n", "two\n", "three\n1\n2\n\n", "four\n\n"],
    );
    refuses("set -C; echo x > at/1", "");
}

// Refused.

#[test]
fn whatever_is_no_append_is_refused() {
    for script in [
        "echo x > events",
        ": > events",
        "cat /dev/null > events",
        "echo x > lines",
        "echo x > from/next",
        "exec 3> events",
        "cp /dev/null events",
        "dd if=/dev/null of=events",
        "echo x | tee events",
        "truncate -s 0 events",
        "rm -f events",
        "mv events x",
        "echo x > x",
        "mkdir x",
        "sed -i s/one/two/ events",
    ] {
        refuses(script, "not permitted");
    }
}

// Guarded.

#[test]
fn from_next_appends() {
    makes(
        r"
        echo a >> from/next
        printf 'b\nc\n' | cat >> from/next
        echo d | tee -a from/3
        echo e | dd oflag=append conv=notrunc of=from/4
        ",
        &["a\n", "b\nc\n", "d\n", "e\n"],
    );
}

#[test]
fn a_taken_index_stops_whichever_command() {
    for script in [
        "echo x >> from/0",
        "echo x | cat >> from/1",
        "echo x | tee -a from/1",
        "echo x | busybox tee -a from/1",
        "echo x | dd oflag=append conv=notrunc of=from/newest",
        "echo x | busybox dd oflag=append conv=notrunc of=from/0",
    ] {
        refuses(script, "File exists");
    }
}

/// In each shell the script fails because "winner" came first.
#[track_caller]
fn loses(script: &str) {
    each(|shell, s| {
        let out = sh(shell, script, s);
        assert!(!out.status.success(), "{shell}: {script}");
        assert!(text(&out.stderr).contains("File exists"), "{shell}: {}", text(&out.stderr));
        assert_eq!(batches(s), ["winner\n"], "{shell}: {script}");
    });
}

#[test]
fn an_index_taken_after_the_open_stops_the_command_that_writes() {
    loses("{ echo winner >> events; seq 3; } >> from/0");
    loses("{ echo winner >> events; echo loser | cat; } >> from/0");
    loses("{ echo winner >> events; echo loser | dd; } >> from/0");
}

#[test]
fn an_index_taken_after_the_write_stops_the_command_that_closes() {
    let late = "{ echo loser; sleep 0.5; echo winner >> events; }";
    loses(&format!("{late} | cat >> from/0"));
    loses(&format!("{late} | tee -a from/0"));
    loses(&format!("{late} | dd oflag=append conv=notrunc of=from/0"));
}

// Reading.

#[test]
fn ordinary_tools_read() {
    let m = Mnt::new();
    let s = m.stream("s");
    let all: String = (0..5).map(|n| format!("{{\"n\":{n}}}\n")).collect();
    append(s.join("events"), &all);
    for (script, expected) in [
        ("cat events", &all[..]),
        ("cat from/beginning", &all),
        ("cat from/3", "{\"n\":3}\n{\"n\":4}\n"),
        ("cat from/newest", "{\"n\":4}\n"),
        ("cat from/next", ""),
        ("cat at/2", "{\"n\":2}"),
        ("cat at/newest from/4", "{\"n\":4}{\"n\":4}\n"),
        ("head -n 1 events", "{\"n\":0}\n"),
        ("head -c 7 from/1", "{\"n\":1}"),
        ("tail -n 1 events", "{\"n\":4}\n"),
        ("tail -n 2 from/1", "{\"n\":3}\n{\"n\":4}\n"),
        ("tail -n +5 events", "{\"n\":4}\n"),
        ("tail -c 3 events", "4}\n"),
        ("tail -n 1 at/1", "{\"n\":1}"),
        ("sed -n 2p events", "{\"n\":1}\n"),
        ("sed -n '$p' from/1", "{\"n\":4}\n"),
        ("wc -l < events", "5\n"),
        ("wc -c < events", "40\n"),
        ("wc -l < from/3", "2\n"),
        ("wc -c < at/3", "7\n"),
        ("grep -c n events", "5\n"),
        ("grep 3 from/1", "{\"n\":3}\n"),
        ("sort -r from/3", "{\"n\":4}\n{\"n\":3}\n"),
        ("tac from/3", "{\"n\":4}\n{\"n\":3}\n"),
        ("cut -d: -f2 from/4", "4}\n"),
        ("cat count", "5\n"),
    ] {
        assert_eq!(ok(&sh("sh", script, &s)), expected, "{script}");
        let of_busybox = format!("busybox {script}");
        assert_eq!(ok(&sh("sh", &of_busybox, &s)), expected, "{of_busybox}");
    }
}

#[test]
fn shells_read() {
    each(|shell, s| {
        append(s.join("events"), "a\n  b\n\nlast");
        for (script, expected) in [
            ("{ read -r x; read -r y; cat; } < events", "\nlast\n"),
            ("while IFS= read -r x; do echo \"<$x>\"; done < events", "<a>\n<  b>\n<>\n<last>\n"),
            ("echo $(($(cat count) + 1))", "5\n"),
            ("for n in 3 0; do cat at/$n; done", "lasta"),
            ("exec 3< from/1; cat at/0 >&2; cat <&3", "  b\n\nlast\n"),
        ] {
            assert_eq!(ok(&sh(shell, script, s)), expected, "{shell}: {script}");
        }
    });
}

#[test]
fn jq_reads() {
    need("jq", "jq");
    let m = Mnt::new();
    let s = m.stream("s");
    append(s.join("events"), "{\"n\":1}\n{\"n\":2}\n{\"n\":3}\n");
    for (script, expected) in [
        ("jq .n events", "1\n2\n3\n"),
        ("jq .n from/1", "2\n3\n"),
        ("jq -s 'map(.n) | add' events", "6\n"),
        ("jq .n at/2", "3\n"),
        ("jq -c 'select(.n > 1)' from/0 | tee -a events | wc -l; jq .n from/3", "2\n2\n3\n"),
    ] {
        assert_eq!(ok(&sh("sh", script, &s)), expected, "{script}");
    }
}
