//! The grammar of xl.cfg(5): settings, one per line or parted by `;`, and lists.

use super::lexer::{Lexer, Token};
use super::{Diag, Kind, Pos, Setting, Value};
use std::sync::Arc;

/// Lists deeper than this have no meaning to any key.
const MAX_DEPTH: usize = 16;

/// Parse a whole text.
pub fn parse(source: &Arc<str>, text: &str) -> Result<Vec<Setting>, Diag> {
    let mut parser = Parser { lexer: Lexer::new(source, text) };
    let mut settings = Vec::new();
    loop {
        match parser.lexer.next()? {
            (_, Token::Newline | Token::Semicolon) => {}
            (_, Token::End) => return Ok(settings),
            (pos, Token::Word(key)) => settings.push(parser.setting(key, pos)?),
            (pos, other) => return Err(pos.error(format!("unexpected {other}, expected `key = value`"))),
        }
    }
}

struct Parser<'a> {
    lexer: Lexer<'a>,
}

impl Parser<'_> {
    fn setting(&mut self, key: String, pos: Pos) -> Result<Setting, Diag> {
        match self.lexer.next()? {
            (_, Token::Equals) => {}
            (at, other) => return Err(at.error(format!("unexpected {other}, expected `=` after `{key}`"))),
        }
        let (at, token) = self.lexer.next()?;
        let value = self.value(at, token, &key, 0)?;
        match self.lexer.next()? {
            (_, Token::Newline | Token::Semicolon | Token::End) => Ok(Setting { key, pos, value }),
            (at, other) => Err(at.error(format!(
                "unexpected {other}, expected end of line or `;` after the value of `{key}`"
            ))),
        }
    }

    fn value(&mut self, pos: Pos, token: Token, key: &str, depth: usize) -> Result<Value, Diag> {
        let kind = match token {
            Token::Number(number) => Kind::Number(number),
            Token::Text(text) => Kind::Text(text),
            Token::Open if depth < MAX_DEPTH => Kind::List(self.list(&pos, key, depth)?),
            Token::Open => return Err(pos.error("lists are nested too deeply")),
            Token::Word(word) => {
                let right = match word.as_str() {
                    "True" | "true" | "yes" | "on" => format!("yes is 1, {key} = 1"),
                    "False" | "false" | "no" | "off" => format!("no is 0, {key} = 0"),
                    _ => format!("strings stand in quotes, {key} = \"{word}\""),
                };
                return Err(pos.error(format!("unexpected `{word}`: {right}")));
            }
            other => {
                return Err(
                    pos.error(format!("unexpected {other}, expected a string, a number or `[` for `{key}`"))
                );
            }
        };
        Ok(Value { pos, quoted: matches!(kind, Kind::Text(_)), kind })
    }

    fn list(&mut self, start: &Pos, key: &str, depth: usize) -> Result<Vec<Value>, Diag> {
        let mut list = Vec::new();
        loop {
            match self.filled(start)? {
                (_, Token::Close) => return Ok(list),
                (at, token) => list.push(self.value(at, token, key, depth + 1)?),
            }
            match self.filled(start)? {
                (_, Token::Comma) => {}
                (_, Token::Close) => return Ok(list),
                (at, other) => {
                    return Err(at.error(format!("unexpected {other}, expected `,` or `]` in the list")));
                }
            }
        }
    }

    /// The next token that is no end of line, inside the list that began at `start`.
    fn filled(&mut self, start: &Pos) -> Result<(Pos, Token), Diag> {
        loop {
            match self.lexer.next()? {
                (_, Token::Newline) => {}
                (_, Token::End) => return Err(start.error("list has no closing `]`")),
                found => return Ok(found),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A value without its positions.
    fn plain(value: &Value) -> String {
        match &value.kind {
            Kind::Number(n) => n.to_string(),
            Kind::Text(text) => format!("{text:?}"),
            Kind::List(list) => format!("[{}]", list.iter().map(plain).collect::<Vec<_>>().join(",")),
            Kind::Map(_) => "a map".into(),
        }
    }

    fn parsed(text: &str) -> String {
        match parse(&Arc::from("f"), text) {
            Ok(all) => {
                all.iter().map(|s| format!("{}={}", s.key, plain(&s.value))).collect::<Vec<_>>().join(" ")
            }
            Err(diag) => diag.to_string(),
        }
    }

    #[test]
    fn values_of_every_kind() {
        for (text, expected) in [
            ("", ""),
            ("# only a comment", ""),
            ("a=1", "a=1"),
            ("a = 0x100\t;  b=0400 # octal\n\nc = -3", "a=256 b=256 c=-3"),
            ("a = 'x'; b = \"y\";", "a=\"x\" b=\"y\""),
            ("a = \"1\\\"2\\t\\\\\"", "a=\"1\\\"2\\t\\\\\""),
            (r"a = '\x41\101'", "a=\"AA\""),
            ("a = [ \"a\", [ \"b\", 'c' ], 3, ]", "a=[\"a\",[\"b\",\"c\"],3]"),
            ("a = [\n 'x', # one\n\n 'y'\n]\nb=1", "a=[\"x\",\"y\"] b=1"),
            ("a = []", "a=[]"),
            ("a = 1\r\nb = \"x\"\r\n", "a=1 b=\"x\""),
            ("a = '#no comment'", "a=\"#no comment\""),
            ("\u{feff}a = 1", "a=1"),
            ("a = 1\na = 2", "a=1 a=2"),
        ] {
            assert_eq!(parsed(text), expected, "{text:?}");
        }
    }

    #[test]
    fn errors_say_where_and_what_would_be_right() {
        for (text, expected) in [
            ("a =\n", "f:1:4: unexpected end of line, expected a string, a number or `[` for `a`"),
            ("a", "f:1:2: unexpected end of file, expected `=` after `a`"),
            ("\n\n  type = pvh", "f:3:10: unexpected `pvh`: strings stand in quotes, type = \"pvh\""),
            ("acpi = True", "f:1:8: unexpected `True`: yes is 1, acpi = 1"),
            ("a = \"x\nb=1", "f:1:5: string has no closing \""),
            ("a = 1 b = 2", "f:1:7: unexpected `b`, expected end of line or `;` after the value of `a`"),
            (
                "a = '''x'''",
                "f:1:7: unexpected string \"x\", expected end of line or `;` after the value of `a`",
            ),
            ("= 3", "f:1:1: unexpected `=`, expected `key = value`"),
            ("a = [ 1 2 ]", "f:1:9: unexpected number 2, expected `,` or `]` in the list"),
            ("a = [ 1,\n2", "f:1:5: list has no closing `]`"),
            ("a = 12abc", "f:1:5: \"12abc\" is not a number; strings stand in quotes"),
            ("a = 08", "f:1:5: \"08\" is not a number (a leading 0 makes it octal); strings stand in quotes"),
            (
                "a = 99999999999999999999",
                "f:1:5: \"99999999999999999999\" is not a number; strings stand in quotes",
            ),
            (
                r"a = 'xy\q'",
                r#"f:1:8: no such escape; \" \' \\ \a \b \f \n \r \t \v \xHH \ooo exist, \\ gives a backslash"#,
            ),
            (r"a = '\xg0'", r"f:1:6: \x needs two hexadecimal digits"),
            ("a = /boot/vmlinuz", "f:1:5: '/' has no meaning here; strings stand in quotes"),
            ("ä = 1", "f:1:1: 'ä' has no meaning here; strings stand in quotes"),
        ] {
            assert_eq!(parsed(text), expected, "{text:?}");
        }
        assert!(parsed(&format!("a = {}", "[".repeat(100_000))).contains("nested too deeply"));
    }
}
