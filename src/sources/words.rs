//! Words of settings, and of contracts, as all sources read them.

/// Longest name of a token that is kept, in characters.
pub(super) const LONGEST_NAME: usize = 256;

/// The tokens that a setting lists. None means every token; the word `none` alone lists no token.
pub(super) fn listed(tokens: &[String]) -> Option<&[String]> {
    match tokens {
        [] => None,
        [only] if only == "none" => Some(&[]),
        listed => Some(listed),
    }
}

/// A token's own name without what Postgres cannot hold or what makes a line read as another one; none where nothing is
/// left of it.
pub(super) fn name_to_show(text: &str) -> Option<String> {
    let unfit = |c: &char| {
        c.is_control()
            || matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
    };
    let text: String = text.chars().filter(|c| !unfit(c)).take(LONGEST_NAME).collect();
    let text = text.trim();
    (!text.is_empty()).then(|| text.to_owned())
}
