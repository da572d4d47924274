//! `xenstore ls`: a tree, cut to a width.

use std::fmt::Write;

use xenstored::client::{Client, Error};
use xenstored::wire::Errno;

use crate::Failure;
use crate::options::Options;
use crate::text::escape;

/// Bytes of ` = "..."`.
const TAG_LEN: usize = 8;
/// Column that permissions are led to by dots.
const PERMS_COLUMN: usize = 60;

struct Listing<'a> {
    client: &'a mut Client,
    output: &'a mut String,
    flat: bool,
    perms: bool,
    /// Columns to use; without, as many as it takes.
    width: Option<usize>,
}

pub fn ls(client: &mut Client, options: &Options, output: &mut String) -> Result<(), Failure> {
    let flat = options.has('f');
    let mut listing = Listing { client, output, flat, perms: options.has('p'), width: width(flat) };
    let root = ["/".to_owned()];
    let paths = if options.args.is_empty() { &root[..] } else { &options.args };
    for path in paths {
        listing.directory(path)?;
    }
    Ok(())
}

impl Listing<'_> {
    /// Depth first without recursion; a node that disappears meanwhile is passed over.
    fn directory(&mut self, path: &str) -> Result<(), Failure> {
        let mut rest = vec![(path.to_owned(), 0)];
        let mut first = true;
        while let Some((path, depth)) = rest.pop() {
            if !std::mem::take(&mut first) {
                self.node(&path, depth - 1)?;
            }
            let names = match self.client.directory(&path) {
                Err(error) if depth > 0 && error.errno() == Some(Errno::ENOENT) => continue,
                Err(Error::Store { errno, .. }) => {
                    return Err(Failure::Message(format!("xs_directory ({path}): {}", errno.text())));
                }
                names => names?,
            };
            let base = path.trim_end_matches('/');
            let children = names.iter().map(|name| (format!("{base}/{name}"), depth + 1));
            rest.extend(children.rev());
        }
        Ok(())
    }

    fn node(&mut self, path: &str, depth: usize) -> Result<(), Failure> {
        // As in the original, a flat listing cuts values as if they began at the left.
        let mut column = 0;
        if self.flat {
            self.output.push_str(path);
        } else {
            let name = path.rsplit('/').next().unwrap_or_default();
            let name = cut(name, self.room(depth));
            column = depth + name.len();
            let _ = write!(self.output, "{:depth$}{name}", "");
        }
        match self.client.read(path) {
            Ok(value) => self.value(&value, column),
            Err(Error::Store { .. }) => self.output.push(':'),
            Err(error) => return Err(error.into()),
        }
        if self.perms {
            match self.client.get_perms(path) {
                Ok(perms) => {
                    let perms: Vec<String> = perms.iter().map(ToString::to_string).collect();
                    let _ = write!(self.output, "  ({})", perms.join(","));
                }
                Err(Error::Store { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        self.output.push('\n');
        Ok(())
    }

    fn value(&mut self, value: &[u8], column: usize) {
        let text = escape(value);
        if self.width.is_some_and(|width| width < column + value.len() + TAG_LEN) {
            let _ = write!(self.output, " = \"{}\\...\"", cut(&text, self.room(column)));
            return;
        }
        let start = self.output.len();
        let _ = write!(self.output, " = \"{text}\"");
        if self.perms {
            let end = self.width.map_or(0, |width| width.min(PERMS_COLUMN));
            let column = column + self.output.len() - start;
            self.output.push(' ');
            if !self.flat {
                self.output.extend((column + 1..end).map(|column| if column % 2 == 1 { '.' } else { ' ' }));
            }
        }
    }

    /// Columns left for a text from `column` on beside the tag; none if that is no number of columns.
    fn room(&self, column: usize) -> Option<usize> {
        self.width?.checked_sub(TAG_LEN)?.checked_sub(column)
    }
}

fn cut(text: &str, room: Option<usize>) -> &str {
    room.and_then(|room| text.get(..room)).unwrap_or(text)
}

/// The terminal's columns but two. Where the output is none a tree is cut as for 82 columns, a flat listing not at all.
fn width(flat: bool) -> Option<usize> {
    match rustix::termios::tcgetwinsize(std::io::stdout()) {
        Ok(size) => usize::from(size.ws_col).checked_sub(2),
        Err(_) => (!flat).then_some(80),
    }
}
