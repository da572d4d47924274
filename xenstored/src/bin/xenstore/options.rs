//! Options as getopt reads them: letters may be joined, may stand behind arguments, and end at `--`.

/// Long names of the letters.
const LONG: &[(&str, char)] = &[
    ("help", 'h'),
    ("flat", 'f'),
    ("prefix", 'p'),
    ("perms", 'p'),
    ("socket", 's'),
    ("raw", 'R'),
    ("tidy", 't'),
    ("upto", 'u'),
    ("recurse", 'r'),
    ("number", 'n'),
];

/// A parsed command line.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Options {
    letters: Vec<char>,
    /// The value of `-n`.
    pub number: Option<u64>,
    /// What is no option.
    pub args: Vec<String>,
}

impl Options {
    /// Reads `args`; `letters` are the options that the mode knows. `n` takes a number.
    ///
    /// # Errors
    /// A line about the option that is wrong.
    pub fn parse(args: &[String], letters: &str) -> Result<Self, String> {
        let mut options = Self::default();
        let mut rest = args.iter();
        while let Some(arg) = rest.next() {
            if arg == "--" {
                options.args.extend(rest.by_ref().cloned());
            } else if let Some(name) = arg.strip_prefix("--") {
                let (name, value) = name.split_once('=').map_or((name, None), |(n, v)| (n, Some(v)));
                let letter = LONG.iter().find(|(long, _)| *long == name).map(|(_, letter)| *letter);
                let letter = letter.filter(|letter| letters.contains(*letter));
                let letter = letter.ok_or_else(|| format!("unrecognized option '{arg}'"))?;
                options.add(letter, value.unwrap_or_default(), &mut rest)?;
            } else if let Some(joined) = arg.strip_prefix('-').filter(|joined| !joined.is_empty()) {
                options.add_joined(joined, letters, &mut rest)?;
            } else {
                options.args.push(arg.clone());
            }
        }
        Ok(options)
    }

    /// Whether an option was given.
    #[must_use]
    pub fn has(&self, letter: char) -> bool {
        self.letters.contains(&letter)
    }

    fn add_joined<'a>(
        &mut self,
        joined: &str,
        known: &str,
        rest: &mut impl Iterator<Item = &'a String>,
    ) -> Result<(), String> {
        for (at, letter) in joined.char_indices() {
            if !known.contains(letter) {
                return Err(format!("invalid option -- '{letter}'"));
            }
            let value = joined.get(at + letter.len_utf8()..).unwrap_or_default();
            self.add(letter, value, rest)?;
            if letter == 'n' {
                break;
            }
        }
        Ok(())
    }

    fn add<'a>(
        &mut self,
        letter: char,
        value: &str,
        rest: &mut impl Iterator<Item = &'a String>,
    ) -> Result<(), String> {
        self.letters.push(letter);
        if letter == 'n' {
            let next = if value.is_empty() { rest.next().map(String::as_str) } else { Some(value) };
            let text = next.ok_or("option requires an argument -- 'n'")?;
            self.number = Some(text.parse().map_err(|_| format!("-n {text}: not a number"))?);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str, letters: &str) -> Result<Options, String> {
        Options::parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>(), letters)
    }

    #[test]
    fn as_getopt() {
        let options = parse("/a -fp /b -- -x -", "fp").unwrap();
        assert_eq!((options.has('f'), options.has('p'), options.has('h')), (true, true, false));
        assert_eq!(options.args, ["/a", "/b", "-x", "-"]);
        for line in ["-n 3", "-n3", "--number=3", "--number 3"] {
            assert_eq!(parse(line, "n").unwrap().number, Some(3), "{line}");
        }
        assert_eq!(parse("-q", "n"), Err("invalid option -- 'q'".into()));
        assert_eq!(parse("--flat", "n"), Err("unrecognized option '--flat'".into()));
        assert_eq!(parse("-n", "n"), Err("option requires an argument -- 'n'".into()));
        assert_eq!(parse("-n x", "n"), Err("-n x: not a number".into()));
    }
}
