//! Text as a terminal may show it: nothing in it moves the cursor, colours, or turns the direction.
//!
//! Messages and keys are anybody's bytes. What a subcommand prints goes through here when it goes
//! to a terminal, and stays as it is when it goes elsewhere ([`shown`]). Line feeds and tabs stay,
//! and so does a backslash: this is for a person, and not to be read back.
//!
//! | bytes | shown as |
//! |---|---|
//! | control characters below U+0020 | `\x1b` |
//! | other control, format and line characters, one of UTF-16 each | `\u202e` |
//! | bytes that are not UTF-8 | `\xff` |
//!
//! The second form is that of JSON, whose strings hold such characters as they are: an object on a
//! terminal is still JSON, with the same strings.
//!
//! Source: Unicode 17, general category Cf, and U+2028 and U+2029.

use std::borrow::Cow;
use std::fmt::Write;

/// Format characters that are no control characters, and the two separators of lines: first and
/// last of each range.
const FORMAT: [(char, char); 21] = [
    ('\u{ad}', '\u{ad}'),
    ('\u{600}', '\u{605}'),
    ('\u{61c}', '\u{61c}'),
    ('\u{6dd}', '\u{6dd}'),
    ('\u{70f}', '\u{70f}'),
    ('\u{890}', '\u{891}'),
    ('\u{8e2}', '\u{8e2}'),
    ('\u{180e}', '\u{180e}'),
    ('\u{200b}', '\u{200f}'),
    ('\u{2028}', '\u{202e}'),
    ('\u{2060}', '\u{2064}'),
    ('\u{2066}', '\u{206f}'),
    ('\u{feff}', '\u{feff}'),
    ('\u{fff9}', '\u{fffb}'),
    ('\u{110bd}', '\u{110bd}'),
    ('\u{110cd}', '\u{110cd}'),
    ('\u{13430}', '\u{1343f}'),
    ('\u{1bca0}', '\u{1bca3}'),
    ('\u{1d173}', '\u{1d17a}'),
    ('\u{e0001}', '\u{e0001}'),
    ('\u{e0020}', '\u{e007f}'),
];

/// The bytes to be written: on a terminal visible ones, elsewhere `bytes` as they are.
pub fn shown(bytes: &[u8], is_terminal: bool) -> Cow<'_, [u8]> {
    if is_terminal {
        Cow::Owned(visible(bytes).into_bytes())
    } else {
        Cow::Borrowed(bytes)
    }
}

/// Text without a character that a terminal would act on, other than line feed and tab.
pub fn visible(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        for c in chunk.valid().chars() {
            push(&mut text, c);
        }
        for byte in chunk.invalid() {
            // Writing to a string does not fail.
            _ = write!(text, "\\x{byte:02x}");
        }
    }
    text
}

fn push(text: &mut String, c: char) {
    if c == '\n' || c == '\t' || !is_hidden(c) {
        text.push(c);
    } else if c < ' ' {
        _ = write!(text, "\\x{:02x}", u32::from(c));
    } else {
        for unit in c.encode_utf16(&mut [0; 2]) {
            _ = write!(text, "\\u{unit:04x}");
        }
    }
}

/// Whether a terminal may act on a character, or shows nothing for it.
fn is_hidden(c: char) -> bool {
    let is_format = |range: &(char, char)| (range.0..=range.1).contains(&c);
    c.is_control() || (!c.is_ascii() && FORMAT.iter().any(is_format))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_a_terminal_would_act_on_is_shown() {
        for (bytes, expected) in [
            (
                &b"plain \\ text\n\tof two lines"[..],
                "plain \\ text\n\tof two lines",
            ),
            (
                b"\x1b[2J\x1b]0;title\x07\r\0",
                r"\x1b[2J\x1b]0;title\x07\x0d\x00",
            ),
            (b"\x7f", r"\u007f"),
            ("\u{9b}31m\u{85}".as_bytes(), r"\u009b31m\u0085"),
            ("abc\u{202e}cba\u{2066}".as_bytes(), r"abc\u202ecba\u2066"),
            (
                "\u{feff}a\u{200b}\u{2028}".as_bytes(),
                r"\ufeffa\u200b\u2028",
            ),
            ("\u{e0041}".as_bytes(), r"\udb40\udc41"),
            (b"\xff\xc3(\x9b", r"\xff\xc3(\x9b"),
            (
                "日本 \u{5d0}\u{5d1} e\u{301} 🦀".as_bytes(),
                "日本 \u{5d0}\u{5d1} e\u{301} 🦀",
            ),
        ] {
            assert_eq!(visible(bytes), expected);
        }
        assert_eq!(&*shown(b"\x1b", true), br"\x1b");
        assert_eq!(&*shown(b"\x1b\xff", false), b"\x1b\xff");
        assert!(FORMAT.is_sorted());
    }

    proptest! {
        #[test]
        fn nothing_hidden_is_left_and_json_stays_the_same(
            bytes in proptest::collection::vec(any::<u8>(), 0..60),
            value in any::<String>(),
        ) {
            let text = visible(&bytes);
            prop_assert!(!text.chars().any(|c| is_hidden(c) && c != '\n' && c != '\t'));
            let json = serde_json::to_string(&value).expect("JSON");
            let back: String = serde_json::from_str(&visible(json.as_bytes())).expect("JSON");
            prop_assert_eq!(back, value);
        }
    }
}
