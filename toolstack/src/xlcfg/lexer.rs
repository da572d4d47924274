//! Tokens of xl.cfg(5).

use super::{Diag, Pos};
use std::fmt;
use std::iter::Peekable;
use std::str::Chars;
use std::sync::Arc;

/// One token.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// A key.
    Word(String),
    /// A number.
    Number(i64),
    /// A string, escapes resolved.
    Text(String),
    /// `=`
    Equals,
    /// `[`
    Open,
    /// `]`
    Close,
    /// `,`
    Comma,
    /// `;`
    Semicolon,
    /// End of line.
    Newline,
    /// End of the text.
    End,
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Token::Word(word) => write!(f, "`{word}`"),
            Token::Number(number) => write!(f, "number {number}"),
            Token::Text(text) => write!(f, "string {text:?}"),
            Token::Equals => f.write_str("`=`"),
            Token::Open => f.write_str("`[`"),
            Token::Close => f.write_str("`]`"),
            Token::Comma => f.write_str("`,`"),
            Token::Semicolon => f.write_str("`;`"),
            Token::Newline => f.write_str("end of line"),
            Token::End => f.write_str("end of file"),
        }
    }
}

/// Splits a text into tokens.
pub struct Lexer<'a> {
    chars: Peekable<Chars<'a>>,
    pos: Pos,
}

impl<'a> Lexer<'a> {
    /// Over `text`, which messages call `source`.
    pub fn new(source: &Arc<str>, text: &'a str) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        Lexer { chars: text.chars().peekable(), pos: Pos { source: source.clone(), line: 1, column: 1 } }
    }

    /// The next token and where it begins.
    pub fn next(&mut self) -> Result<(Pos, Token), Diag> {
        self.skip_blank();
        let pos = self.pos.clone();
        let Some(c) = self.bump() else { return Ok((pos, Token::End)) };
        let token = match c {
            '\n' => Token::Newline,
            '=' => Token::Equals,
            '[' => Token::Open,
            ']' => Token::Close,
            ',' => Token::Comma,
            ';' => Token::Semicolon,
            '"' | '\'' => Token::Text(self.text(c, &pos)?),
            '-' | '0'..='9' => number(&self.word(c, is_of_word), &pos)?,
            // Keys of xl.conf have dots.
            'a'..='z' | 'A'..='Z' | '_' => Token::Word(self.word(c, |c| is_of_word(c) || c == '.')),
            other => return Err(pos.error(format!("{other:?} has no meaning here; strings stand in quotes"))),
        };
        Ok((pos, token))
    }

    fn bump(&mut self) -> Option<char> {
        let c = self.chars.next()?;
        match c {
            '\n' => (self.pos.line, self.pos.column) = (self.pos.line.saturating_add(1), 1),
            _ => self.pos.column = self.pos.column.saturating_add(1),
        }
        Some(c)
    }

    /// Blanks, carriage returns and comments.
    fn skip_blank(&mut self) {
        let mut comment = false;
        while let Some(&c) = self.chars.peek() {
            comment = (comment || c == '#') && c != '\n';
            if !comment && !matches!(c, ' ' | '\t' | '\r') {
                break;
            }
            self.bump();
        }
    }

    fn word(&mut self, first: char, goes_on: fn(char) -> bool) -> String {
        let mut word = String::from(first);
        while let Some(&c) = self.chars.peek().filter(|c| goes_on(**c)) {
            word.push(c);
            self.bump();
        }
        word
    }

    fn text(&mut self, quote: char, start: &Pos) -> Result<String, Diag> {
        let mut text = String::new();
        loop {
            let at = self.pos.clone();
            match self.bump() {
                Some(c) if c == quote => return Ok(text),
                None | Some('\n') => return Err(start.error(format!("string has no closing {quote}"))),
                Some('\\') => text.push(self.escape(&at)?),
                Some(c) => text.push(c),
            }
        }
    }

    fn escape(&mut self, at: &Pos) -> Result<char, Diag> {
        Ok(match self.bump() {
            Some(c @ ('"' | '\'' | '\\')) => c,
            Some('a') => '\x07',
            Some('b') => '\x08',
            Some('f') => '\x0c',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('v') => '\x0b',
            Some('x') => self.code(16, 2, at)?,
            Some(c @ '0'..='7') => self.octal(c),
            _ => {
                return Err(at.error(
                    r#"no such escape; \" \' \\ \a \b \f \n \r \t \v \xHH \ooo exist, \\ gives a backslash"#,
                ));
            }
        })
    }

    fn code(&mut self, radix: u32, digits: u32, at: &Pos) -> Result<char, Diag> {
        let mut value = 0;
        for _ in 0..digits {
            let digit = self.chars.peek().and_then(|c| c.to_digit(radix));
            let digit = digit.ok_or_else(|| at.error(r"\x needs two hexadecimal digits"))?;
            value = value * radix + digit;
            self.bump();
        }
        Ok(char::from_u32(value).unwrap_or('\u{fffd}'))
    }

    fn octal(&mut self, first: char) -> char {
        let mut value = first.to_digit(8).unwrap_or(0);
        for _ in 0..2 {
            let Some(digit) = self.chars.peek().and_then(|c| c.to_digit(8)) else { break };
            value = value * 8 + digit;
            self.bump();
        }
        char::from_u32(value).unwrap_or('\u{fffd}')
    }
}

fn is_of_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// As strtol with base 0 reads it.
fn number(word: &str, pos: &Pos) -> Result<Token, Diag> {
    let (sign, digits) = word.strip_prefix('-').map_or((1, word), |rest| (-1, rest));
    let (radix, digits) = match digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
        Some(hex) => (16, hex),
        None if digits.len() > 1 && digits.starts_with('0') => (8, &digits[1..]),
        None => (10, digits),
    };
    let value = i64::from_str_radix(digits, radix).ok().map(|n| sign * n);
    value.map(Token::Number).ok_or_else(|| {
        let kind = if radix == 8 { " (a leading 0 makes it octal)" } else { "" };
        pos.error(format!("{word:?} is not a number{kind}; strings stand in quotes"))
    })
}
