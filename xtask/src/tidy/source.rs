//! A Rust file in the form that the rules need: comments and literals are blanked out, and the lines of tests are marked. This
//! module is not a parser. It expects code that rustfmt and the compiler accept.

use std::path::{Path, PathBuf};

/// A Rust file and the results of one pass over its text.
#[derive(Clone, Debug)]
pub struct Source {
    /// The path from the repo's root.
    pub path: PathBuf,
    /// The text of the file.
    pub text: String,
    /// `text` with comments, strings and characters replaced by spaces. The length and the lines stay the same.
    pub code: String,
    /// For each line, `true` if the line belongs to an item under `#[cfg(test)]` or a similar attribute.
    pub in_test: Vec<bool>,
}

impl Source {
    /// Creates the value for a file at `path` with text `text`.
    pub fn new(path: &Path, text: &str) -> Self {
        let code = blank(text);
        let in_test = test_lines(text, &code);
        Self { path: path.to_path_buf(), text: text.to_owned(), code, in_test }
    }

    /// Returns the code. The lines of tests are empty.
    pub fn shipped_code(&self) -> String {
        let lines = self.code.lines().zip(&self.in_test);
        lines.flat_map(|(line, test)| [if *test { "" } else { line }, "\n"]).collect()
    }

    /// Returns the lines of code outside tests, each with its number, counted from 1.
    pub fn shipped_lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let lines = self.code.lines().zip(&self.in_test).enumerate();
        lines.filter(|(_, (_, test))| !**test).map(|(n, (line, _))| (n + 1, line))
    }
}

/// Returns whether `line` contains `word` without a letter, digit or underscore directly before or after it.
pub fn has_word(line: &str, word: &str) -> bool {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(part) && !line[at + word.len()..].starts_with(part))
}

/// Replaces comments, strings and character literals by spaces, byte for byte. Keeps line ends.
fn blank(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = token_end(bytes, at);
        match end {
            Some(end) => {
                for b in &mut out[at..end] {
                    if *b != b'\n' {
                        *b = b' ';
                    }
                }
                at = end;
            }
            None => at += 1,
        }
    }
    // The code above replaced only whole tokens, so it cut no character in two.
    String::from_utf8_lossy(&out).into_owned()
}

/// Returns the end of the comment or literal that starts at `at`, or `None` if there is none.
fn token_end(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = &bytes[at..];
    let word_before = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    match rest {
        [b'/', b'/', ..] => Some(at + rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len())),
        [b'/', b'*', ..] => Some(at + block_comment_len(rest)),
        [b'"', ..] => Some(at + quoted_len(rest, b'"')),
        [b'r', ..] if !word_before => raw_string_len(&rest[1..]).map(|n| at + 1 + n),
        [b'b', b'r', ..] if !word_before => raw_string_len(&rest[2..]).map(|n| at + 2 + n),
        // A character, not a lifetime: 'x' or '\n'.
        [b'\'', b'\\', ..] => Some(at + quoted_len(rest, b'\'')),
        [b'\'', ..] => char_len(rest).map(|n| at + n),
        _ => None,
    }
}

fn block_comment_len(rest: &[u8]) -> usize {
    let mut depth = 0;
    let mut at = 0;
    while at < rest.len() {
        match &rest[at..] {
            [b'/', b'*', ..] => (depth, at) = (depth + 1, at + 2),
            [b'*', b'/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

fn quoted_len(rest: &[u8], quote: u8) -> usize {
    let mut at = 1;
    while at < rest.len() && rest[at] != quote {
        at += if rest[at] == b'\\' { 2 } else { 1 };
    }
    (at + 1).min(rest.len())
}

/// Returns the length of `#"..."#` with any number of hashes.
fn raw_string_len(rest: &[u8]) -> Option<usize> {
    let hashes = rest.iter().take_while(|b| **b == b'#').count();
    if rest.get(hashes) != Some(&b'"') {
        return None;
    }
    let mut close = vec![b'"'];
    close.resize(1 + hashes, b'#');
    let body = &rest[hashes + 1..];
    let end = body.windows(close.len()).position(|w| w == close).map_or(body.len(), |n| n + close.len());
    Some(hashes + 1 + end)
}

/// Returns the length of a one-character literal such as 'x' or 'é', or `None` for a lifetime.
fn char_len(rest: &[u8]) -> Option<usize> {
    let text = std::str::from_utf8(&rest[1..rest.len().min(6)])
        .or_else(|e| std::str::from_utf8(&rest[1..1 + e.valid_up_to()]));
    let c = text.ok()?.chars().next()?;
    (rest.get(1 + c.len_utf8()) == Some(&b'\'')).then_some(2 + c.len_utf8())
}

/// Marks the lines of each item under an attribute for tests, including the attribute itself.
fn test_lines(text: &str, code: &str) -> Vec<bool> {
    let mut marks = vec![false; text.lines().count()];
    let mut from = 0;
    while let Some(found) = code[from..].find("#[") {
        let start = from + found;
        let attribute_end = start + balanced_len(&code[start + 1..]) + 1;
        from = attribute_end;
        if !is_for_tests(&code[start..attribute_end]) {
            continue;
        }
        let end = attribute_end + item_len(&code[attribute_end..]);
        let (first, last) = (line_of(code, start), line_of(code, end.saturating_sub(1)));
        for mark in marks.iter_mut().take(last + 1).skip(first) {
            *mark = true;
        }
        from = end;
    }
    marks
}

/// Returns whether the attribute marks tests. `#[test]`, `#[cfg(test)]`, `#[cfg(all(test, not(loom)))]` and
/// `#[cfg(all(loom, test))]` do. `#[cfg(not(test))]` does not.
fn is_for_tests(attribute: &str) -> bool {
    let tight: String = attribute.split_whitespace().collect();
    tight == "#[test]"
        || (tight.starts_with("#[cfg(") && has_word(&tight, "test") && !tight.contains("not(test"))
        || tight == "#[cfg(loom)]"
}

/// Returns the length of the item at the start of `code`. The item ends at its closing brace, or at a semicolon that comes before
/// any brace.
fn item_len(code: &str) -> usize {
    let mut at = 0;
    while let Some(c) = code[at..].chars().next() {
        match c {
            ';' => return at + 1,
            '{' => return at + balanced_len(&code[at..]),
            '(' | '[' => at += balanced_len(&code[at..]),
            _ => at += c.len_utf8(),
        }
    }
    code.len()
}

/// Returns the length of the bracketed text at the start of `code`.
pub fn balanced_len(code: &str) -> usize {
    let mut depth = 0_i32;
    for (at, c) in code.char_indices() {
        match c {
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at + c.len_utf8();
        }
    }
    code.len()
}

fn line_of(code: &str, at: usize) -> usize {
    code.as_bytes()[..at].iter().filter(|b| **b == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_literals_are_blanked() {
        let text = "let a = \"un//safe\"; // unsafe\nlet b = 'u'; /* x /* y */ z */ let c = r#\"q\"un\"#; fn f<'a>() {}\n";
        let code = blank(text);
        assert_eq!(code.len(), text.len());
        assert!(!code.contains("un") && !code.contains('z') && !code.contains("'u'"), "{code}");
        assert!(code.contains("let c =") && code.contains("fn f<'a>() {}"), "{code}");
    }

    #[test]
    fn test_items_are_known() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\nfn c() {}\n#[cfg(not(test))]\nfn d() {}\n";
        let source = Source::new(Path::new("x.rs"), text);
        let shipped: Vec<usize> = source.shipped_lines().map(|(n, _)| n).collect();
        assert_eq!(shipped, [1, 6, 7, 8]);
    }

    #[test]
    fn words_are_whole() {
        assert!(has_word("x = unsafe { y }", "unsafe"));
        assert!(!has_word("unsafe_code", "unsafe"));
    }
}
