use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

fn build_file(dir: &Path) -> Result<()> {
    fs::write(dir.join("file"), "content").at("write", dir)
}

fn ensure(cache: &Cache, version: &str) -> Entry {
    let inputs = Inputs::new().text("version", version);
    cache
        .ensure(
            Kind::Template,
            "t",
            &inputs,
            &Progress::silent(),
            build_file,
        )
        .unwrap()
}

#[test]
fn an_entry_is_built_once_and_described() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::at(dir.path());
    let entry = ensure(&cache, "1");
    let record = &entry.manifest().files[0];
    assert_eq!((record.path.as_str(), record.size), ("file", 7));
    assert_eq!(entry.manifest().inputs["version"], "1");
    assert_eq!(fs::read(entry.path("file")).unwrap(), b"content");
    cache.check(&entry).unwrap();
    let inputs = Inputs::new().text("version", "1");
    let again = cache.ensure(Kind::Template, "t", &inputs, &Progress::silent(), |_| {
        panic!("built twice")
    });
    assert_eq!(again.unwrap().dir(), entry.dir());
}

#[test]
fn a_failed_build_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::at(dir.path());
    let fail = |out: &Path| {
        build_file(out)?;
        Err(Error::NoCacheDirectory)
    };
    let inputs = Inputs::new();
    assert!(
        cache
            .ensure(Kind::Agent, "a", &inputs, &Progress::silent(), fail)
            .is_err()
    );
    assert_eq!(fs::read_dir(dir.path().join("agent")).unwrap().count(), 0);
}

#[test]
fn what_an_interrupted_build_left_is_cleared() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::at(dir.path());
    let hash = Inputs::new().text("version", "1").hash();
    let left = dir.path().join(format!("template/.tmp-{hash}-x"));
    fs::create_dir_all(&left).unwrap();
    ensure(&cache, "1");
    assert!(!left.exists());
    fs::create_dir_all(&left).unwrap();
    assert_eq!(
        cache.prune(false).unwrap().removed,
        std::slice::from_ref(&left)
    );
    // While its lock is held, a build is under way and stays.
    fs::create_dir_all(&left).unwrap();
    let _lock = cache.lock(&format!("template-{hash}"), || {}).unwrap();
    assert!(cache.prune(false).unwrap().removed.is_empty());
}

#[test]
fn two_builds_at_once_wait_for_each_other() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::at(dir.path());
    let builds = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let build = |out: &Path| {
                    builds.fetch_add(1, Ordering::Relaxed);
                    std::thread::sleep(std::time::Duration::from_millis(50));
                    build_file(out)
                };
                let progress = Progress::silent();
                cache
                    .ensure(Kind::Kernel, "k", &Inputs::new(), &progress, build)
                    .unwrap();
            });
        }
    });
    assert_eq!(builds.into_inner(), 1);
}

#[test]
fn a_changed_file_is_found_by_its_hash_and_a_short_one_is_built_again() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::at(dir.path());
    let entry = ensure(&cache, "1");
    cache.check(&entry).unwrap();
    fs::write(entry.path("file"), "CONTENT").unwrap();
    let message = cache.check(&entry).unwrap_err().to_string();
    assert!(
        message.contains("template 't'") && message.contains("insula image"),
        "{message}"
    );
    // Where nothing can be built, another cure is named.
    SealedIndex::of([&entry]).write(dir.path()).unwrap();
    let ask = || {
        cache.ensure(
            Kind::Template,
            "t",
            &Inputs::new(),
            &Progress::silent(),
            build_file,
        )
    };
    let message = ask().unwrap_err().to_string();
    assert!(message.contains("insula lab stop"), "{message}");
    fs::remove_file(dir.path().join("sealed.json")).unwrap();
    let findings = cache.verify().unwrap();
    assert!(findings.len() == 1 && findings[0].problem.is_some());
    fs::write(entry.path("file"), "short").unwrap();
    assert_eq!(
        fs::read(ensure(&cache, "1").path("file")).unwrap(),
        b"content"
    );
}

#[test]
fn a_lock_whose_file_is_removed_is_taken_anew() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::at(dir.path());
    let first = cache.lock("x", || {}).unwrap();
    std::thread::scope(|scope| {
        let (sender, waits) = std::sync::mpsc::channel();
        let lock = |sender: std::sync::mpsc::Sender<()>| {
            cache.lock("x", || sender.send(()).unwrap()).unwrap()
        };
        let second = scope.spawn(move || lock(sender));
        waits.recv().unwrap();
        fs::remove_file(dir.path().join(".locks/x.lock")).unwrap();
        drop(first);
        let _second = second.join().unwrap();
        assert!(cache.is_locked("x").unwrap());
    });
}

#[test]
fn pruning_keeps_the_last_used_of_each_name() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::at(dir.path());
    let old = ensure(&cache, "1");
    std::thread::sleep(std::time::Duration::from_millis(10));
    let new = ensure(&cache, "2");
    assert_eq!(cache.list().unwrap()[0].dir(), new.dir());
    let pruned = cache.prune(false).unwrap();
    assert_eq!(pruned.removed, [old.dir().to_path_buf()]);
    assert!(pruned.bytes > 7);
    cache.prune(true).unwrap();
    assert!(cache.list().unwrap().is_empty());
}

#[test]
fn a_sealed_cache_finds_by_name_and_builds_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::at(dir.path());
    let entry = ensure(&cache, "1");
    SealedIndex::of([&entry]).write(dir.path()).unwrap();
    // Other inputs, same name.
    assert_eq!(ensure(&cache, "2").dir(), entry.dir());
    let error = cache
        .ensure(
            Kind::Template,
            "other",
            &Inputs::new(),
            &Progress::silent(),
            build_file,
        )
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("sealed") && error.contains("template/t"),
        "{error}"
    );
}

#[test]
fn a_newer_or_broken_manifest_is_refused_with_its_path() {
    let dir = tempfile::tempdir().unwrap();
    let cache = Cache::at(dir.path());
    let entry = ensure(&cache, "1");
    let path = entry.path("manifest.json");
    for (text, wanted) in [
        ("{\"version\": 99, \"new\": 1}", "version 99"),
        ("nonsense", "expected"),
    ] {
        fs::write(&path, text).unwrap();
        let message = Entry::open(entry.dir()).unwrap_err().to_string();
        assert!(
            message.contains("manifest.json") && message.contains(wanted),
            "{message}"
        );
    }
}
