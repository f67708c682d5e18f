//! The image cache.

use insula_tests::{Invocation, insula, json};

#[test]
fn what_is_built_is_listed_and_verifies() {
    Invocation::new(insula())
        .args(["image", "build"])
        .run()
        .ok();
    let list = json(
        &Invocation::new(insula())
            .args(["image", "list", "--json"])
            .run()
            .ok(),
    );
    let kinds: Vec<_> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|image| image["kind"].as_str().unwrap())
        .collect();
    for kind in ["kernel", "agent", "initramfs", "template"] {
        assert!(kinds.contains(&kind), "no {kind} in {list}");
    }
    Invocation::new(insula())
        .args(["image", "verify"])
        .run()
        .ok();
}
