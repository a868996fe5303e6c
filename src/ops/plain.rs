//! Text from outside, fit to be shown: a token's name, a node's words, an event's attributes.

use std::borrow::Cow;
use std::fmt::Write as _;

/// The text on one line, with what a terminal would obey written out: controls (ESC and line ends among them), marks that
/// turn the direction of writing, and signs without a width are shown as `\u001b`, which JSON reads back.
pub fn plain(text: &str) -> Cow<'_, str> {
    if !text.chars().any(obeyed) {
        return Cow::Borrowed(text);
    }
    let mut shown = String::with_capacity(text.len() + 16);
    for c in text.chars() {
        match obeyed(c) {
            // Writing to a String does not fail.
            true => drop(write!(shown, "\\u{:04x}", u32::from(c))),
            false => shown.push(c),
        }
    }
    Cow::Owned(shown)
}

/// [`plain`] for each line of a text that has several.
pub fn plain_lines(text: &str) -> Cow<'_, str> {
    if !text.chars().any(|c| c != '\n' && obeyed(c)) {
        return Cow::Borrowed(text);
    }
    Cow::Owned(text.split('\n').map(plain).collect::<Vec<_>>().join("\n"))
}

fn obeyed(c: char) -> bool {
    // None of them needs more than four digits.
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_obeys_is_written_out_and_the_rest_is_left() {
        assert_eq!(plain("Gold ünï 金 \\n"), "Gold ünï 金 \\n");
        assert_eq!(plain("\u{1b}[2Ja\nb\rc\u{202e}d\u{9b}e\u{200b}"), r"\u001b[2Ja\u000ab\u000dc\u202ed\u009be\u200b");
        assert_eq!(plain_lines("a\nb\u{7}\nc"), "a\nb\\u0007\nc");
    }
}
