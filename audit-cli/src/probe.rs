//! The agent's configuration, and what its hooks got on this kernel, in words to print.

use std::path::Path;

use anyhow::Result;

/// One hook: where it is attached, and which better places refused it and why.
#[derive(Debug)]
pub struct Hook {
    pub name: String,
    pub kinds: String,
    pub attached: Option<String>,
    /// The configuration leaves it out.
    pub off: bool,
    /// How it knows what a call acts on, where the caller's memory could say something else.
    pub objects: Option<String>,
    /// Where the texts that its calls are given come from.
    pub names: Option<String>,
    pub refused: Vec<(String, String)>,
}

impl Hook {
    /// It should be attached and is not.
    pub fn is_dead(&self) -> bool {
        self.attached.is_none() && !self.off
    }
}

pub fn agent_config(file: Option<&Path>, overrides: &[String]) -> Result<audit_agent::Config> {
    Ok(audit_config::load(file, None, overrides)?)
}

/// Loads and attaches every hook, and lets go again.
pub fn hooks(config: &audit_agent::Config) -> Result<Vec<Hook>, String> {
    let statuses = audit_agent::probe::check(config).map_err(|e| e.to_string())?;
    let hook = |status: audit_agent::probe::HookStatus| {
        Hook {
        name: status.name.to_string(),
        kinds: status.kinds.join(", "),
        attached: status.attached.map(|rung| rung.to_string()),
        off: status.off,
        objects: status.objects.map(|objects| match objects {
            Ok(rung) => format!("objects seen by {rung}"),
            // Why is said rung by rung.
            Err(_) => "files as found by their names after the call: nothing above sees what it acted on"
                .to_owned(),
        }),
        names: status.texts.map(|texts| match texts {
            Ok(()) => "names as the kernel copied them: a thread that changes one is told".to_owned(),
            Err(reason) => format!(
                "names as the caller's memory has them after the call, wrong if a thread changes one: {reason}"
            ),
        }),
        refused: status
            .tried
            .iter()
            .map(|(rung, reason)| (rung.to_string(), reason.clone()))
            .collect(),
    }
    };
    Ok(statuses.into_iter().map(hook).collect())
}
