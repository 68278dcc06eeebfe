//! UmaDB, over gRPC on the loopback device. A stream is a tag, as its users make them.

use futures::StreamExt;
use umadb_client::{AsyncUmaDbClient, UmaDbClient};
use umadb_dcb::{DcbEvent, DcbEventStoreAsync, DcbQuery, DcbQueryItem};

use crate::{Client, nats::runtime, workloads::add};

/// A message of gRPC has at most 4 MiB.
const PIECE: usize = 10_000;

pub struct Umadb {
    client: AsyncUmaDbClient,
    stream: String,
}

impl Umadb {
    pub fn connect(address: &str, stream: &str) -> Umadb {
        let connect = UmaDbClient::new(address.to_string());
        let client = runtime().block_on(async { connect.connect_async().await });
        Umadb {
            client: client.expect("connect"),
            stream: stream.to_string(),
        }
    }

    fn event(&self, bytes: &[u8]) -> DcbEvent {
        DcbEvent::new()
            .event_type("e")
            .tags([self.stream.clone()])
            .data(bytes)
    }

    fn query(&self) -> DcbQuery {
        DcbQuery::with_items([DcbQueryItem::new().tags([self.stream.clone()])])
    }
}

impl Client for Umadb {
    fn append(&mut self, event: &[u8], times: usize) {
        let mut left = times;
        while left > 0 {
            let now = left.min(PIECE);
            let events = vec![self.event(event); now];
            let appended = runtime().block_on(self.client.append(events, None, None));
            appended.expect("append");
            left -= now;
        }
    }

    fn scan(&mut self) -> (u64, u64) {
        let (mut events, mut bytes, mut sum) = (0, 0, 0);
        runtime().block_on(async {
            let read = self.client.read(Some(self.query()), None, false, None);
            let mut read = read.await.expect("read");
            while let Some(event) = read.next().await {
                let event = event.expect("an event").event;
                events += 1;
                bytes += event.data.len() as u64;
                sum += add(&event.data);
            }
        });
        assert!(sum > 0);
        (events, bytes)
    }

    fn follow(&mut self, ready: &mut dyn FnMut(), each: &mut dyn FnMut(&[u8]) -> bool) {
        runtime().block_on(async {
            let head = self.client.head().await.expect("head");
            let subscribed = self.client.subscribe(Some(self.query()), head).await;
            let mut subscribed = subscribed.expect("subscribe");
            ready();
            while let Some(event) = subscribed.next().await {
                if !each(&event.expect("an event").event.data) {
                    return;
                }
            }
        });
    }
}
