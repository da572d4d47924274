//! Options as getopt_long of the C library reads them: letters may be joined and long names cut short, both may stand
//! behind arguments, and `--` ends them. What is no option at all is complained about and passed over.

/// Every option of any mode: long name, if it has one, and letter. One that a mode does not know is a wrong call of that mode.
const OPTIONS: &[(&str, char)] = &[
    ("help", 'h'),
    ("flat", 'f'),
    ("prefix", 'p'),
    ("", 's'),
    ("tidy", 't'),
    ("upto", 'u'),
    ("recurse", 'r'),
    ("number", 'n'),
    ("raw", 'R'),
];
/// The option that takes a value.
const WITH_VALUE: char = 'n';

/// A parsed command line.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    letters: Vec<char>,
    /// The value of `-n`; what is no number counts as 0.
    pub number: Option<i64>,
    /// What is no option.
    pub args: Vec<String>,
    /// Lines about what no mode knows.
    pub complaints: Vec<String>,
    /// The mode does not take these options, or help is wanted. What follows was not read.
    pub wrong: bool,
}

impl Options {
    /// Reads `args`; `letters` are the options that the mode knows. Without any nothing is taken for an option.
    #[must_use]
    pub fn parse(args: &[String], letters: &str) -> Self {
        let mut options = Self::default();
        if letters.is_empty() {
            options.args = args.to_vec();
            return options;
        }
        let mut rest = args.iter();
        while let Some(arg) = rest.next().filter(|_| !options.wrong) {
            if arg == "--" {
                options.args.extend(rest.by_ref().cloned());
            } else if let Some(name) = arg.strip_prefix("--") {
                options.add_long(name, letters, &mut rest);
            } else if let Some(joined) = arg.strip_prefix('-').filter(|joined| !joined.is_empty()) {
                options.add_joined(joined, letters, &mut rest);
            } else {
                options.args.push(arg.clone());
            }
        }
        options
    }

    /// Whether an option was given.
    #[must_use]
    pub fn has(&self, letter: char) -> bool {
        self.letters.contains(&letter)
    }

    fn add_long<'a>(&mut self, text: &str, known: &str, rest: &mut impl Iterator<Item = &'a String>) {
        let (name, value) = text.split_once('=').map_or((text, None), |(name, value)| (name, Some(value)));
        let exact = OPTIONS.iter().filter(|(long, _)| !long.is_empty() && *long == name);
        let begun =
            OPTIONS.iter().filter(|(long, _)| !name.is_empty() && long.starts_with(name) && *long != name);
        let found: Vec<_> = exact.chain(begun).collect();
        match *found.as_slice() {
            [] => self.complain(format!("unrecognized option '--{text}'")),
            [(long, letter)] if *letter != WITH_VALUE && value.is_some() => {
                self.complain(format!("option '--{long}' doesn't allow an argument"));
            }
            [(long, letter)] => {
                let value =
                    value.or_else(|| (*letter == WITH_VALUE).then(|| rest.next()).flatten().map(|v| &**v));
                if *letter == WITH_VALUE && value.is_none() {
                    self.complain(format!("option '--{long}' requires an argument"));
                } else {
                    self.add(*letter, value, known);
                }
            }
            _ => {
                let all: String = found.iter().map(|(long, _)| format!(" '--{long}'")).collect();
                self.complain(format!("option '--{text}' is ambiguous; possibilities:{all}"));
            }
        }
    }

    fn add_joined<'a>(&mut self, joined: &str, known: &str, rest: &mut impl Iterator<Item = &'a String>) {
        for (at, letter) in joined.char_indices() {
            if self.wrong {
                return;
            }
            if !OPTIONS.iter().any(|(_, option)| *option == letter) {
                self.complain(format!("invalid option -- '{letter}'"));
            } else if letter != WITH_VALUE {
                self.add(letter, None, known);
            } else {
                let behind = joined.get(at + letter.len_utf8()..).filter(|value| !value.is_empty());
                match behind.or_else(|| rest.next().map(String::as_str)) {
                    None => self.complain(format!("option requires an argument -- '{letter}'")),
                    value => self.add(letter, value, known),
                }
                return;
            }
        }
    }

    fn add(&mut self, letter: char, value: Option<&str>, known: &str) {
        self.wrong |= letter == 'h' || !known.contains(letter);
        self.letters.push(letter);
        self.number = value.map(leading_number).or(self.number);
    }

    fn complain(&mut self, line: String) {
        self.complaints.push(line);
    }
}

/// The number at the front of a text as `strtol` reads it, 0 if there is none.
#[must_use]
pub fn leading_number(text: &str) -> i64 {
    let text = text.trim_start();
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => (-1, digits),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    let digits = digits.chars().map_while(|digit| digit.to_digit(10));
    digits.fold(0i64, |number, digit| number.saturating_mul(10).saturating_add(sign * i64::from(digit)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str, letters: &str) -> Options {
        Options::parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>(), letters)
    }

    #[test]
    fn as_getopt() {
        let options = parse("/a -fp /b -- -x -", "fp");
        assert_eq!(
            (options.has('f'), options.has('p'), options.has('s'), options.wrong),
            (true, true, false, false)
        );
        assert_eq!(options.args, ["/a", "/b", "-x", "-"]);
        for (line, number) in
            [("-n 3", 3), ("-n3", 3), ("--number=3", 3), ("--num 3x", 3), ("-n x", 0), ("-n -1", -1)]
        {
            assert_eq!(parse(line, "n").number, Some(number), "{line}");
        }
        for line in ["-h", "--he", "-f /a", "--flat", "-nh 1 -f"] {
            assert!(parse(line, "n").wrong, "{line}");
        }
        for (line, complaint) in [
            ("-q", "invalid option -- 'q'"),
            ("--socket", "unrecognized option '--socket'"),
            ("--perms", "unrecognized option '--perms'"),
            ("--r", "option '--r' is ambiguous; possibilities: '--recurse' '--raw'"),
            ("--raw=1", "option '--raw' doesn't allow an argument"),
            ("-n", "option requires an argument -- 'n'"),
            ("--number", "option '--number' requires an argument"),
        ] {
            let options = parse(&format!("/a {line}"), "nrR");
            assert_eq!(
                (options.complaints, options.args, options.wrong),
                (vec![complaint.into()], vec!["/a".into()], false)
            );
        }
    }
}
