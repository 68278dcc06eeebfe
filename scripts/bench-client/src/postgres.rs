//! PostgreSQL, over a Unix socket. A stream is a table.

use std::io::{Read, Write};

use postgres::fallible_iterator::FallibleIterator;
use postgres::{Client as Connection, NoTls, Statement};

use crate::{Client, workloads::add};

pub struct Postgres {
    connection: Connection,
    insert: Statement,
    select: Statement,
    stream: String,
}

/// What COPY in binary begins with.
const MAGIC: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";

impl Postgres {
    pub fn connect(directory: &str, stream: &str) -> Postgres {
        let address = format!("host={directory} user=postgres dbname=postgres");
        let mut connection = Connection::connect(&address, NoTls).expect("connect");
        // IF NOT EXISTS may still fail when two do it at once.
        let create = format!(
            "SET client_min_messages = error; SELECT pg_advisory_xact_lock(1); CREATE TABLE \
             IF NOT EXISTS \"{stream}\" (id bigserial PRIMARY KEY, event bytea NOT NULL)"
        );
        connection.batch_execute(&create).expect("create");
        let insert = format!("INSERT INTO \"{stream}\" (event) VALUES ($1)");
        let select = format!("SELECT event FROM \"{stream}\" WHERE id = $1");
        Postgres {
            insert: connection.prepare(&insert).expect("prepare"),
            select: connection.prepare(&select).expect("prepare"),
            connection,
            stream: stream.to_string(),
        }
    }
}

impl Client for Postgres {
    fn append(&mut self, event: &[u8], times: usize) {
        if times == 1 {
            let inserted = self.connection.execute(&self.insert, &[&event]);
            assert_eq!(inserted.expect("insert"), 1);
            return;
        }
        let copy = format!("COPY \"{}\" (event) FROM STDIN BINARY", self.stream);
        let mut copy = self.connection.copy_in(&copy).expect("copy");
        let row = [&[0, 1][..], &(event.len() as u32).to_be_bytes(), event].concat();
        copy.write_all(MAGIC).expect("copy");
        for _ in 0..times {
            copy.write_all(&row).expect("copy");
        }
        copy.write_all(&[0xff, 0xff]).expect("copy");
        assert_eq!(copy.finish().expect("copy"), times as u64);
    }

    fn scan(&mut self) -> (u64, u64) {
        let copy = format!(
            "COPY (SELECT event FROM \"{}\" ORDER BY id) TO STDOUT BINARY",
            self.stream
        );
        let mut copy = self.connection.copy_out(&copy).expect("copy");
        let mut magic = [0; MAGIC.len()];
        copy.read_exact(&mut magic).expect("copy");
        let (mut events, mut bytes, mut sum, mut event) = (0, 0, 0, Vec::new());
        loop {
            let mut fields = [0; 2];
            copy.read_exact(&mut fields).expect("copy");
            if fields == [0xff, 0xff] {
                break;
            }
            let mut len = [0; 4];
            copy.read_exact(&mut len).expect("copy");
            event.resize(u32::from_be_bytes(len) as usize, 0);
            copy.read_exact(&mut event).expect("copy");
            events += 1;
            bytes += event.len() as u64;
            sum += add(&event);
        }
        assert!(sum > 0);
        (events, bytes)
    }

    fn seek(&mut self, n: u64) {
        let row = self.connection.query_one(&self.select, &[&(n as i64 + 1)]);
        assert_eq!(row.expect("an event").get::<_, &[u8]>(0).len(), 100);
    }

    fn follow(&mut self, ready: &mut dyn FnMut(), each: &mut dyn FnMut(&[u8]) -> bool) {
        let stream = &self.stream;
        // What a commit sends of itself; the event is in it, no select has to follow.
        let trigger = format!(
            "CREATE OR REPLACE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS \
             $$ BEGIN PERFORM pg_notify(TG_TABLE_NAME, convert_from(NEW.event, 'UTF8')); RETURN NEW; END $$; \
             CREATE OR REPLACE TRIGGER tell AFTER INSERT ON \"{stream}\" FOR EACH ROW EXECUTE FUNCTION tell(); \
             LISTEN \"{stream}\""
        );
        self.connection.batch_execute(&trigger).expect("listen");
        ready();
        let mut notifications = self.connection.notifications();
        let mut notifications = notifications.blocking_iter();
        while let Some(told) = notifications.next().expect("a notification") {
            if !each(told.payload().as_bytes()) {
                return;
            }
        }
    }
}
