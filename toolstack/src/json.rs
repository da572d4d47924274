//! JSON as libxl prints it: four spaces, and an empty object over three lines.

use serde::Serialize;
use serde_json::ser::{Formatter, Serializer};
use std::io::{self, Write};

/// The text of `value`.
pub fn text(value: &impl Serialize) -> serde_json::Result<String> {
    let mut out = Vec::new();
    value.serialize(&mut Serializer::with_formatter(&mut out, Style::default()))?;
    Ok(String::from_utf8_lossy(&out).into_owned())
}

#[derive(Default)]
struct Style {
    depth: usize,
    filled: bool,
}

impl Style {
    fn line<W: Write + ?Sized>(&self, to: &mut W) -> io::Result<()> {
        write!(to, "\n{:1$}", "", self.depth * 4)
    }

    fn open<W: Write + ?Sized>(&mut self, to: &mut W, bracket: &str) -> io::Result<()> {
        (self.depth, self.filled) = (self.depth + 1, false);
        to.write_all(bracket.as_bytes())
    }

    fn close<W: Write + ?Sized>(&mut self, to: &mut W, bracket: &str) -> io::Result<()> {
        self.depth = self.depth.saturating_sub(1);
        if !self.filled {
            to.write_all(b"\n")?;
        }
        self.line(to)?;
        self.filled = true;
        to.write_all(bracket.as_bytes())
    }

    fn item<W: Write + ?Sized>(&self, to: &mut W, first: bool) -> io::Result<()> {
        if !first {
            to.write_all(b",")?;
        }
        self.line(to)
    }
}

impl Formatter for Style {
    fn begin_object<W: Write + ?Sized>(&mut self, to: &mut W) -> io::Result<()> {
        self.open(to, "{")
    }

    fn end_object<W: Write + ?Sized>(&mut self, to: &mut W) -> io::Result<()> {
        self.close(to, "}")
    }

    fn begin_object_key<W: Write + ?Sized>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        self.item(to, first)
    }

    fn begin_object_value<W: Write + ?Sized>(&mut self, to: &mut W) -> io::Result<()> {
        to.write_all(b": ")
    }

    fn end_object_value<W: Write + ?Sized>(&mut self, _: &mut W) -> io::Result<()> {
        self.filled = true;
        Ok(())
    }

    fn begin_array<W: Write + ?Sized>(&mut self, to: &mut W) -> io::Result<()> {
        self.open(to, "[")
    }

    fn end_array<W: Write + ?Sized>(&mut self, to: &mut W) -> io::Result<()> {
        self.close(to, "]")
    }

    fn begin_array_value<W: Write + ?Sized>(&mut self, to: &mut W, first: bool) -> io::Result<()> {
        self.item(to, first)
    }

    fn end_array_value<W: Write + ?Sized>(&mut self, _: &mut W) -> io::Result<()> {
        self.filled = true;
        Ok(())
    }
}
