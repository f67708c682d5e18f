use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use proptest::prelude::*;
use vm_memory::GuestAddress;

use super::*;
use crate::memory::{MemoryFile, RestoreMode, restore};
use crate::snapshot::digest;

const PAGES: u64 = 64;

/// Two ranges with a gap between them.
fn memory() -> GuestMemory {
    let half = (PAGES / 2 * PAGE_SIZE) as usize;
    GuestMemory::from_ranges(&[(GuestAddress(0), half), (GuestAddress(1 << 30), half)]).unwrap()
}

/// The address of a page, counted through both ranges.
fn address(page: u64) -> GuestAddress {
    if page < PAGES / 2 {
        GuestAddress(page * PAGE_SIZE)
    } else {
        GuestAddress((1 << 30) + (page - PAGES / 2) * PAGE_SIZE)
    }
}

fn fill(memory: &GuestMemory, page: u64, value: u8) {
    memory.write_slice(&[value; PAGE], address(page)).unwrap();
}

fn byte(memory: &GuestMemory, page: u64) -> u8 {
    memory.read_obj(GuestAddress(address(page).0 + 77)).unwrap()
}

fn layer(path: &Path, parts: Option<Vec<Extent>>) -> MemoryFile {
    MemoryFile {
        file: Arc::new(File::open(path).unwrap()),
        parts,
    }
}

fn parts(pages: &PageSet) -> Vec<Extent> {
    pages
        .runs()
        .map(|run| Extent {
            start: run.start * PAGE_SIZE,
            len: (run.end - run.start) * PAGE_SIZE,
        })
        .collect()
}

#[test]
fn zero_pages_are_not_written_and_untouched_ones_not_touched() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("memory");
    let memory = memory();
    for page in [3, 4, 31, 32, 63] {
        fill(&memory, page, page as u8);
    }
    // Touched, and zero.
    fill(&memory, 10, 0);
    let used = used_pages(&memory, &Backing::default(), &path).unwrap();
    assert!(used.contains(10));
    let content = write(&memory, &used, &path).unwrap();
    assert_eq!(
        (content.size, content.data),
        (PAGES * PAGE_SIZE, 5 * PAGE_SIZE)
    );
    assert_eq!(
        digest::of_file(&File::open(&path).unwrap(), &path).unwrap(),
        content
    );
    let allocated = std::fs::metadata(&path).unwrap().blocks() * 512;
    assert!(allocated <= 16 * PAGE_SIZE, "{allocated} bytes on disk");
}

#[test]
fn a_restored_memory_saves_what_it_has_not_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let first = dir.path().join("first");
    let original = memory();
    fill(&original, 5, 50);
    fill(&original, 40, 40);
    let used = used_pages(&original, &Backing::default(), &first).unwrap();
    write(&original, &used, &first).unwrap();

    let backing = Backing(vec![layer(&first, None)]);
    let restored = restore(&ranges(&original), &backing, RestoreMode::OnDemand).unwrap();
    fill(&restored, 6, 60);
    let second = dir.path().join("second");
    let used = used_pages(&restored, &backing, &second).unwrap();
    let content = write(&restored, &used, &second).unwrap();
    assert_eq!(content.data, 3 * PAGE_SIZE);
    // The file that it came from is as it was.
    let again = restore(&ranges(&original), &backing, RestoreMode::HugePages).unwrap();
    assert_eq!(
        (byte(&again, 5), byte(&again, 6), byte(&again, 40)),
        (50, 0, 40)
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]
    #[test]
    fn layers_over_layers_are_the_memory(
        steps in prop::collection::vec(
            prop::collection::vec((0..PAGES, prop_oneof![Just(0_u8), 1..=u8::MAX]), 0..20),
            1..4,
        ),
        huge in any::<bool>(),
    ) {
        let dir = tempfile::tempdir().unwrap();
        let memory = memory();
        let mut backing = Backing::default();
        for (index, step) in steps.iter().enumerate() {
            let mut changed = PageSet::none(PAGES);
            for &(page, value) in step {
                fill(&memory, page, value);
                changed.insert(page);
            }
            let path = dir.path().join(index.to_string());
            let lowest = index == 0;
            let pages = if lowest {
                used_pages(&memory, &backing, &path).unwrap()
            } else {
                changed.clone()
            };
            let content = write(&memory, &pages, &path).unwrap();
            prop_assert!(content.data <= pages.count() * PAGE_SIZE);
            backing.0.push(layer(&path, (!lowest).then(|| parts(&changed))));
        }
        let mode = if huge { RestoreMode::HugePages } else { RestoreMode::OnDemand };
        let restored = restore(&ranges(&memory), &backing, mode).unwrap();
        for page in 0..PAGES {
            prop_assert_eq!(byte(&restored, page), byte(&memory, page), "page {}", page);
        }
    }
}
