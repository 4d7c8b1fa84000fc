//! What standard output and standard error are, decided once at start.

use std::{
    env,
    io::{self, IsTerminal as _},
};

use crate::{
    color::{Choice, Palette},
    compact::Compact,
    display::Glyphs,
    when::Clock,
};

#[derive(Debug, Clone, Copy)]
pub struct Terminal {
    /// For standard output.
    pub palette: Palette,
    /// For standard error.
    pub error_palette: Palette,
    pub glyphs: Glyphs,
    /// Columns, where standard output is a terminal.
    pub width: Option<usize>,
    /// A person sees standard error.
    pub error_is_terminal: bool,
}

impl Terminal {
    pub fn detect(choice: Choice) -> Self {
        let out = io::stdout();
        let error_is_terminal = io::stderr().is_terminal();
        Self {
            palette: Palette::choose(choice, out.is_terminal()),
            error_palette: Palette::choose(choice, error_is_terminal),
            glyphs: Glyphs::of_locale(|name| env::var(name).ok()),
            width: out
                .is_terminal()
                .then(|| terminal_size::terminal_size_of(&out))
                .flatten()
                .map(|(width, _)| usize::from(width.0)),
            error_is_terminal,
        }
    }

    pub fn compact(&self) -> Compact {
        Compact::new(self.palette, self.glyphs, self.width, Clock::system())
    }
}
