//! Redis streams, over a Unix socket.

use redis::{Connection, Value, cmd, pipe};

use crate::{Client, workloads::add};

/// So many commands in one MULTI: more would only fill the server's memory.
const PIECE: usize = 10_000;

pub struct Redis {
    connection: Connection,
    stream: String,
}

impl Redis {
    pub fn connect(socket: &str, stream: &str) -> Redis {
        let client = redis::Client::open(format!("redis+unix://{socket}")).expect("an address");
        Redis {
            connection: client.get_connection().expect("connect"),
            stream: stream.to_string(),
        }
    }

    /// Hands each event of a reply to XRANGE, or of one stream of XREAD, to `each`; says the id of
    /// the last, unless there is none or `each` wants no more.
    fn entries(reply: &Value, each: &mut dyn FnMut(&[u8]) -> bool) -> Option<Vec<u8>> {
        let mut last = None;
        // [id, [name, value]]
        for entry in array(reply) {
            let [id, fields] = array(entry) else {
                panic!("not an entry: {entry:?}");
            };
            if !each(bytes(&array(fields)[1])) {
                return None;
            }
            last = Some(id);
        }
        last.map(|id| bytes(id).to_vec())
    }

    fn range(&mut self, command: &str, from: &[u8], to: &str, count: usize) -> Value {
        let mut range = cmd(command);
        range.arg(&self.stream).arg(from).arg(to);
        let range = range.arg("COUNT").arg(count);
        range.query(&mut self.connection).expect("a range")
    }
}

fn array(value: &Value) -> &[Value] {
    match value {
        Value::Array(values) => values,
        other => panic!("not an array: {other:?}"),
    }
}

fn bytes(value: &Value) -> &[u8] {
    match value {
        Value::BulkString(bytes) => bytes,
        other => panic!("not a string: {other:?}"),
    }
}

impl Client for Redis {
    fn append(&mut self, event: &[u8], times: usize) {
        if times == 1 {
            let mut add = cmd("XADD");
            add.arg(&self.stream).arg("*").arg("e").arg(event);
            return add.exec(&mut self.connection).expect("XADD");
        }
        let mut left = times;
        while left > 0 {
            let now = left.min(PIECE);
            let mut batch = pipe();
            batch.atomic();
            for _ in 0..now {
                let add = batch.cmd("XADD").arg(&self.stream).arg("*");
                add.arg("e").arg(event).ignore();
            }
            batch.exec(&mut self.connection).expect("EXEC");
            left -= now;
        }
    }

    fn scan(&mut self) -> (u64, u64) {
        let (mut from, mut events, mut bytes, mut sum) = (b"-".to_vec(), 0, 0, 0);
        loop {
            let reply = self.range("XRANGE", &from, "+", PIECE);
            let last = Redis::entries(&reply, &mut |event| {
                events += 1;
                bytes += event.len() as u64;
                sum += add(event);
                true
            });
            match last {
                Some(id) => from = [b"(", &id[..]].concat(),
                None => break,
            }
        }
        assert!(sum > 0);
        (events, bytes)
    }

    fn follow(&mut self, ready: &mut dyn FnMut(), each: &mut dyn FnMut(&[u8]) -> bool) {
        let newest = self.range("XREVRANGE", b"+", "-", 1);
        let mut last = Redis::entries(&newest, &mut |_| true).expect("an event");
        ready();
        loop {
            let mut read = cmd("XREAD");
            read.arg("BLOCK").arg(0).arg("STREAMS");
            read.arg(&self.stream).arg(&last);
            let reply: Value = read.query(&mut self.connection).expect("XREAD");
            // [[stream, entries]]
            match Redis::entries(&array(&array(&reply)[0])[1], each) {
                Some(id) => last = id,
                None => return,
            }
        }
    }
}
