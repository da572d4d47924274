//! `[ ... ]` and `test`.

/// What a condition asks of the files.
pub trait Look {
    /// Bytes of the file at `path`.
    fn size(&self, path: &str) -> Option<u64>;
    /// A directory with something in it.
    fn is_dir(&self, path: &str) -> bool;
}

/// Parentheses within each other.
const MAX_DEPTH: usize = 20;

/// Whether it holds; a malformed one does not.
pub fn holds(words: &[String], look: &dyn Look) -> bool {
    let mut condition = Condition { words, look, depth: 0 };
    condition.any() && condition.words.is_empty()
}

struct Condition<'a> {
    words: &'a [String],
    look: &'a dyn Look,
    depth: usize,
}

impl Condition<'_> {
    fn word(&self, at: usize) -> Option<&str> {
        self.words.get(at).map(String::as_str)
    }

    fn skip(&mut self, count: usize) {
        self.words = self.words.get(count..).unwrap_or_default();
    }

    fn any(&mut self) -> bool {
        let mut result = self.every();
        while self.word(0) == Some("-o") {
            self.skip(1);
            result |= self.every();
        }
        result
    }

    fn every(&mut self) -> bool {
        let mut result = self.not();
        while self.word(0) == Some("-a") {
            self.skip(1);
            result &= self.not();
        }
        result
    }

    fn not(&mut self) -> bool {
        let mut negated = false;
        while self.word(0) == Some("!") && self.words.len() > 1 {
            negated = !negated;
            self.skip(1);
        }
        self.one() != negated
    }

    fn one(&mut self) -> bool {
        if self.words.len() >= 3
            && let (Some(left), Some(operator), Some(right)) = (self.word(0), self.word(1), self.word(2))
            && let Some(result) = binary(left, operator, right)
        {
            self.skip(3);
            return result;
        }
        match (self.word(0), self.word(1)) {
            (Some("("), Some(_)) if self.depth < MAX_DEPTH => {
                self.skip(1);
                self.depth += 1;
                let result = self.any();
                self.depth -= 1;
                self.skip(1);
                result
            }
            (Some(operator), Some(word)) => match self.unary(operator, word) {
                Some(result) => {
                    self.skip(2);
                    result
                }
                None => self.text(),
            },
            _ => self.text(),
        }
    }

    /// A word alone holds if there is anything in it.
    fn text(&mut self) -> bool {
        let result = self.word(0).is_some_and(|word| !word.is_empty());
        self.skip(1);
        result
    }

    fn unary(&self, operator: &str, word: &str) -> Option<bool> {
        Some(match operator {
            "-n" => !word.is_empty(),
            "-z" => word.is_empty(),
            "-f" => self.look.size(word).is_some(),
            "-s" => self.look.size(word).is_some_and(|size| size > 0),
            "-e" => self.look.size(word).is_some() || self.look.is_dir(word),
            "-d" => self.look.is_dir(word),
            _ => return None,
        })
    }
}

fn binary(left: &str, operator: &str, right: &str) -> Option<bool> {
    let number = |text: &str| text.trim().parse::<i64>().unwrap_or(0);
    let (a, b) = (number(left), number(right));
    Some(match operator {
        "=" | "==" => left == right,
        "!=" => left != right,
        "<" => left < right,
        "<=" => left <= right,
        ">" => left > right,
        ">=" => left >= right,
        "-eq" => a == b,
        "-ne" => a != b,
        "-lt" => a < b,
        "-le" => a <= b,
        "-gt" => a > b,
        "-ge" => a >= b,
        _ => return None,
    })
}
