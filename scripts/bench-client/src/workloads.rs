//! The loops, and what they print.

use std::io::{Read, Write};
use std::sync::{Barrier, mpsc};
use std::time::{Duration, Instant};

use crate::Arguments;

/// Bytes of an event, without a newline.
const EVENT: usize = 100;

fn event() -> [u8; EVENT] {
    // Printable, and not so regular that a compressor would make it disappear.
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    [(); EVENT].map(|()| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        b' ' + 1 + (state % 94) as u8
    })
}

fn micros(times: &[u64], quantile: f64) -> f64 {
    let at = ((times.len() as f64 * quantile) as usize).min(times.len() - 1);
    times[at] as f64 / 1000.0
}

/// Prints a rate, and the median and 99th percentile of single operations.
fn report(operations: u64, events: u64, seconds: f64, times: &mut [u64]) {
    times.sort_unstable();
    println!(
        "{{\"operations\": {operations}, \"events\": {events}, \"seconds\": {seconds:.6}, \
         \"p50\": {:.2}, \"p99\": {:.2}}}",
        micros(times, 0.5),
        micros(times, 0.99),
    );
}

fn nanos(since: Instant) -> u64 {
    since.elapsed().as_nanos() as u64
}

/// `clients` writers on `streams` streams, each batch of `batch` events after batch, for some
/// seconds after a tenth of that untimed.
pub fn write(arguments: &Arguments) {
    let clients = arguments.number("clients") as usize;
    let streams = arguments.number("streams") as usize;
    let batch = arguments.number("batch") as usize;
    let long = Duration::from_millis(arguments.number("milliseconds"));
    let stream = arguments.text("stream");
    let (connected, warm) = (Barrier::new(clients), Barrier::new(clients));
    let writer = |i: usize| {
        let mut client = arguments.connect(&format!("{stream}-{}", i % streams));
        let event = event();
        connected.wait();
        let start = Instant::now();
        client.append(&event, batch);
        while start.elapsed() < long / 10 {
            client.append(&event, batch);
        }
        warm.wait();
        let (start, mut times) = (Instant::now(), Vec::new());
        while start.elapsed() < long {
            let before = Instant::now();
            client.append(&event, batch);
            times.push(nanos(before));
        }
        (times, start.elapsed())
    };
    let done: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..clients)
            .map(|i| scope.spawn(move || writer(i)))
            .collect();
        let join = |thread: std::thread::ScopedJoinHandle<_>| thread.join().expect("a writer");
        threads.into_iter().map(join).collect()
    });
    let seconds = done.iter().map(|(_, long)| long.as_secs_f64());
    let seconds = seconds.fold(0.0, f64::max);
    let mut times: Vec<u64> = done.into_iter().flat_map(|(times, _)| times).collect();
    let operations = times.len() as u64;
    report(operations, operations * batch as u64, seconds, &mut times);
}

/// `events` events in batches of `batch`.
pub fn fill(arguments: &Arguments) {
    let (events, batch) = (arguments.number("events"), arguments.number("batch"));
    let mut client = arguments.connect(arguments.text("stream"));
    let (event, mut times) = (event(), Vec::new());
    let start = Instant::now();
    let mut left = events;
    while left > 0 {
        let before = Instant::now();
        client.append(&event, left.min(batch) as usize);
        times.push(nanos(before));
        left -= left.min(batch);
    }
    let seconds = start.elapsed().as_secs_f64();
    report(times.len() as u64, events, seconds, &mut times);
}

/// All events of a stream.
pub fn scan(arguments: &Arguments) {
    let mut client = arguments.connect(arguments.text("stream"));
    let start = Instant::now();
    let (events, bytes) = client.scan();
    let seconds = start.elapsed().as_secs_f64();
    println!("{{\"events\": {events}, \"bytes\": {bytes}, \"seconds\": {seconds:.6}}}");
}

/// `times` single events of a stream of `events`, at places that are the same in every run. Each
/// is read once untimed, so that what is measured is the way there and not the disk.
pub fn seek(arguments: &Arguments) {
    let (events, times) = (arguments.number("events"), arguments.number("times"));
    let mut client = arguments.connect(arguments.text("stream"));
    let mut state = 1u64;
    let places: Vec<u64> = (0..times).map(|_| random(&mut state) % events).collect();
    places.iter().for_each(|n| client.seek(*n));
    let start = Instant::now();
    let timed = |n: &u64| {
        let before = Instant::now();
        client.seek(*n);
        nanos(before)
    };
    let mut taken: Vec<u64> = places.iter().map(timed).collect();
    report(times, times, start.elapsed().as_secs_f64(), &mut taken);
}

fn random(state: &mut u64) -> u64 {
    // SplitMix64.
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// One writer, one follower: from before the append, and from its return, to the delivery. The
/// second is negative where the follower had it first.
pub fn follow(arguments: &Arguments) {
    let times = arguments.number("times") as usize;
    let stream = arguments.text("stream");
    let mut writer = arguments.connect(stream);
    let mut follower = arguments.connect(stream);
    let mut event = event();
    // Some stores know a stream only by its first event.
    writer.append(&event, 1);
    let (ready, is_ready) = mpsc::channel();
    let (delivered, deliveries) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut tell_ready = || ready.send(()).expect("the writer waits");
        follower.follow(&mut tell_ready, &mut |event| {
            let number = std::str::from_utf8(&event[..8]).expect("a number");
            let number: usize = number.parse().expect("a number");
            delivered
                .send((number, Instant::now()))
                .expect("the writer waits");
            number + 1 < times
        });
    });
    is_ready.recv().expect("a follower");
    std::thread::sleep(Duration::from_millis(100));
    let (mut from_append, mut from_commit) = (Vec::new(), Vec::new());
    for number in 0..times {
        event[..8].copy_from_slice(format!("{number:08}").as_bytes());
        let before = Instant::now();
        writer.append(&event, 1);
        let after = Instant::now();
        let (delivered, at) = deliveries.recv().expect("a delivery");
        assert_eq!(delivered, number);
        from_append.push((at - before).as_nanos() as f64 / 1000.0);
        let late = at.saturating_duration_since(after).as_nanos() as f64;
        let early = after.saturating_duration_since(at).as_nanos() as f64;
        from_commit.push((late - early) / 1000.0);
        // The follower must be waiting again.
        std::thread::sleep(Duration::from_micros(500));
    }
    reader.join().expect("the follower");
    let quantiles = |times: &mut Vec<f64>| {
        times.sort_unstable_by(f64::total_cmp);
        [0.5, 0.99].map(|q| times[((times.len() as f64 * q) as usize).min(times.len() - 1)])
    };
    let ([p50, p99], [c50, c99]) = (quantiles(&mut from_append), quantiles(&mut from_commit));
    println!(
        "{{\"p50\": {p50:.2}, \"p99\": {p99:.2}, \"commit_p50\": {c50:.2}, \"commit_p99\": {c99:.2}}}"
    );
}

/// `times` directories in a directory.
pub fn mkdir(arguments: &Arguments) {
    let times = arguments.number("times");
    let root = arguments.text("address");
    let start = Instant::now();
    let timed = |i: u64| {
        let before = Instant::now();
        std::fs::create_dir(format!("{root}/{i:06}")).expect("mkdir");
        nanos(before)
    };
    let mut taken: Vec<u64> = (0..times).map(timed).collect();
    report(times, times, start.elapsed().as_secs_f64(), &mut taken);
}

/// `events` lines on standard output.
pub fn generate(arguments: &Arguments) {
    let line = [&event()[..], b"\n"].concat();
    let some = line.repeat(10_000);
    let mut left = arguments.number("events") as usize;
    let mut out = std::io::stdout().lock();
    while left > 0 {
        let now = left.min(10_000);
        out.write_all(&some[..now * line.len()]).expect("written");
        left -= now;
    }
}

/// Reads standard input to its end, and looks at every byte, as whoever reads a stream does.
pub fn sink() {
    let mut buffer = vec![0; 1 << 20];
    let (mut bytes, mut sum) = (0, 0u64);
    let mut input = std::io::stdin().lock();
    loop {
        match input.read(&mut buffer).expect("read") {
            0 => break,
            read => {
                bytes += read as u64;
                sum += add(&buffer[..read]);
            }
        }
    }
    println!("{{\"bytes\": {bytes}, \"sum\": {sum}}}");
}

/// The sum of the bytes.
pub fn add(bytes: &[u8]) -> u64 {
    bytes.iter().map(|&byte| u64::from(byte)).sum()
}
