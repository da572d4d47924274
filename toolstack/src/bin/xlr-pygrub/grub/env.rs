//! grubenv, the environment block: lines `name=value`, padded with `#`. A `\` stands before one of its kind and before the
//! end of a line that is the value's.

/// What is for one start only. GRUB clears it when it has used it; nothing is written here, so it would last for ever.
const ONCE: &[&str] = &["next_entry", "recordfail"];

/// The variables in it.
pub fn parse(text: &str) -> Vec<(String, String)> {
    let mut lines = vec![String::new()];
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        match (c, lines.last_mut()) {
            ('\n', _) => lines.push(String::new()),
            ('\\', Some(line)) => line.extend(chars.next()),
            (_, Some(line)) => line.push(c),
            (_, None) => {}
        }
    }
    let lines = lines.iter().filter(|line| !line.starts_with('#'));
    let pairs = lines.filter_map(|line| line.split_once('=')).filter(|(name, _)| !ONCE.contains(name));
    pairs.map(|(name, value)| (name.to_owned(), value.trim_end_matches('\r').to_owned())).collect()
}
