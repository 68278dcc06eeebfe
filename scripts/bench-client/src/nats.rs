//! NATS JetStream, over TCP on the loopback device: its server has no Unix socket.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use async_nats::jetstream::consumer::{AckPolicy, DeliverPolicy, pull};
use async_nats::jetstream::{self, stream};
use async_nats::{HeaderMap, Request};
use futures::StreamExt;
use tokio::runtime::Runtime;

use crate::{Client, workloads::add};

/// The most that the server takes as one atomic batch.
const PIECE: usize = 1000;

pub struct Nats {
    client: async_nats::Client,
    stream: stream::Stream,
    subject: String,
}

/// What the asynchronous clients run on.
pub fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| Runtime::new().expect("a runtime"))
}

impl Nats {
    pub fn connect(address: &str, name: &str) -> Nats {
        let subject = format!("bench.{name}");
        let config = stream::Config {
            name: name.to_string(),
            subjects: vec![subject.clone()],
            storage: stream::StorageType::File,
            allow_atomic_publish: true,
            allow_direct: true,
            ..Default::default()
        };
        runtime().block_on(async {
            let client = async_nats::connect(address).await.expect("connect");
            let context = jetstream::new(client.clone());
            let stream = context.get_or_create_stream(config).await;
            let stream = stream.expect("a stream");
            Nats {
                client,
                stream,
                subject,
            }
        })
    }

    async fn publish(&self, event: &[u8], headers: HeaderMap) {
        let request = Request::new()
            .payload(event.to_vec().into())
            .headers(headers);
        let answer = self.client.send_request(self.subject.clone(), request);
        let answer = answer.await.expect("publish").payload;
        let answer = std::str::from_utf8(&answer).expect("text");
        assert!(!answer.contains("\"error\""), "{answer}");
    }

    /// An atomic batch (ADR-50): only the last message is answered, when all of them are stored.
    async fn batch(&self, event: &[u8], times: usize) {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Relaxed);
        let id = format!("{}-{number}", std::process::id());
        for sequence in 1..=times {
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Batch-Id", id.as_str());
            headers.insert("Nats-Batch-Sequence", sequence.to_string());
            if sequence < times {
                let subject = self.subject.clone();
                let payload = event.to_vec().into();
                let sent = self.client.publish_with_headers(subject, headers, payload);
                sent.await.expect("publish");
            } else {
                headers.insert("Nats-Batch-Commit", "1");
                self.publish(event, headers).await;
            }
        }
    }
}

impl Client for Nats {
    fn append(&mut self, event: &[u8], times: usize) {
        runtime().block_on(async {
            if times == 1 {
                return self.publish(event, HeaderMap::new()).await;
            }
            let mut left = times;
            while left > 0 {
                self.batch(event, left.min(PIECE)).await;
                left -= left.min(PIECE);
            }
        });
    }

    fn scan(&mut self) -> (u64, u64) {
        runtime().block_on(async {
            let config = pull::Config {
                ack_policy: AckPolicy::None,
                deliver_policy: DeliverPolicy::All,
                ..Default::default()
            };
            let info = self.stream.info().await.expect("info");
            let there = info.state.messages;
            let consumer = self.stream.create_consumer(config).await;
            let consumer = consumer.expect("a consumer");
            let messages = consumer.stream().max_messages_per_batch(10_000);
            let mut messages = messages.messages().await.expect("messages");
            let (mut events, mut bytes, mut sum) = (0, 0, 0);
            while events < there {
                let message = messages.next().await.expect("one more").expect("a message");
                events += 1;
                bytes += message.payload.len() as u64;
                sum += add(&message.payload);
            }
            assert!(sum > 0);
            (events, bytes)
        })
    }

    fn seek(&mut self, n: u64) {
        runtime().block_on(async {
            let message = self.stream.direct_get(n + 1).await;
            assert_eq!(message.expect("an event").payload.len(), 100);
        });
    }

    fn follow(&mut self, ready: &mut dyn FnMut(), each: &mut dyn FnMut(&[u8]) -> bool) {
        runtime().block_on(async {
            let config = pull::OrderedConfig {
                deliver_policy: DeliverPolicy::New,
                ..Default::default()
            };
            let consumer = self.stream.create_consumer(config).await;
            let consumer = consumer.expect("a consumer");
            let mut messages = consumer.messages().await.expect("messages");
            ready();
            while let Some(message) = messages.next().await {
                if !each(&message.expect("a message").payload) {
                    return;
                }
            }
        });
    }
}
