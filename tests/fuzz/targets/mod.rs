//! The fuzz targets. Each takes any bytes, makes of them what it needs, and panics where a property
//! does not hold. `tests/it/fuzz.rs` runs them over the corpus, `scripts/fuzz` under libFuzzer.
//!
//! What is expected is worked out here anew, from the documents and not from the code: the same
//! mistake would have to be made twice.

pub mod batch;
pub mod log;
mod memory;
mod model;
pub mod page;
mod script;
pub mod tree;
pub mod walk;

/// A target.
pub type Run = fn(&[u8]);

/// All of them, by the names of their corpora.
pub const TARGETS: [(&str, Run); 5] = [
    ("page", page::run),
    ("walk", walk::run),
    ("batch", batch::run),
    ("log", log::run),
    ("tree", tree::run),
];

/// Takes the fuzzer's bytes apart. When they have run out there are zeros.
struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// At most `len` bytes.
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len.min(self.0.len()));
        self.0 = rest;
        taken
    }

    fn array<const N: usize>(&mut self) -> [u8; N] {
        let mut array = [0; N];
        let taken = self.take(N);
        array[..taken.len()].copy_from_slice(taken);
        array
    }

    fn byte(&mut self) -> u8 {
        self.array::<1>()[0]
    }

    fn below(&mut self, n: usize) -> usize {
        usize::from(self.byte()) % n
    }

    fn u16(&mut self) -> usize {
        u16::from_le_bytes(self.array()).into()
    }

    fn u64(&mut self) -> u64 {
        u64::from_le_bytes(self.array())
    }

    /// As many bytes as a byte says.
    fn bytes(&mut self) -> &'a [u8] {
        let len = self.byte();
        self.take(len.into())
    }
}
