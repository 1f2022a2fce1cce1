//! Untrusted text on a terminal: text of a plugin or an answer must not move the cursor, change colours, hide text
//! or turn its direction. Escaped where it is printed, once; results and logs keep the text as it is.

use std::fmt::Write;

/// Characters that act on a terminal instead of being shown: controls (C0, DEL, C1), line and paragraph separators, marks
/// and overrides of direction (UAX #9), and characters of no width that hide differences between texts.
fn acts(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

/// One line of text, as it may be printed: `\u{1b}` in place of ESC.
#[must_use]
pub fn line(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if acts(c) { escaped.extend(c.escape_default()) } else { escaped.push(c) }
    }
    escaped
}

/// JSON text with the same value, as it may be printed: JSON's own escapes, which can stand in strings only, and so do
/// these characters. Line ends and blanks between the values stay.
#[must_use]
pub fn json(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for c in text.chars() {
        if acts(c) && c != '\n' {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(escaped, "\\u{unit:04x}");
            }
        } else {
            escaped.push(c);
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str = "a\x1b[31mred\x1b]0;title\x07\u{9b}2J\r\n\t\x08\x7f\u{202e}txt.exe\u{2066}\u{200f}\u{2028}\u{feff}\u{200b}\u{e0041}é語";

    #[test]
    fn nothing_acts_on_the_terminal_and_the_rest_stays() {
        let escaped = line(HOSTILE);
        assert!(!escaped.chars().any(acts), "{escaped}");
        assert!(escaped.starts_with("a\\u{1b}[31mred\\u{1b}]0;title") && escaped.ends_with("é語"), "{escaped}");
        assert_eq!(line("10 ms — ok"), "10 ms — ok");
    }

    #[test]
    fn json_keeps_its_value() {
        let value = serde_json::json!({"said": HOSTILE, HOSTILE: [1]});
        for text in [value.to_string(), serde_json::to_string_pretty(&value).expect("JSON")] {
            let escaped = json(&text);
            assert!(!escaped.chars().any(|c| acts(c) && c != '\n'), "{escaped}");
            assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).expect("JSON"), value);
        }
    }
}
