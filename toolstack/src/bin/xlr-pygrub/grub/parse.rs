//! Text to commands.

use anyhow::bail;
use std::rc::Rc;

/// A piece of a word.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// As it stands; `bare` outside of quotes.
    Text {
        /// It.
        text: String,
        /// Not quoted: may be a keyword.
        bare: bool,
    },
    /// `$name`
    Var {
        /// Without `$` and braces.
        name: String,
        /// Within quotes: stays one word.
        quoted: bool,
    },
}

/// What a command has between blanks.
pub type Word = Vec<Piece>;

/// Commands in a row.
pub type Script = Vec<Node>;

/// A command.
#[derive(Debug)]
pub enum Node {
    /// Name and arguments.
    Simple(Vec<Word>),
    /// `menuentry` or `submenu` with its block.
    Block(Vec<Word>, Rc<Script>),
    /// Conditions with what follows from them; what holds otherwise.
    If(Vec<(Script, Script)>, Script),
    /// `while`, or `until` if the flag is set.
    Loop(bool, Script, Script),
    /// `for NAME in WORDS`
    For(String, Vec<Word>, Script),
    /// `function NAME`
    Function(String, Rc<Script>),
}

/// Blocks within blocks.
const MAX_DEPTH: usize = 40;

#[derive(Debug)]
enum Token {
    Word(Word),
    End,
}

/// Parse a whole file.
///
/// # Errors
/// A block without an end; too many within each other.
pub fn parse(text: &str) -> anyhow::Result<Script> {
    let mut parser = Parser { tokens: lex(text), at: 0, depth: 0 };
    let script = parser.script(&[])?;
    match parser.keyword() {
        Some(word) => bail!("`{word}` without a beginning"),
        None => Ok(script),
    }
}

/// A name that a variable can have starts here.
fn name_of(rest: &[char]) -> Option<(String, usize)> {
    match *rest.first()? {
        '{' => {
            let end = rest.iter().position(|&c| c == '}')?;
            Some((rest.get(1..end)?.iter().collect(), end + 1))
        }
        c @ ('?' | '#' | '*' | '@') => Some((c.to_string(), 1)),
        c if c.is_ascii_digit() => Some((c.to_string(), 1)),
        c if c.is_ascii_alphabetic() || c == '_' => {
            let is_name = |c: &char| c.is_ascii_alphanumeric() || *c == '_';
            let name: String = rest.iter().copied().take_while(is_name).collect();
            let length = name.len();
            Some((name, length))
        }
        _ => None,
    }
}

/// A file in the making.
struct Lexer<'a> {
    rest: &'a [char],
    tokens: Vec<Token>,
    word: Option<Word>,
}

impl Lexer<'_> {
    fn push(&mut self, c: char, bare: bool) {
        let word = self.word.get_or_insert_default();
        match word.last_mut() {
            Some(Piece::Text { text, bare: same }) if *same == bare => text.push(c),
            _ => word.push(Piece::Text { text: c.to_string(), bare }),
        }
    }

    /// The word is over.
    fn finish(&mut self) {
        self.tokens.extend(self.word.take().map(Token::Word));
    }

    /// So many characters are done.
    fn skip(&mut self, count: usize) {
        self.rest = self.rest.get(count..).unwrap_or_default();
    }

    fn variable(&mut self, quoted: bool) {
        match name_of(self.rest) {
            Some((name, length)) => {
                self.word.get_or_insert_default().push(Piece::Var { name, quoted });
                self.skip(length);
            }
            None => self.push('$', !quoted),
        }
    }

    /// Behind a `'`.
    fn single(&mut self) {
        self.word.get_or_insert_default().push(Piece::Text { text: String::new(), bare: false });
        while let Some((&c, rest)) = self.rest.split_first() {
            self.rest = rest;
            if c == '\'' {
                return;
            }
            self.push(c, false);
        }
    }

    /// Behind a `"`.
    fn double(&mut self) {
        self.word.get_or_insert_default().push(Piece::Text { text: String::new(), bare: false });
        while let Some((&c, rest)) = self.rest.split_first() {
            self.rest = rest;
            match (c, rest.first()) {
                ('"', _) => return,
                ('$', _) => self.variable(true),
                ('\\', Some('\n')) => self.skip(1),
                ('\\', Some(&next @ ('"' | '\\' | '$'))) => {
                    self.push(next, false);
                    self.skip(1);
                }
                _ => self.push(c, false),
            }
        }
    }

    fn step(&mut self, c: char) {
        match c {
            ' ' | '\t' | '\r' => self.finish(),
            '\n' | ';' => {
                self.finish();
                self.tokens.push(Token::End);
            }
            '#' if self.word.is_none() => {
                let end = self.rest.iter().position(|&c| c == '\n');
                self.skip(end.unwrap_or(self.rest.len()));
            }
            '{' | '}' => {
                self.finish();
                self.push(c, true);
                self.finish();
            }
            '\'' => self.single(),
            '"' => self.double(),
            '$' => self.variable(false),
            '\\' => match self.rest.first().copied() {
                Some('\n') => self.skip(1),
                Some(next) => {
                    self.push(next, false);
                    self.skip(1);
                }
                None => {}
            },
            _ => self.push(c, true),
        }
    }
}

fn lex(text: &str) -> Vec<Token> {
    let chars: Vec<char> = text.chars().collect();
    let mut lexer = Lexer { rest: &chars, tokens: Vec::new(), word: None };
    while let Some((&c, rest)) = lexer.rest.split_first() {
        lexer.rest = rest;
        lexer.step(c);
    }
    lexer.finish();
    lexer.tokens
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    depth: usize,
}

impl Parser {
    /// The next token if it is a word without quotes and variables.
    fn keyword(&self) -> Option<&str> {
        match self.tokens.get(self.at)? {
            Token::Word(word) => match word.as_slice() {
                [Piece::Text { text, bare: true }] => Some(text),
                _ => None,
            },
            Token::End => None,
        }
    }

    fn expect(&mut self, keyword: &str) -> anyhow::Result<()> {
        while matches!(self.tokens.get(self.at), Some(Token::End)) {
            self.at += 1;
        }
        if self.keyword() != Some(keyword) {
            bail!("`{keyword}` is missing");
        }
        self.at += 1;
        Ok(())
    }

    /// Commands up to one of the keywords `ends`, which is left where it is.
    fn script(&mut self, ends: &[&str]) -> anyhow::Result<Script> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            bail!("more than {MAX_DEPTH} blocks within each other");
        }
        let mut script = Vec::new();
        while let Some(token) = self.tokens.get(self.at) {
            match token {
                Token::End => self.at += 1,
                Token::Word(_) if self.keyword().is_some_and(|word| ends.contains(&word)) => break,
                Token::Word(_) => match self.command()? {
                    Some(node) => script.push(node),
                    // A closing word that nothing opened.
                    None => break,
                },
            }
        }
        self.depth -= 1;
        Ok(script)
    }

    fn command(&mut self) -> anyhow::Result<Option<Node>> {
        let keyword = self.keyword().unwrap_or_default().to_owned();
        match keyword.as_str() {
            "if" => self.conditional().map(Some),
            "while" | "until" => {
                self.at += 1;
                let condition = self.script(&["do"])?;
                let body = self.looped()?;
                Ok(Some(Node::Loop(keyword == "until", condition, body)))
            }
            "for" => {
                self.at += 1;
                let mut words = self.words();
                let name = words.first().map(plain).unwrap_or_default();
                words.drain(..words.len().min(2));
                Ok(Some(Node::For(name, words, self.looped()?)))
            }
            "function" => {
                self.at += 1;
                let name = self.words().first().map(plain).unwrap_or_default();
                Ok(Some(Node::Function(name, self.block()?)))
            }
            "}" | "then" | "elif" | "else" | "fi" | "do" | "done" => Ok(None),
            _ => {
                let words = self.words();
                match self.keyword() {
                    Some("{") => Ok(Some(Node::Block(words, self.block()?))),
                    _ => Ok(Some(Node::Simple(words))),
                }
            }
        }
    }

    fn conditional(&mut self) -> anyhow::Result<Node> {
        let (mut arms, mut otherwise) = (Vec::new(), Vec::new());
        loop {
            match self.keyword() {
                Some("if" | "elif") => {
                    self.at += 1;
                    let condition = self.script(&["then"])?;
                    self.expect("then")?;
                    arms.push((condition, self.script(&["elif", "else", "fi"])?));
                }
                Some("else") => {
                    self.at += 1;
                    otherwise = self.script(&["fi"])?;
                }
                _ => {
                    self.expect("fi")?;
                    return Ok(Node::If(arms, otherwise));
                }
            }
        }
    }

    fn looped(&mut self) -> anyhow::Result<Script> {
        self.expect("do")?;
        let body = self.script(&["done"])?;
        self.expect("done")?;
        Ok(body)
    }

    fn block(&mut self) -> anyhow::Result<Rc<Script>> {
        self.expect("{")?;
        let body = self.script(&["}"])?;
        self.expect("}")?;
        Ok(Rc::new(body))
    }

    /// The words up to the end of the command or a brace.
    fn words(&mut self) -> Vec<Word> {
        let mut words = Vec::new();
        while !matches!(self.keyword(), Some("{" | "}"))
            && let Some(Token::Word(word)) = self.tokens.get_mut(self.at)
        {
            words.push(std::mem::take(word));
            self.at += 1;
        }
        // Progress in any case: a lone `{` is a command.
        if words.is_empty() && self.keyword() == Some("{") {
            words.push(Vec::new());
        }
        words
    }
}

/// A word without its variables.
fn plain(word: &Word) -> String {
    let text = |piece: &Piece| match piece {
        Piece::Text { text, .. } => text.clone(),
        Piece::Var { .. } => String::new(),
    };
    word.iter().map(text).collect()
}
