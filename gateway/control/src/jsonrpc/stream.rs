//! JSON values on a byte stream that has no framing.
//!
//! The end of a value is found by counting brackets outside strings. So the parser runs only once for each value, even if the
//! value arrives in many pieces. Length and depth are checked before a value is parsed.

use serde_json::value::RawValue;

/// The longest request, in bytes. A batch of 4,096 LUNs at 400 bytes each fits.
pub const MAX_VALUE_BYTES: usize = 4 << 20;
/// The deepest nesting. serde_json itself stops at 128.
pub const MAX_DEPTH: usize = 64;

/// A reason why a stream can't be read any further: after such an error, the start of the next value is unknown.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamError {
    /// A value is longer than [`MAX_VALUE_BYTES`].
    #[error("the request is longer than {MAX_VALUE_BYTES} bytes")]
    Oversize,
    /// Brackets nest deeper than [`MAX_DEPTH`].
    #[error("the request nests deeper than {MAX_DEPTH} levels")]
    Depth,
    /// A request starts with something other than an object or an array.
    #[error("the request starts with `{}`, and not with an object or a list", char::from(*.0).escape_default())]
    Start(u8),
    /// The request is not JSON.
    #[error("the request is not JSON: {0}")]
    Syntax(String),
}

/// Splits a stream into values.
#[derive(Debug, Default)]
pub struct Splitter {
    buffer: Vec<u8>,
    /// The number of bytes of `buffer` that were scanned.
    seen: usize,
    depth: usize,
    in_string: bool,
    escaped: bool,
}

impl Splitter {
    /// Appends bytes from the stream.
    ///
    /// # Errors
    /// [`StreamError::Oversize`] if more than twice the longest request is buffered.
    pub fn feed(&mut self, bytes: &[u8]) -> Result<(), StreamError> {
        if self.buffer.len() + bytes.len() > 2 * MAX_VALUE_BYTES {
            return Err(StreamError::Oversize);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// Returns whether the buffer holds the start of a value without its end.
    pub fn is_partial(&self) -> bool {
        self.depth > 0
    }

    /// Returns the next whole value, or `None` if more bytes are needed.
    ///
    /// # Errors
    /// [`StreamError`]. The stream can't be used after an error.
    pub fn next_value(&mut self) -> Result<Option<Box<RawValue>>, StreamError> {
        if self.depth == 0 {
            let space = self.buffer.iter().take_while(|b| b.is_ascii_whitespace()).count();
            self.buffer.drain(..space);
            match self.buffer.first() {
                None => return Ok(None),
                Some(b'{' | b'[') => {}
                Some(&other) => return Err(StreamError::Start(other)),
            }
        }
        let Some(end) = self.scan()? else {
            let within = self.buffer.len() <= MAX_VALUE_BYTES;
            return if within { Ok(None) } else { Err(StreamError::Oversize) };
        };
        if end > MAX_VALUE_BYTES {
            return Err(StreamError::Oversize);
        }
        let value = self.buffer.get(..end).map(serde_json::from_slice);
        self.buffer.drain(..end);
        self.seen = 0;
        value.transpose().map_err(|e| StreamError::Syntax(e.to_string()))
    }

    /// Scans the buffer from `seen` on. Returns the position of the value's end, if the buffer holds it.
    fn scan(&mut self) -> Result<Option<usize>, StreamError> {
        for (at, &byte) in self.buffer.iter().enumerate().skip(self.seen) {
            if self.in_string {
                match byte {
                    _ if self.escaped => self.escaped = false,
                    b'\\' => self.escaped = true,
                    b'"' => self.in_string = false,
                    _ => {}
                }
                continue;
            }
            match byte {
                b'"' => self.in_string = true,
                b'{' | b'[' if self.depth == MAX_DEPTH => return Err(StreamError::Depth),
                b'{' | b'[' => self.depth += 1,
                b'}' | b']' => {
                    self.depth -= 1;
                    if self.depth == 0 {
                        return Ok(Some(at + 1));
                    }
                }
                _ => {}
            }
        }
        self.seen = self.buffer.len();
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    fn split(chunks: &[&[u8]]) -> Result<Vec<Value>, StreamError> {
        let (mut splitter, mut values) = (Splitter::default(), Vec::new());
        for chunk in chunks {
            splitter.feed(chunk)?;
            while let Some(value) = splitter.next_value()? {
                values.push(serde_json::from_str(value.get()).expect("JSON"));
            }
        }
        Ok(values)
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            r#"[a-z"\\{}\[\]é\n]{0,8}"#.prop_map(Value::from),
        ];
        leaf.prop_recursive(4, 32, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::btree_map(r#"["\\a{]{0,4}"#, inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn values_come_whole_however_they_are_cut(
            values in proptest::collection::vec(any_json().prop_map(|v| json!([v])), 1..5),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..8),
            pretty in any::<bool>(),
        ) {
            let text: String = values
                .iter()
                .map(|v| if pretty { format!("{v:#}\n") } else { v.to_string() })
                .collect();
            let mut at: Vec<usize> = cuts.iter().map(|i| i.index(text.len())).collect();
            at.extend([0, text.len()]);
            at.sort_unstable();
            let chunks: Vec<&[u8]> = at.windows(2).map(|w| &text.as_bytes()[w[0]..w[1]]).collect();
            prop_assert_eq!(split(&chunks), Ok(values));
        }

        #[test]
        fn garbage_never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = split(&[&bytes]);
        }

        #[test]
        fn brackets_never_panic(text in r#"[\[\]{}"\\,:1 ]{0,60}"#) {
            let _ = split(&[text.as_bytes()]);
        }
    }

    #[test]
    fn what_is_no_request_ends_the_stream() {
        assert_eq!(split(&[b" 17"]), Err(StreamError::Start(b'1')));
        assert_eq!(split(&[b"]"]), Err(StreamError::Start(b']')));
        assert!(matches!(split(&[b"{]"]), Err(StreamError::Syntax(_))));
        assert!(matches!(split(&[b"{\"a\" 1}"]), Err(StreamError::Syntax(_))));
    }

    #[test]
    fn depth_and_length_are_bounded() {
        assert_eq!(split(&["[".repeat(MAX_DEPTH + 1).as_bytes()]), Err(StreamError::Depth));
        let deep = "[".repeat(MAX_DEPTH) + &"]".repeat(MAX_DEPTH);
        assert_eq!(split(&[deep.as_bytes()]).map(|v| v.len()), Ok(1));
        let mut splitter = Splitter::default();
        splitter.feed(b"[\"").expect("room");
        splitter.feed(&vec![b'a'; MAX_VALUE_BYTES]).expect("room");
        assert_eq!(splitter.next_value().err(), Some(StreamError::Oversize));
    }
}
