//! Mistakes in a document, with their places.

use crate::told::cut;
use std::fmt;

/// One step into a document.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    /// A field of a table.
    Field(String),
    /// An element of an array, from 0.
    Index(usize),
}

impl From<&str> for Key {
    fn from(field: &str) -> Self {
        Self::Field(field.into())
    }
}

impl From<usize> for Key {
    fn from(index: usize) -> Self {
        Self::Index(index)
    }
}

/// One mistake: its place in the document, and a message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The field.
    pub path: Vec<Key>,
    /// The message for a human reader.
    pub message: String,
}

impl Problem {
    /// Returns the field as text: `backend[1].size`.
    pub fn field(&self) -> String {
        let mut text = String::new();
        for key in &self.path {
            match key {
                Key::Field(field) if text.is_empty() => text.push_str(&cut(field)),
                Key::Field(field) => text = text + "." + &cut(field),
                Key::Index(index) => text = format!("{text}[{index}]"),
            }
        }
        text
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.field() {
            field if field.is_empty() => f.write_str(&self.message),
            field => write!(f, "{field}: {}", self.message),
        }
    }
}

/// A [`Problem`] with its place in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// The line, counted from 1.
    pub line: usize,
    /// The column, counted from 1.
    pub column: usize,
    /// The field, such as `backend[1].size`; empty if the text isn't TOML.
    pub field: String,
    /// The message for a human reader.
    pub message: String,
}

/// All mistakes of a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError {
    /// The name of the text, such as its file name.
    pub origin: String,
    /// At least one, in the order of their lines.
    pub mistakes: Vec<Mistake>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, m) in self.mistakes.iter().enumerate() {
            let newline = if n == 0 { "" } else { "\n" };
            let field = if m.field.is_empty() { String::new() } else { format!("{}: ", m.field) };
            write!(f, "{newline}{}:{}:{}: {field}{}", self.origin, m.line, m.column, m.message)?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}
