//! Whether and how output is coloured. Off unless a person looks: NO_COLOR, a pipe and
//! `TERM=dumb` switch it off, `--color` has the last word.

use std::{borrow::Cow, env};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Choice {
    #[default]
    Auto,
    Always,
    Never,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    Plain,
    Dim,
    Bold,
    Red,
    Alarm,
    Green,
    Yellow,
    Blue,
    Magenta,
    Cyan,
}

impl Style {
    fn code(self) -> &'static str {
        match self {
            Style::Plain => "",
            Style::Dim => "\x1b[2m",
            Style::Bold => "\x1b[1m",
            Style::Red => "\x1b[31m",
            Style::Alarm => "\x1b[1;31m",
            Style::Green => "\x1b[32m",
            Style::Yellow => "\x1b[33m",
            Style::Blue => "\x1b[34m",
            Style::Magenta => "\x1b[35m",
            Style::Cyan => "\x1b[36m",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Palette {
    on: bool,
}

impl Palette {
    #[cfg(test)]
    pub const OFF: Palette = Palette { on: false };
    #[cfg(test)]
    pub const ON: Palette = Palette { on: true };

    pub fn choose(choice: Choice, is_terminal: bool) -> Self {
        let set = |name: &str| env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self {
            on: match choice {
                Choice::Always => true,
                Choice::Never => false,
                Choice::Auto => is_terminal && !set("NO_COLOR") && !dumb,
            },
        }
    }

    /// `text` must be safe already: see `display::safe`.
    pub fn paint<'a>(self, style: Style, text: &'a str) -> Cow<'a, str> {
        if !self.on || style == Style::Plain || text.is_empty() {
            return Cow::Borrowed(text);
        }
        Cow::Owned(format!("{}{text}\x1b[0m", style.code()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colour_is_off_in_a_pipe_unless_asked_for() {
        assert_eq!(Palette::choose(Choice::Auto, false), Palette::OFF);
        assert_eq!(Palette::choose(Choice::Always, false), Palette::ON);
        assert_eq!(Palette::choose(Choice::Never, true), Palette::OFF);
        assert_eq!(Palette::OFF.paint(Style::Red, "x"), "x");
        assert_eq!(Palette::ON.paint(Style::Red, "x"), "\x1b[31mx\x1b[0m");
    }
}
