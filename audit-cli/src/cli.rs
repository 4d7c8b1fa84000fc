//! The options that every subcommand shares, and the list of subcommands.

use crate::{
    alerts::Alerts, client::Target, color::Choice, doctor::Doctor, export::Export, pki::Pki,
    query::Query, rules::Rules, status::Status, tail::Tail, tree::Tree, up::Up, verify::Verify,
};

const EXAMPLES: &str = "\
Start here (as root), then ask from a second terminal:
  hostaudit up
  hostaudit tail
  hostaudit query \"select kind, count(*) from events group by kind order by 2 desc\"
  hostaudit tree --pid $$
  hostaudit alerts --follow
  hostaudit verify

A collector is found by itself: ./hostaudit-data, then /run/hostaudit; --data DIR or --server ADDR
name another.";

/// Records who ran, touched and talked to what on this host, and answers questions about it.
#[derive(Debug, clap::Parser)]
#[command(name = "hostaudit", version, after_help = EXAMPLES, propagate_version = true)]
pub struct Cli {
    #[command(flatten)]
    pub target: Target,
    /// Colour output: auto means on a terminal, unless NO_COLOR is set
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN")]
    pub color: Choice,
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, clap::Subcommand)]
pub enum Command {
    Up(Up),
    Tail(Tail),
    Query(Query),
    Tree(Tree),
    Alerts(Alerts),
    Verify(Verify),
    Export(Export),
    Rules(Rules),
    Status(Status),
    Doctor(Doctor),
    Pki(Pki),
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, Parser as _};

    use super::*;

    #[test]
    fn the_definition_is_consistent_and_every_command_has_examples() {
        Cli::command().debug_assert();
        for command in Cli::command().get_subcommands_mut() {
            let help = command.render_long_help().to_string();
            assert!(
                help.contains("hostaudit "),
                "{} teaches nothing:\n{help}",
                command.get_name()
            );
        }
    }

    #[test]
    fn global_options_stand_on_either_side() {
        for line in [
            ["hostaudit", "--data", "d", "status"],
            ["hostaudit", "status", "--data", "d"],
        ] {
            let cli = Cli::try_parse_from(line).expect("parses");
            assert_eq!(cli.target.data.as_deref(), Some(std::path::Path::new("d")));
        }
    }

    #[test]
    fn a_tree_needs_one_subject() {
        assert!(Cli::try_parse_from(["hostaudit", "tree"]).is_err());
        assert!(Cli::try_parse_from(["hostaudit", "tree", "x", "--pid", "1"]).is_err());
        assert!(Cli::try_parse_from(["hostaudit", "tree", "--pid", "1", "--at", "10m"]).is_ok());
    }
}
