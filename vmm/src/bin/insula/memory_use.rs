//! `insula guest list --memory`

use serde_json::json;
use vmm::guest::{MemoryUse, RunRoot, Size};

use crate::agent::sweep;
use crate::failure::Outcome;
use crate::output::{Output, table};

/// Lists what each guest costs the host in memory.
pub(crate) fn list(output: &Output) -> Outcome {
    let root = RunRoot::for_user()?;
    sweep(&root, output);
    let mut guests = Vec::new();
    for dir in root.guests()? {
        if let Some(memory) = dir.memory_use()? {
            guests.push((dir.name().clone(), dir.status()?.state, memory));
        }
    }
    let value: Vec<_> = guests
        .iter()
        .map(|(name, state, memory)| json!({ "name": name.as_str(), "state": state, "memory": memory }))
        .collect();
    output.result(&value, || {
        if guests.is_empty() {
            return "no guest is running".to_owned();
        }
        let mut table = table(&["name", "state", "part", "pss", "rss", "private", "shared"]);
        for (name, state, memory) in &guests {
            let parts = [
                ("all", memory.total),
                ("guest", memory.guest),
                ("vmm", memory.vmm),
            ];
            for (index, (part, use_of)) in parts.into_iter().enumerate() {
                // Named once: the other lines are what the first is made of.
                let (name, state) = if index == 0 {
                    (name.to_string(), state.to_string())
                } else {
                    (String::new(), String::new())
                };
                let MemoryUse {
                    pss,
                    rss,
                    private,
                    shared,
                    ..
                } = use_of;
                let size = |bytes| Size::new(bytes).to_string();
                table.add_row([
                    name,
                    state,
                    part.to_owned(),
                    size(pss),
                    size(rss),
                    size(private),
                    size(shared),
                ]);
            }
        }
        table.to_string()
    })
}
