//! SQLite in this process: WAL, synchronous=FULL. A stream is a table.
//!
//! All clients of a process share one connection: that is SQLite at its best, for connections of
//! their own would sleep while another one writes.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use rusqlite::Connection;

use crate::{Client, workloads::add};

pub struct Sqlite {
    connection: Arc<Mutex<Connection>>,
    insert: String,
    stream: String,
}

static SHARED: OnceLock<Arc<Mutex<Connection>>> = OnceLock::new();

fn open(path: &str) -> Connection {
    let connection = Connection::open(path).expect("open");
    let pragmas = "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA mmap_size=0;";
    connection.execute_batch(pragmas).expect("pragmas");
    connection.set_prepared_statement_cache_capacity(256);
    connection
}

impl Sqlite {
    pub fn connect(path: &str, stream: &str) -> Sqlite {
        let connection = SHARED.get_or_init(|| Arc::new(Mutex::new(open(path))));
        let create = format!(
            "CREATE TABLE IF NOT EXISTS \"{stream}\" (id INTEGER PRIMARY KEY, event BLOB NOT NULL)"
        );
        let sqlite = Sqlite {
            connection: connection.clone(),
            insert: format!("INSERT INTO \"{stream}\" (event) VALUES (?1)"),
            stream: stream.to_string(),
        };
        sqlite.lock().execute(&create, []).expect("create");
        sqlite
    }

    fn lock(&self) -> MutexGuard<'_, Connection> {
        self.connection.lock().expect("no other client failed")
    }
}

impl Client for Sqlite {
    fn append(&mut self, event: &[u8], times: usize) {
        let mut connection = self.lock();
        if times == 1 {
            let mut insert = connection.prepare_cached(&self.insert).expect("prepare");
            insert.execute([event]).expect("insert");
            return;
        }
        let transaction = connection.transaction().expect("begin");
        let mut insert = transaction.prepare_cached(&self.insert).expect("prepare");
        for _ in 0..times {
            insert.execute([event]).expect("insert");
        }
        drop(insert);
        transaction.commit().expect("commit");
    }

    fn scan(&mut self) -> (u64, u64) {
        let connection = self.lock();
        let select = format!("SELECT event FROM \"{}\" ORDER BY id", self.stream);
        let mut select = connection.prepare(&select).expect("prepare");
        let mut rows = select.query([]).expect("select");
        let (mut events, mut bytes, mut sum) = (0, 0, 0);
        while let Some(row) = rows.next().expect("step") {
            let event = row.get_ref(0).expect("a column");
            let event = event.as_blob().expect("a blob");
            events += 1;
            bytes += event.len() as u64;
            sum += add(event);
        }
        assert!(sum > 0);
        (events, bytes)
    }

    fn seek(&mut self, n: u64) {
        let connection = self.lock();
        let select = format!("SELECT event FROM \"{}\" WHERE id = ?1", self.stream);
        let mut select = connection.prepare_cached(&select).expect("prepare");
        let event = select.query_row([n as i64 + 1], |row| Ok(row.get_ref(0)?.as_blob()?.len()));
        assert_eq!(event.expect("an event"), 100);
    }
}
