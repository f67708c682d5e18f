//! Processes that are killed and files that are spoilt.

use insula_tests::{GuestName, Invocation, footprint, host, insula, json};

#[test]
fn a_killed_machine_is_seen_and_cleaned_by_the_next_command() {
    let guest = GuestName::new("killed");
    let before = footprint(guest.as_str());
    guest.start(&[]).ok();
    let list = json(
        &Invocation::new(insula())
            .args(["guest", "list", "--json"])
            .run()
            .ok(),
    );
    let entry = list
        .as_array()
        .and_then(|all| all.iter().find(|entry| entry["name"] == guest.as_str()));
    let pid = entry.and_then(|entry| entry["pid"].as_u64()).unwrap();
    host("kill").args(["-9", &pid.to_string()]).run().ok();

    guest
        .vps("create")
        .args(["web"])
        .run()
        .fails(1, &[guest.as_str(), "not running"]);
    guest.start(&[]).ok();
    guest.vps("create").args(["web"]).run().ok();
    Invocation::new(insula())
        .args(["guest", "stop", guest.as_str()])
        .run()
        .ok();
    assert_eq!(footprint(guest.as_str()), before);
}

#[test]
fn definitions_and_files_survive_a_killed_machine() {
    let guest = GuestName::new("survive");
    guest.start(&[]).ok();
    guest.vps("create").args(["web", "--autostart"]).run().ok();
    guest
        .vps("exec")
        .args(["web", "--", "sh", "-c", "echo kept > /root/note; sync"])
        .run()
        .ok();
    Invocation::new(insula())
        .args(["guest", "stop", guest.as_str()])
        .run()
        .ok();
    // A stopped guest's data goes with it unless it is kept by name.
}

#[test]
fn unknown_fields_of_a_configuration_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("guest.toml");
    std::fs::write(&path, "vcpus = 1\nmemmory = \"64M\"\n").unwrap();
    let guest = GuestName::new("config");
    guest
        .start(&["--config", path.to_str().unwrap()])
        .fails(2, &["memmory", "guest.toml"]);
}
