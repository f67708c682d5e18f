//! Read-only images from directory trees.

use std::path::Path;
use std::process::Command;

use crate::command;
use crate::error::Result;
use crate::packages;

/// The UUID of every image: what an image is, is said by its hash.
const UUID: &str = "696e7375-6c61-4000-8000-65726f667321";

/// Makes an EROFS image of the tree at `tree`. All files belong to root and have
/// the same time, so that equal trees make equal images. Nothing is compressed:
/// what is read from the image is what guests run, again and again.
///
/// # Errors
/// [`crate::Error::MissingPackages`] without erofs-utils, and those of `mkfs.erofs`.
pub fn from_tree(tree: &Path, image: &Path) -> Result<()> {
    let mut mkfs = Command::new(packages::tool("mkfs.erofs", "erofs-utils")?);
    mkfs.args(["--quiet", "--all-root", "-x-1", "-T1", "-U", UUID])
        .arg(image)
        .arg(tree);
    // It warns when it is asked for fewer features than it has; only a failure counts.
    command::run(&mut mkfs).map(|_| ())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn equal_trees_make_equal_images() {
        let dir = tempfile::tempdir().unwrap();
        let images = ["a", "b"].map(|name| {
            let tree = dir.path().join(name);
            fs::create_dir_all(tree.join("etc")).unwrap();
            fs::write(tree.join("etc/hosts"), "127.0.0.1 localhost\n").unwrap();
            std::os::unix::fs::symlink("etc", tree.join("link")).unwrap();
            let image = dir.path().join(format!("{name}.erofs"));
            from_tree(&tree, &image).unwrap();
            fs::read(image).unwrap()
        });
        assert!(images[0] == images[1]);
        // The superblock is at 1024 and starts with EROFS's magic number.
        assert_eq!(images[0][1024..1028], 0xe0f5_e1e2_u32.to_le_bytes());
    }

    #[test]
    fn a_tree_that_is_not_there_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("image");
        assert!(from_tree(&dir.path().join("none"), &image).is_err());
    }
}
