//! The timed loops of `scripts/bench`: one workload against one store, once.
//!
//! `bench-client WORKLOAD NAME=VALUE...` prints one line of JSON. The loops know no store: each is a
//! [`Client`], and a plain file and the mount are the same one, with the same calls and buffers.

mod files;
mod nats;
mod postgres;
mod redis;
mod sqlite;
mod umadb;
mod workloads;

use std::collections::HashMap;

/// What a workload does to a store. Each client is one connection, or one open file, of one stream.
/// A failure ends the run: a benchmark that goes on after one measures something else.
trait Client: Send {
    /// Appends `times` copies of `event` as one atomic, durable batch. Where a store has no such
    /// thing of that size, in as few pieces as it takes.
    fn append(&mut self, event: &[u8], times: usize);
    /// Reads all events; says how many, and their bytes.
    fn scan(&mut self) -> (u64, u64);
    /// Reads event `n` alone.
    fn seek(&mut self, _n: u64) {
        panic!("this store has no index of a stream's events");
    }
    /// Waits for events behind those there are now; hands each to `each` until that says no.
    fn follow(&mut self, _ready: &mut dyn FnMut(), _each: &mut dyn FnMut(&[u8]) -> bool) {
        panic!("this store has no way to wait for events");
    }
}

/// Connects to stream `stream` of the store of this kind at `address`, and makes both as needed.
fn connect(kind: &str, address: &str, stream: &str) -> Box<dyn Client> {
    match kind {
        "sqlite" => Box::new(sqlite::Sqlite::connect(address, stream)),
        "redis" => Box::new(redis::Redis::connect(address, stream)),
        "postgres" => Box::new(postgres::Postgres::connect(address, stream)),
        "nats" => Box::new(nats::Nats::connect(address, stream)),
        "umadb" => Box::new(umadb::Umadb::connect(address, stream)),
        _ => Box::new(files::Files::connect(kind, address, stream)),
    }
}

/// The `NAME=VALUE` arguments.
struct Arguments(HashMap<String, String>);

impl Arguments {
    fn text(&self, name: &str) -> &str {
        let value = self.0.get(name);
        value.unwrap_or_else(|| panic!("{name}=... is missing"))
    }

    fn number(&self, name: &str) -> u64 {
        let text = self.text(name);
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text}: not a number"))
    }

    fn connect(&self, stream: &str) -> Box<dyn Client> {
        connect(self.text("kind"), self.text("address"), stream)
    }
}

fn main() {
    // A thread that fails must not leave the others waiting.
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |fault| {
        hook(fault);
        std::process::exit(1);
    }));
    let mut words = std::env::args().skip(1);
    let workload = words.next().unwrap_or_default();
    let pair = |word: String| {
        let (name, value) = word.split_once('=').expect("NAME=VALUE");
        (name.to_string(), value.to_string())
    };
    let arguments = Arguments(words.map(pair).collect());
    match workload.as_str() {
        "write" => workloads::write(&arguments),
        "fill" => workloads::fill(&arguments),
        "scan" => workloads::scan(&arguments),
        "seek" => workloads::seek(&arguments),
        "follow" => workloads::follow(&arguments),
        "mkdir" => workloads::mkdir(&arguments),
        "generate" => workloads::generate(&arguments),
        "sink" => workloads::sink(),
        other => panic!("no workload {other:?}"),
    }
}
