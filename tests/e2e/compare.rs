//! The comparison, as small as it gets.

use insula_tests::{Invocation, insula, json};

#[test]
fn a_comparison_ends_with_a_table_a_result_and_a_page() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("result");
    let finished = Invocation::new(insula())
        .args([
            "compare",
            "--blocks",
            "1",
            "--only",
            "sys.null,start.cold,start.restore",
            "--seed",
            "7",
        ])
        .args(["--out", out.to_str().unwrap()])
        .run();
    let table = finished.ok();
    let result = json(&std::fs::read_to_string(out.join("result.json")).unwrap());
    let page = std::fs::read_to_string(out.join("report.html")).unwrap();
    for model in ["process", "host-vps", "guest-vps", "microvm"] {
        assert!(
            table.contains(model),
            "{model} is not in the table: {table}"
        );
        assert!(
            result.to_string().contains(model),
            "{model} is not in the result"
        );
        assert!(page.contains(model), "{model} is not on the page");
    }
    // What runs in guests was restored, and nothing was left out on the way.
    for model in ["guest-vps", "microvm"] {
        let restored = result["cells"].as_array().and_then(|cells| {
            cells
                .iter()
                .find(|cell| cell["metric"] == "start.restore/first-byte" && cell["model"] == model)
        });
        let restored = restored.unwrap_or_else(|| panic!("{model} was not restored: {result}"));
        assert!(restored["samples"].as_u64() > Some(0), "{restored}");
    }
    assert!(page.contains("<svg"), "the page has no plot");
    assert!(
        !page.contains("src=\"http"),
        "the page is not self-contained"
    );
}
