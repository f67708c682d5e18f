//! The partitioning engine on the host's own kernel: the agent's tests that
//! need root and cgroup v2 run where the guests run, from here.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use insula_tests::{host, json};

/// Builds the agent's test program `vps` and says where it is.
fn test_program() -> PathBuf {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let built = Command::new(cargo)
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .args(["test", "--no-run", "--locked", "--package", "guest-agent"])
        .args([
            "--all-features",
            "--test",
            "vps",
            "--message-format",
            "json",
        ])
        .output()
        .unwrap();
    assert!(
        built.status.success(),
        "building the agent's tests failed: {}",
        String::from_utf8_lossy(&built.stderr)
    );
    String::from_utf8_lossy(&built.stdout)
        .lines()
        .map(json)
        .filter(|message| message["target"]["name"] == "vps")
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .unwrap()
}

#[test]
fn vpss_of_a_service_on_the_hosts_own_kernel() {
    let program = fs::read(test_program()).unwrap();
    let directory = format!("/var/tmp/insula-vps-tests-{}", std::process::id());
    let put = format!("mkdir -p {directory} && cat > {directory}/vps && chmod +x {directory}/vps");
    host("sh").args(["-c", &put]).stdin(program).run().ok();
    // The agent and the template that guests have, from the image cache there.
    let script = r#"
cache="${INSULA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/insula}"
INSULA_TEST_AGENT=$(ls -t "$cache"/agent/*/insula-agent | head -n 1)
INSULA_TEST_ROOT=$(ls -t "$cache"/template/*/*.erofs | head -n 1)
export INSULA_TEST_AGENT INSULA_TEST_ROOT
"$0/vps" --ignored --test-threads=2 2>&1
code=$?
rm -rf "$0"
exit $code
"#;
    let finished = host("sh").args(["-c", script, &directory]).run();
    println!("{}", finished.stdout);
    assert_eq!(finished.code(), 0, "{finished}");
    assert!(finished.stdout.contains("0 ignored") && !finished.stdout.contains("running 0 tests"));
}
