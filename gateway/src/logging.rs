//! The log on standard error. The document sets the log's form, and an environment variable sets its filter.

use std::io::IsTerminal;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::prelude::*;
use trefoil_config::Log;

/// The environment variable that holds the log's filter, such as `warn` or `info,trefoil_control=debug`.
const VARIABLE: &str = "TREFOIL_LOG";
/// The sources of log lines. The target of each line begins with one of these names.
const SOURCES: [&str; 2] = ["trefoild", "trefoil_control"];

/// Starts the log. If the filter can't be parsed, logs a warning and uses the default filter, so that a typing error can't
/// silence the log.
pub fn start(form: Log) {
    let wanted = std::env::var_os(VARIABLE).unwrap_or_default();
    let (targets, mistake) = match targets(&wanted.to_string_lossy()) {
        Ok(targets) => (targets, None),
        Err(mistake) => (Targets::new().with_default(LevelFilter::INFO), Some(mistake)),
    };
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        // If this were on, a macro would report a failed write on the same standard error, and the macro would panic.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal());
    let registry = tracing_subscriber::registry();
    match form {
        Log::Text => registry.with(lines.with_target(false).with_filter(targets)).init(),
        Log::Json => registry.with(lines.json().with_filter(targets)).init(),
    }
    if let Some(mistake) = mistake {
        tracing::warn!("{VARIABLE}: {mistake}; the gateway logs at level `info`");
    }
}

/// Returns the filter that `text` describes, or a message about the part that can't be parsed.
fn targets(text: &str) -> Result<Targets, String> {
    let pieces: Vec<&str> = text.split(',').map(str::trim).filter(|piece| !piece.is_empty()).collect();
    for piece in &pieces {
        let parsed = piece.parse::<Targets>().map_err(|e| format!("`{piece}`: {e}"))?;
        if let Some((target, _)) = parsed.iter().find(|(target, _)| !is_source(target)) {
            return Err(format!(
                "`{target}` is neither a level (error, warn, info, debug, trace, off) nor a source ({})",
                SOURCES.join(", ")
            ));
        }
    }
    if pieces.is_empty() {
        return Ok(Targets::new().with_default(LevelFilter::INFO));
    }
    pieces.join(",").parse().map_err(|e| format!("`{text}`: {e}"))
}

/// Returns whether the target of a log line can begin with `target`.
fn is_source(target: &str) -> bool {
    let inside = |source: &str| target.strip_prefix(source).is_some_and(|rest| rest.starts_with("::"));
    SOURCES.iter().any(|source| source.starts_with(target) || inside(source))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_is_understood_or_its_mistake_named() {
        let control = "trefoil_control::engine";
        let at = |text: &str, target: &str| {
            let targets = targets(text).expect(text);
            [tracing::Level::WARN, tracing::Level::INFO, tracing::Level::DEBUG]
                .map(|level| targets.would_enable(target, &level))
        };
        for unset in ["", " , ", "info,", "INFO"] {
            assert_eq!(at(unset, control), [true, true, false], "{unset}");
        }
        assert_eq!(at("warn", "trefoild"), [true, false, false]);
        assert_eq!(at("warn, trefoil_control::engine=debug", control), [true; 3]);
        assert_eq!(at("warn,trefoil=debug", control), [true; 3]);
        assert_eq!(at("off", control), [false; 3]);
        for (text, named) in [
            ("inof", "`inof` is neither a level"),
            ("info,trefoil_contrl=debug", "`trefoil_contrl` is neither"),
            ("info,trefoil_controller", "`trefoil_controller` is neither"),
            ("trefoil_control=debgu", "`trefoil_control=debgu`: "),
            ("a=b=c", "`a=b=c`: "),
        ] {
            let mistake = targets(text).expect_err(text);
            assert!(mistake.contains(named), "{text}: {mistake}");
        }
    }
}
