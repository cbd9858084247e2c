//! Parsing of TOML text into a checked document.

use crate::document::Config;
use crate::error::{ConfigError, Key, Mistake, Problem};
use crate::told::{cut_quotations, suggest};
use std::ops::Range;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

impl Config {
    /// Reads and checks a document. Messages call the text `origin`.
    ///
    /// # Errors
    /// All mistakes of a readable document, or the first mistake of an unreadable text. Each mistake has its line and
    /// field.
    pub fn parse(origin: &str, text: &str) -> Result<Self, ConfigError> {
        let fail = |mistakes| ConfigError { origin: origin.into(), mistakes };
        let tree = DeTable::parse(text).map_err(|e| {
            let span = e.span().unwrap_or(0..0);
            let message = e.message().to_owned() + brackets(text, &span);
            fail(vec![mistake(text, String::new(), span, message)])
        })?;
        let config: Self = toml::from_str(text).map_err(|e| {
            let span = e.span().unwrap_or(0..0);
            let field = Problem { path: path_at(&tree, &span), message: String::new() }.field();
            let message = suggest(e.message()) + brackets(text, &span);
            fail(vec![mistake(text, field, span, message)])
        })?;
        let mut mistakes: Vec<Mistake> = config
            .check()
            .into_iter()
            .map(|p| mistake(text, p.field(), span_of(&tree, &p.path), p.message))
            .collect();
        if mistakes.is_empty() {
            return Ok(config);
        }
        mistakes.sort_by_key(|m| (m.line, m.column));
        Err(fail(mistakes))
    }

    /// Returns the document as TOML.
    ///
    /// # Errors
    /// An error if a value has no TOML form. The types of a document allow no such value.
    pub fn to_toml(&self) -> Result<String, toml::ser::Error> {
        toml::to_string_pretty(self)
    }
}

fn mistake(text: &str, field: String, span: Range<usize>, message: String) -> Mistake {
    let before = text.get(..span.start).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or_default().chars().count() + 1;
    Mistake { line, column, field, message: cut_quotations(&message) }
}

/// Returns a hint if the table header at `span` has the wrong kind of brackets, such as `[lun]` instead of `[[lun]]`.
fn brackets(text: &str, span: &Range<usize>) -> &'static str {
    let from = text.get(..span.start).and_then(|before| before.rfind('\n')).map_or(0, |at| at + 1);
    let line = text.get(from..).and_then(|rest| rest.lines().next()).unwrap_or_default();
    let head: String = line.split('#').next().unwrap_or_default().split_whitespace().collect();
    match head.as_str() {
        "[backend]" => ": a document can have several backends, so write [[backend]]",
        "[pool]" => ": a document can have several pools, so write [[pool]]",
        "[lun]" => ": a document can have several LUNs, so write [[lun]]",
        "[host]" => ": a document can have several hosts, so write [[host]]",
        "[subsystem]" => ": a document can have several subsystems, so write [[subsystem]]",
        "[[gateway]]" => ": a document has one gateway, so write [gateway]",
        _ => "",
    }
}

/// Returns the place of `path` in the text. For a missing field, returns the place of the table that lacks the field.
fn span_of(tree: &Spanned<DeTable<'_>>, path: &[Key]) -> Range<usize> {
    let mut span = 0..0;
    let mut table = Some(tree.get_ref());
    let mut array = None;
    for key in path {
        let value = match key {
            Key::Field(field) => {
                let entry = table.and_then(|t| t.iter().find(|(k, _)| k.get_ref() == field));
                let Some((key, value)) = entry else { break };
                span = key.span();
                value
            }
            Key::Index(index) => {
                let Some(value) = array.and_then(|a: &toml::de::DeArray<'_>| a.get(*index)) else { break };
                span = value.span();
                value
            }
        };
        (table, array) = match value.get_ref() {
            DeValue::Table(t) => (Some(t), None),
            DeValue::Array(a) => (None, Some(a)),
            _ => (None, None),
        };
    }
    span
}

/// Returns the deepest field whose key or value contains the place `span`.
fn path_at(tree: &Spanned<DeTable<'_>>, span: &Range<usize>) -> Vec<Key> {
    let mut path = Vec::new();
    in_table(tree.get_ref(), span, &mut path);
    path
}

fn holds(outer: &Range<usize>, inner: &Range<usize>) -> bool {
    outer.start <= inner.start && inner.end <= outer.end
}

fn in_table(table: &DeTable<'_>, span: &Range<usize>, path: &mut Vec<Key>) -> bool {
    for (key, value) in table.iter() {
        path.push(Key::Field(key.get_ref().to_string()));
        if holds(&key.span(), span) || in_value(value, span, path) {
            return true;
        }
        path.pop();
    }
    false
}

fn in_value(value: &Spanned<DeValue<'_>>, span: &Range<usize>, path: &mut Vec<Key>) -> bool {
    // The span of a table covers only its header, so search the contents first.
    let inside = match value.get_ref() {
        DeValue::Table(table) => in_table(table, span, path),
        DeValue::Array(array) => array.iter().enumerate().any(|(index, value)| {
            path.push(Key::Index(index));
            let found = in_value(value, span, path);
            if !found {
                path.pop();
            }
            found
        }),
        _ => false,
    };
    inside || holds(&value.span(), span)
}
