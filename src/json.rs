//! Events as JSON (RFC 8259): one object and line each, in pieces. Pure: bytes in, text out.
//!
//! ```text
//! {"index":7,"time":1764400000.123456789,"event":"..."}
//! {"index":8,"time":1764400000.123456789,"base64":"..."}     where it is not UTF-8
//! ```

/// Pieces of an event that is no text are to be multiples of this, but for the last.
pub const TRIPLE: usize = 3;

/// The beginning of an object, up to the event.
pub fn begin(index: u64, time: u64, text: bool, out: &mut Vec<u8>) {
    let (seconds, nanos) = (time / 1_000_000_000, time % 1_000_000_000);
    let name = if text { "event" } else { "base64" };
    let begin = format!("{{\"index\":{index},\"time\":{seconds}.{nanos:09},\"{name}\":\"");
    out.extend_from_slice(begin.as_bytes());
}

/// A piece of the event.
pub fn piece(bytes: &[u8], text: bool, out: &mut Vec<u8>) {
    if text { escape(bytes, out) } else { base64(bytes, out) }
}

/// The end of an object.
pub fn end(out: &mut Vec<u8>) {
    out.extend_from_slice(b"\"}\n");
}

/// How many of these bytes are whole characters, when all are but for one that the end cuts. None
/// when they are no text.
pub fn text(bytes: &[u8]) -> Option<usize> {
    match str::from_utf8(bytes) {
        Ok(text) => Some(text.len()),
        Err(error) => error.error_len().is_none().then_some(error.valid_up_to()),
    }
}

/// What stands between the quotes for bytes of a text, which may be cut within a character.
fn escape(bytes: &[u8], out: &mut Vec<u8>) {
    for byte in bytes {
        match byte {
            b'"' | b'\\' => out.extend_from_slice(&[b'\\', *byte]),
            b'\n' => out.extend_from_slice(b"\\n"),
            b'\t' => out.extend_from_slice(b"\\t"),
            0..=0x1f => out.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
            _ => out.push(*byte),
        }
    }
}

/// RFC 4648, section 4.
fn base64(bytes: &[u8], out: &mut Vec<u8>) {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for triple in bytes.chunks(TRIPLE) {
        let byte = |n: usize| u32::from(triple.get(n).copied().unwrap_or(0));
        let bits = byte(0) << 16 | byte(1) << 8 | byte(2);
        let digit = |n: usize| match n <= triple.len() {
            true => DIGITS[(bits >> (18 - 6 * n) & 63) as usize],
            false => b'=',
        };
        out.extend((0..4).map(digit));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::Value;

    /// An object made of pieces of this size, after the two passes that a long event takes.
    fn object(event: &[u8], size: usize) -> (bool, Vec<u8>) {
        let (mut at, mut is_text) = (0, true);
        while is_text && at < event.len() {
            let piece = &event[at..event.len().min(at + size.max(4))];
            match text(piece) {
                Some(len) if len > 0 => at += len,
                _ => is_text = false,
            }
        }
        let mut out = Vec::new();
        begin(7, 1_764_400_000_000_000_009, is_text, &mut out);
        for bytes in event.chunks(TRIPLE * size) {
            piece(bytes, is_text, &mut out);
        }
        end(&mut out);
        (is_text, out)
    }

    fn decode(digits: &str) -> Vec<u8> {
        const DIGITS: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let value = |digit: char| DIGITS.find(digit).unwrap_or(0) as u32;
        let digits: Vec<char> = digits.chars().collect();
        let mut bytes = Vec::new();
        for four in digits.chunks(4) {
            let bits = four.iter().fold(0, |bits, digit| bits << 6 | value(*digit));
            let padding = four.iter().filter(|digit| **digit == '=').count();
            bytes.extend_from_slice(&bits.to_be_bytes()[1..4 - padding]);
        }
        bytes
    }

    /// What is read back is what it was, whatever the pieces.
    fn holds(event: &[u8], size: usize) {
        let (is_text, line) = object(event, size);
        assert_eq!(is_text, str::from_utf8(event).is_ok());
        let line = String::from_utf8(line).unwrap();
        assert_eq!(line.find('\n'), Some(line.len() - 1));
        assert!(line.starts_with("{\"index\":7,\"time\":1764400000.000000009,"));
        let value: Value = serde_json::from_str(&line).unwrap();
        let read = match is_text {
            true => value["event"].as_str().unwrap().as_bytes().to_vec(),
            false => decode(value["base64"].as_str().unwrap()),
        };
        assert_eq!(read, event);
        assert_eq!(value.as_object().unwrap().len(), 3);
    }

    #[test]
    fn events_of_each_kind() {
        holds(b"", 1);
        for byte in 0..=255 {
            for event in [vec![byte], vec![b'a', byte], vec![byte; 5], vec![0xf0, 0x9f, byte]] {
                holds(&event, 1);
            }
        }
        for base64 in ["Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"] {
            let mut out = Vec::new();
            super::base64(&decode(base64), &mut out);
            assert_eq!(out, base64.as_bytes());
        }
    }

    proptest! {
        #[test]
        fn any_event_is_read_back(event: Vec<u8>, size in 1usize..9) {
            holds(&event, size);
        }

        #[test]
        fn any_text_is_read_back(event: String, size in 1usize..9) {
            holds(event.as_bytes(), size);
        }
    }
}
