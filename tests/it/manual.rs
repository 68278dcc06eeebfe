//! README and manual: short, well-formed, and where other tests find the blocks that they run.

use crate::harness::*;
use std::path::Path;
use std::process::Command;

const README: &str = include_str!("../../README.md");

/// The page of the manual in this section, as it is in the repository.
fn page(section: u8) -> String {
    let name = format!("scripts/dist/smolstore.{section}");
    text(&read(Path::new(env!("CARGO_MANIFEST_DIR")).join(name)))
}

/// The literal block of a page of the manual that holds these words, as a reader sees it.
#[track_caller]
pub fn block(section: u8, words: &str) -> String {
    let page = page(section);
    let blocks = page.split("\n.Bd -literal").skip(1).filter_map(|rest| rest.split_once('\n'));
    let mut blocks = blocks.filter_map(|(_, rest)| Some(rest.split_once("\n.Ed")?.0));
    let block = blocks.find(|block| block.contains(words)).expect(words);
    let lines = block.lines().map(|line| line.strip_prefix("\\&").unwrap_or(line));
    lines.map(|line| line.replace("\\e", "\\") + "\n").collect()
}

#[test]
fn the_readme_is_read_to_the_end() {
    let words = |text: &str| text.split_whitespace().count();
    assert!(words(README) <= 1_500, "{} words", words(README));
    // The first event in and out.
    let (before, _) = README.split_once("$ cat orders/events\n").unwrap();
    assert!(words(before) <= 200, "{} words", words(before));
    assert!(before.contains("scripts/install") && before.contains(">> orders/events"));
}

#[test]
fn the_pages_of_the_manual_are_well_formed() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/dist");
    for section in [5, 7, 8] {
        let name = format!("smolstore.{section}");
        let mut mandoc = Command::new("mandoc");
        let out = mandoc.args(["-T", "lint", &name]).current_dir(&dir).output().unwrap();
        let said = text(&out.stdout) + &text(&out.stderr);
        // It does not know all of the manual of this machine.
        let known = ["mandoc.db", "referenced manual not found"];
        let wrong: Vec<_> =
            said.lines().filter(|line| !known.iter().any(|known| line.contains(known))).collect();
        assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    }
}

#[test]
fn man_shows_a_page_of_the_repository() {
    let shown =
        sh("sh", "MANPAGER=cat man scripts/dist/smolstore.7", env!("CARGO_MANIFEST_DIR").as_ref());
    assert!(ok(&shown).contains("GUARANTEES"));
}

#[test]
fn the_errors_of_the_readme_are_in_the_manual() {
    let (_, table) = README.split_once("## Errors").unwrap();
    let rows = table.split("\n## ").next().unwrap().lines().filter(|row| row.starts_with("| E"));
    let cells = rows.filter_map(|row| row.split('|').nth(1));
    let errors: Vec<_> =
        cells.flat_map(str::split_whitespace).filter(|word| word.starts_with('E')).collect();
    assert!(errors.len() > 8, "{errors:?}");
    for error in errors {
        let error = error.trim_end_matches(',');
        assert!(page(7).contains(&format!(".Er {error}")), "{error}");
    }
}
