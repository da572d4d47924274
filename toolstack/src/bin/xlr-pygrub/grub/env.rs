//! grubenv, the environment block: lines `name=value`, padded with `#`.

/// What is for one start only. GRUB clears it when it has used it; nothing is written here, so it would last for ever.
const ONCE: &[&str] = &["next_entry", "recordfail"];

/// The variables in it.
pub fn parse(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once('=')).filter(|(name, _)| !ONCE.contains(name))
}
