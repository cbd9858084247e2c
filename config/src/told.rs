//! Quotations of input in messages. Quotations are cut and have no control characters. For an unknown name, a message also
//! suggests the most similar known name.

use std::borrow::Cow;

/// The longest text that a message quotes whole, in bytes: the length of an NQN.
const MAX_QUOTED_BYTES: usize = trefoil_wire::fabrics::Nqn::MAX_LEN;
/// The number of characters that a message quotes of a longer text.
const CUT_CHARS: usize = 64;
/// The longest line of a message, in characters.
const MAX_LINE_CHARS: usize = 4096;

/// Returns `text` for use in a message. Escapes control characters, and cuts a text that is longer than an NQN.
pub fn cut(text: &str) -> Cow<'_, str> {
    let is_long = text.len() > MAX_QUOTED_BYTES;
    if !is_long && !text.contains(char::is_control) {
        return text.into();
    }
    let kept = text.chars().take(if is_long { CUT_CHARS } else { text.len() });
    let mut cut: String = kept.flat_map(escaped).collect();
    if is_long {
        cut.push('…');
    }
    cut.into()
}

/// Returns `message` with each quotation between `` ` `` or `"` replaced by its [`cut`] form. A line end in a quotation
/// belongs to the quoted text and is escaped. A line end outside a quotation belongs to the message and stays.
pub fn cut_quotations(message: &str) -> String {
    let mut told = String::with_capacity(message.len().min(MAX_LINE_CHARS));
    let mut rest = message;
    while let Some(at) = rest.find(['`', '"']) {
        let (before, from) = rest.split_at(at);
        let quote = if from.starts_with('`') { '`' } else { '"' };
        let Some((quoted, after)) = from.get(1..).and_then(|inside| inside.split_once(quote)) else { break };
        told += before;
        told.push(quote);
        told += &cut(quoted);
        told.push(quote);
        rest = after;
    }
    told += rest;
    let lines = told.split('\n').map(|line| {
        let mut kept: String = line.chars().take(MAX_LINE_CHARS).flat_map(escaped).collect();
        if line.chars().nth(MAX_LINE_CHARS).is_some() {
            kept.push('…');
        }
        kept
    });
    lines.collect::<Vec<_>>().join("\n")
}

fn escaped(c: char) -> impl Iterator<Item = char> {
    let (plain, escape) = if c.is_control() { (None, Some(c.escape_default())) } else { (Some(c), None) };
    plain.into_iter().chain(escape.into_iter().flatten())
}

/// Adds the nearest known name to `message`, if it is serde's message about an unknown field or variant.
pub fn suggest(message: &str) -> String {
    let mut parts = message.split('`');
    let (Some(kind @ ("unknown field " | "unknown variant ")), Some(given)) = (parts.next(), parts.next())
    else {
        return message.into();
    };
    let known = parts.skip(1).step_by(2);
    match (nearest(given, known), message.split_once("`, ")) {
        (Some(near), Some((_, rest))) => format!("{kind}`{given}`, did you mean `{near}`? {rest}"),
        _ => message.into(),
    }
}

/// Returns the known name that is most similar to `given`, if `given` is probably a misspelling or a part of it.
fn nearest<'a>(given: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let len = given.chars().count();
    if len > CUT_CHARS {
        return None;
    }
    let is_part = |name: &str| len >= 3 && (name.starts_with(given) || given.starts_with(name));
    let near = known.filter_map(|name| {
        let steps = distance(given, name);
        (steps <= (len / 3).max(1) || is_part(name)).then_some((steps, name))
    });
    near.min_by_key(|(steps, _)| *steps).map(|(_, name)| name)
}

/// Counts the characters that have to be inserted, removed or replaced to turn one text into the other (Levenshtein).
fn distance(from: &str, to: &str) -> usize {
    let to: Vec<char> = to.chars().collect();
    let mut row: Vec<usize> = (0..=to.len()).collect();
    for (n, a) in from.chars().enumerate() {
        let mut diagonal = n;
        let mut left = n + 1;
        for (b, above) in to.iter().zip(row.iter_mut().skip(1)) {
            let replaced = diagonal + usize::from(a != *b);
            diagonal = *above;
            left = replaced.min(left + 1).min(diagonal + 1);
            *above = left;
        }
        if let Some(first) = row.first_mut() {
            *first = n + 1;
        }
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_in_messages() {
        let nqn = "n".repeat(MAX_QUOTED_BYTES);
        assert_eq!(cut(&nqn), nqn);
        assert_eq!(cut(&format!("é{nqn}")), format!("é{}…", &nqn[..CUT_CHARS - 1]));
        assert_eq!(cut("a\n\x1b[31mb\0"), "a\\n\\u{1b}[31mb\\u{0}");
        let long = "x".repeat(100_000);
        let told = cut_quotations(&format!("there is no pool `{long}`, nor \"{long}\":\n  `a\nb`"));
        let short = "x".repeat(CUT_CHARS);
        assert_eq!(told, format!("there is no pool `{short}…`, nor \"{short}…\":\n  `a\\nb`"));
        assert_eq!(cut_quotations(&told), told, "again changes nothing");
        // A text of any kind is cut when it is long enough.
        assert!(
            cut_quotations(&format!("no `{}`", "`x".repeat(50_000))).chars().count() <= MAX_LINE_CHARS + 1
        );
    }

    #[test]
    fn the_nearest_name_is_suggested() {
        let fields = ["hosts", "spin_us", "max_hosts", "max_qpairs", "memory_limit"];
        let near = |given: &str| nearest(given, fields.into_iter());
        for (given, name) in [
            ("hostz", "hosts"),
            ("host", "hosts"),
            ("maxhosts", "max_hosts"),
            ("max_host", "max_hosts"),
            ("spin", "spin_us"),
            ("memory_limit_bytes", "memory_limit"),
        ] {
            assert_eq!(near(given), Some(name), "{given}");
        }
        assert_eq!(["", "no", "colour", "nqn"].map(near), [None; 4]);
        assert_eq!(["kitten", "", "abc"].map(|from| distance(from, "sitting")), [3, 7, 7]);
        let serde = "unknown field `hostz`, expected one of `nqn`, `hosts`, `serial`";
        let told = "unknown field `hostz`, did you mean `hosts`? expected one of `nqn`, `hosts`, `serial`";
        assert_eq!(suggest(serde), told);
        for other in ["missing field `size`", "unknown field `x`, there are no fields", "unknown field"] {
            assert_eq!(suggest(other), other);
        }
    }
}
